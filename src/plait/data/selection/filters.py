"""Find which samples of a source pass its `filter:`, before the order of samples is made.

Which samples pass depends on the data and the filter alone. A sample that is left out is counted, by the first part of the filter that it
fails, and is no bad sample; one that cannot be measured, as its file is broken, is kept, and found bad when it is drawn.
"""

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from plait.config.sections import expression
from plait.config.sections.selection import Filter
from plait.data.field_names import field_list
from plait.data.selection import copies_file
from plait.data.selection.measures import SIDES, TOKENS, UNDECIDED, Measure, condition
from plait.data.selection.survey import Measured, Samples, Surveyed, measured, text_of
from plait.errors import BadSample, PlaitError, counted_reasons, sample_errors

_PROBES = 20  # samples read, at most, to know the columns


def passing(surveyed: Surveyed, settings: Filter) -> tuple[np.ndarray, dict[str, int]]:
    """Return (the indices of the samples that pass a filter, how many do not, by what they fail). What is measured is kept.

    Raises PlaitError for a condition on a column that there is not, or that no sample decides, and if no sample passes.
    """
    source = surveyed.source
    parsed = None if settings.expr is None else expression.parse(settings.expr)
    if parsed is not None:
        _check(source, parsed)
    wanted: list[Measure] = [] if parsed is None else [condition(parsed)]
    wanted += [TOKENS] if settings.caption_tokens is not None else []
    wanted += [SIDES] if settings.min_side is not None or settings.aspect is not None else []
    told = ", ".join(name for name in type(settings).model_fields if getattr(settings, name) is not None)
    numbers = measured(surveyed, wanted, what_for=f"its filter ({told})")
    kept, counts = np.ones(len(source), bool), dict[str, int]()
    if settings.dedup is not None:
        copies = copies_file.copied(settings.dedup, source.fingerprint)
        kept[copies] = False
        counts |= {"dedup": len(copies)} if len(copies) else {}
    for reason, passes in _rules(settings, numbers):
        failing = int(np.count_nonzero(kept & ~passes))
        counts |= {reason: failing} if failing else {}
        kept &= passes
    if not kept.any():
        raise PlaitError(f"its filter leaves none of its {len(source):,} samples: {counted(counts)}")
    indices = np.flatnonzero(kept)
    return indices.astype(np.uint32 if len(source) <= 1 << 32 else np.int64), counts


def counted(counts: Mapping[str, int]) -> str:
    """Return the counts of a filter as text: "120 by min_side 256, 3 by expr"."""
    return ", ".join(f"{count:,} by {reason}" for reason, count in counts.items())


def _check(source: Samples, parsed: expression.Condition) -> None:
    """Look at some samples, spread over the source. Raises PlaitError for an unknown column, and a condition that none of them decides."""
    fields: dict[str, None] = {}
    reasons: Counter[str] = Counter()
    decided = read = 0
    for i in sorted({k * (len(source) - 1) // max(1, _PROBES - 1) for k in range(_PROBES)}):
        try:
            with sample_errors:
                record = text_of(source)(i)["fields"]
        except BadSample:
            continue
        read, fields = read + 1, fields | dict.fromkeys(map(str, record))
        try:
            parsed.holds(record)
            decided += 1
        except expression.Undecided as error:
            reasons[str(error)] += 1
    if not read:
        return
    if unknown := parsed.unknown(list(fields)):
        name, place, near = unknown
        hint = f"did you mean {near!r}? " if near else ""
        raise PlaitError(
            f"filter.expr {parsed.text!r} at character {place}: no column {name!r}: {hint}the records have {field_list(fields)}"
        )
    if not decided:
        why = counted_reasons(reasons) if len(reasons) > 1 else next(iter(reasons))
        raise PlaitError(f"filter.expr {parsed.text!r} is undecided for all of the {read} samples looked at: {why}")


def _rules(settings: Filter, numbers: Measured) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (reason, which samples pass) for each part of a filter. Samples that could not be measured (NaN) pass."""
    if settings.expr is not None:
        values = next(array for name, array in numbers.items() if name.startswith("condition"))[:, 0]
        yield "expr", values != 0
        yield "expr, undecided (of a null, or a value of another type)", values != UNDECIDED
    if settings.caption_tokens is not None:
        least, most = settings.caption_tokens
        tokens = numbers[TOKENS.name][:, 0]
        yield f"caption_tokens [{least}, {most}]", ~((tokens < least) | (tokens > most))
    if settings.min_side is not None or settings.aspect is not None:
        side, narrowest, widest = numbers[SIDES.name].T
        if np.isinf(side).all():
            raise PlaitError("its filter is about sizes of pictures, and no sample has a picture")
        if settings.min_side is not None:
            yield f"min_side {settings.min_side}", ~(side < settings.min_side)
        if settings.aspect is not None:
            low, high = settings.aspect
            yield f"aspect [{low:g}, {high:g}]", ~((narrowest < low) | (widest > high))
