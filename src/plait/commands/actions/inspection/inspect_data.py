"""What `plait data inspect` does: draw samples as the model will see them, before any step is run.

The samples are the first of the run, encoded by the loader's code with the run's random seeds; unusable ones are replaced, as in training.
Drawn is what the encoded example holds, not the file. No weights are needed, only what a family (kind of model) encodes with.
"""

import bisect
import itertools
import logging
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from plait.assembly import data_look
from plait.assembly.data import data_seed, open_validation
from plait.commands.actions.index_data import byte_text
from plait.commands.actions.inspection.inspect_source import page_folder, write_json
from plait.commands.actions.inspection.seen_samples import Seen, StageSamples, assets_of, showing
from plait.commands.actions.inspection.stage_figures import Measured, measure_stage
from plait.commands.pages import gallery
from plait.commands.pages.card import Card
from plait.config.resolved import Resolved, StageView
from plait.config.schema import RunConfig
from plait.data import images
from plait.data.buckets import BucketOrder
from plait.data.loading.bucketing import bucket_lengths, contents_of
from plait.data.loading.micro_batch import Bad, collated
from plait.data.order import SampleId
from plait.engine.loss import has_targets, weights_of
from plait.errors import PlaitError
from plait.families.contract import Family
from plait.families.limits import Limits
from plait.families.signatures import Inputs

log = logging.getLogger(__name__)

_IDS_SHOWN = 5

Details = list[tuple[str, str]]
"""What is said of all samples above them on a page, as (name, text)."""


@dataclass(frozen=True)
class _Buckets:
    """The names of each source's buckets, none where it does not name them, and the index at which each of them ends."""

    names: Sequence[Sequence[str]]
    ends: Sequence[Sequence[int]]
    grouped: bool
    """Whether any source has buckets: then no batch holds samples of two sources."""

    @classmethod
    def of(cls, opened: Sequence[Any], global_batch: int) -> "_Buckets":
        """Return the buckets of sources. `global_batch`: samples per step."""
        names = [[str(row["bucket"]) for row in source.table(global_batch)] for source in opened]
        ends = [list(itertools.accumulate(bucket_lengths(source))) for source in opened]
        return cls(names, ends, any(source.groups for source in opened))

    def of_sample(self, sample_id: SampleId) -> tuple[int, int]:
        """Return (source, bucket) of a sample, the same for all samples that may share a batch."""
        source = sample_id.source
        return (source, bisect.bisect_right(self.ends[source], sample_id.index)) if self.grouped else (0, 0)

    def name(self, sample_id: SampleId) -> str | None:
        """Return the name of a sample's bucket."""
        names = self.names[sample_id.source]
        return names[self.of_sample(sample_id)[1]] if names else None

    def missing(self, ids: Sequence[SampleId]) -> Details:
        """Return a row with the buckets that none of the samples is of."""
        drawn = {self.name(sample_id) for sample_id in ids}
        lacking = [name for names in self.names for name in names if name not in drawn]
        return [("not shown", f"buckets {_some(lacking)}: ask for more --samples")] if lacking else []


ALL = Measured()


def draw(resolved: Resolved, split: str, samples: int, out: Path | None, *, measured: Measured = ALL, as_json: bool = False) -> None:
    """Draw the first `samples` samples of a run, as the model sees them, to `out`/sheet.png (a contact sheet) and `out`/page.html.

    Measure its sources too, as `measured` says, to `out`/figures.html; `as_json`: print their figures as JSON in place of lines.
    `out`: a new or empty folder; None: `inspect`, or the first of inspect-2, inspect-3, ... that does not exist.
    `split`: "train", in the order of steps, or "validation". Stages (parts of a run) that differ in their data get a folder each, named
    like the stage. Raises PlaitError for a family that cannot show its examples, if there is nothing to draw, and in the end, after the
    pages are written, for data that a run would refuse.
    """
    if samples < 1:
        raise PlaitError(f"--samples={samples}: ask for at least one")
    out = page_folder(out)
    family = showing(resolved)
    section = family.Config.model_validate(resolved.config.model)
    views, refused, pages = _different(resolved.stages), list[str](), list[Path]()
    told, look = list[dict[str, Any]](), list[dict[str, str]]()
    with assets_of(resolved.config) as assets:
        for view in views:
            folder = out if len(views) == 1 else out / f"stage-{view.index}-{view.name}"
            stage = StageSamples.of(view, family, section, assets, split)
            lines, looks, figures = _draw_stage(stage, section, samples=samples, out=folder, measured=measured)
            for line in () if as_json else lines:
                log.info(line)
            refused += [text for name, text in looks if name == "refused"]
            told += [{"stage": view.name, **one} for one in figures]
            look += [{"stage": view.name, "about": name, "text": text} for name, text in looks]
            pages += [folder / "page.html", folder / "figures.html"]
    for view in () if as_json else resolved.stages:
        if view not in views:
            same = next(drawn for drawn in views if drawn.config.data == view.config.data)
            order = ", in an order of its own" if split == "train" else ""
            log.info(f"stage {view.index} ({view.name}) has the data of stage {same.index} ({same.name}){order}")
    write_json(out, told, pages=pages, shown=as_json, look=look, refused=refused)
    if refused:
        raise PlaitError(f"a run would not start with this data: {refused[0]}")


def _different(stages: Sequence[StageView]) -> list[StageView]:
    """Return the stages whose data differs from that of every earlier stage."""
    return [view for i, view in enumerate(stages) if all(view.config.data != before.config.data for before in stages[:i])]


def _draw_stage(
    stage: StageSamples, section: Any, *, samples: int, out: Path, measured: Measured
) -> tuple[list[str], Details, list[Mapping[str, Any]]]:
    """Encode and draw the samples of one stage. Returns what is known of them as lines, the rows of the look, and the sources' figures."""
    view, family, config = stage.view, stage.family, stage.view.config
    opened, inputs = stage.data.sources, stage.inputs
    title = f"{stage.split}, stage {view.index} ({view.name})"
    looks = _look(view, opened, inputs, family.limits(section), stage.split)
    lines = [f"{title}: samples all over each source\n{data_look.listed(looks)}"]
    ids, order, seen, bad = stage.first(samples)
    buckets = _Buckets.of(opened, config.train.global_batch)
    of_each = isinstance(order, BucketOrder)
    different = len({one.id[:2] for one in seen})
    which = f"{different} samples, the first of each bucket by turns," if of_each else f"the first {different} samples"
    title += f": {which} as the model sees them"
    contents = contents_of(opened, config.train.global_batch)
    details = [
        *_data(seen, opened),
        *contents,
        *buckets.missing(ids),
        *_figures(seen),
        *_batch(seen, buckets, family, section, inputs, config),
        *_trouble(seen, bad, config),
    ]
    several = len(opened) > 1
    cards = [card_of(sample, opened[sample.id.source].name if several else None, buckets.name(sample.id)) for sample in seen]
    cards += [_bad_card(lost, opened) for lost in bad]
    sheet, page = gallery.write(out, title, cards, legend=family.legend, details=[*looks, *details])
    wide = max(len(name) for name, _ in details)
    lines += [title, "\n".join(f"  {name:<{wide}}  {value}" for name, value in details)]
    about, figures = measure_stage(stage, section, measured, out)
    return [*lines, "\n".join(about), f"figures in {out / 'figures.html'}", f"written to {sheet} and {page}"], looks, figures


def _look(view: StageView, opened: Sequence[Any], inputs: Inputs, limits: Limits, split: str) -> Details:
    """Return the rows of the table that a run logs before its first step, and what it would refuse or warn of."""
    config, train = view.config, split == "train"
    held_out = open_validation(config) if train else []
    looks = data_look.look(opened, inputs, limits, held_out, data_seed(view))
    idle = data_look.without_input(looks, limits, config.trainable) if train else []
    refused = [*data_look.unusable(looks), *(idle if config.guard.no_input == "stop" else [])] if train else []
    warned = [fault for fault in idle if fault not in refused]
    compared = [(one, one.overlap) for one in looks if one.overlap is not None and not one.overlap.notable]
    leakage = [("leakage", f"{one.source.name}: {overlap.text(len(one.source))}") for one, overlap in compared]
    return [*data_look.table(looks), *leakage, *(("refused", fault) for fault in refused), *(("warning", fault) for fault in warned)]


def _data(seen: Sequence[Seen], opened: Sequence[Any]) -> Details:
    """Return a row per source with the number of samples drawn, and picture sizes in files and as the model sees them."""
    details = []
    for number, source in enumerate(opened):
        drawn = [sample for sample in seen if sample.id.source == number]
        shapes = [images.decode(data).shape for sample in drawn for data in sample.sample["images"]]
        text = f"{len({sample.id.index for sample in drawn})} of {len(source):,} samples"
        if shapes:
            text += f"; pictures of {_sizes([(width, height) for _, height, width in shapes])}"
        if shown := [(picture.shape[1], picture.shape[0]) for sample in drawn for picture in sample.shown["images"]]:
            text += f", seen as {_sizes(shown)}"
        details.append((source.name, text))
    return details


def _sizes(pairs: Sequence[tuple[int, int]]) -> str:
    """Return sizes as text: up to three one by one, else the smallest and the largest by area."""
    kinds = Counter(pairs)
    if len(kinds) <= 3:
        return " and ".join(f"{width}x{height}" for width, height in sorted(kinds)) + " px"
    least, most = (pick(kinds, key=lambda pair: (pair[0] * pair[1], pair)) for pick in (min, max))
    return f"{least[0]}x{least[1]} to {most[0]}x{most[1]} px ({len(kinds)} sizes)"


def _figures(seen: Sequence[Seen]) -> Details:
    """Return a row with range and median for every number in the family's notes."""
    names = dict.fromkeys(name for sample in seen for name in sample.shown["notes"])
    details = []
    for name in names:
        values = [sample.shown["notes"].get(name) for sample in seen]
        numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        if len(numbers) == len(values):
            least, most = min(numbers), max(numbers)
            spread = f"{least:g}" if least == most else f"{least:g} to {most:g}, median {statistics.median(numbers):g}"
            details.append((name, f"{spread} per sample"))
    return details


def _batch(seen: Sequence[Seen], buckets: _Buckets, family: Family, section: Any, inputs: Inputs, config: RunConfig) -> Details:
    """Return rows with the tensors of the first micro-batch, or why it cannot be made. Also the samples of zero loss weight."""
    alike = [sample.example for sample in seen if buckets.of_sample(sample.id) == buckets.of_sample(seen[0].id)]
    first = alike[: config.train.micro_batch or config.train.global_batch]
    details = []
    try:
        batch = collated(inputs, first)
    except PlaitError as error:
        details.append(("batch", f"cannot be made of the first {len(first)}: {error}"))
    else:
        kinds: dict[str, list[str]] = {}
        for name, value in batch.items():
            if isinstance(value, Tensor):
                kinds.setdefault(f"{'x'.join(map(str, value.shape))} {str(value.dtype).removeprefix('torch.')}", []).append(name)
        size = sum(value.nbytes for value in batch.values() if isinstance(value, Tensor))
        details.append(
            (f"batch of {len(first)}", f"{byte_text(size)}: " + "; ".join(f"{', '.join(names)} {kind}" for kind, names in kinds.items()))
        )
    loss = family.Loss(section)
    weights = [{name: float(value) for name, value in weights_of(loss, collated(inputs, [one.example])).items()} for one in seen]
    idle = [str(sample.sample["id"]) for sample, given in zip(seen, weights, strict=True) if not has_targets(loss, given)]
    return [*details, ("nothing to learn", f"{len(idle)} samples: {_some(idle)}")] if idle else details


def _trouble(seen: Sequence[Seen], bad: Sequence[Bad], config: RunConfig) -> Details:
    """Return rows with the samples that were cut, and with those that could not be used."""
    cut = [str(sample.sample["id"]) for sample in seen if sample.cut]
    details = [("cut", f"{len(cut)} of {len(seen)} to data.max_tokens = {config.data.max_tokens}: {_some(cut)}")] if cut else []
    return [*details, *(("bad", f"{lost.name}: {lost.reason}") for lost in bad)]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_IDS_SHOWN]) + (f" and {len(names) - _IDS_SHOWN} more" if len(names) > _IDS_SHOWN else "")


def card_of(seen: Seen, source: str | None, bucket: str | None) -> Card:
    """Return the card of a sample as the model sees it. `source`, `bucket`: names to note on it, None for none."""
    notes = {name: text for name, text in (("source", source), ("bucket", bucket)) if text}
    notes |= {
        name: {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value) for name, value in seen.shown["notes"].items()
    }
    if seen.cut:
        notes["cut"] = "to max_tokens"
    shown = seen.shown
    return Card(shown["images"], shown["text"], str(seen.sample["id"]), None, notes, shown.get("labels", ()))


def _bad_card(bad: Bad, opened: Sequence[Any]) -> Card:
    replacement = f"{opened[bad.replaced_by.source].name}[{bad.replaced_by.index}]"
    return Card([], [(f"Cannot be used: {bad.reason}", False)], f"bad: {bad.name}", None, {"replaced by": replacement})
