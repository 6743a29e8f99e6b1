"""Inspect some samples of each source (data set) before the first step: count those bad, without text, truncated, or held out too.

`inputs` is the family's object that encodes samples as in training; `limits`, what sizes and inputs its model takes. Samples are spread
evenly over each source. Not a check of all data: later faults are in quarantine.jsonl. `plait data inspect` shows the same table.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from plait.assembly import overlap
from plait.assembly.data import open_validation
from plait.assembly.overlap import HeldOutContent, Overlap, content_of, contents
from plait.assembly.refusals import unusable_data
from plait.config.schema import RunConfig
from plait.config.sections.adapters import component_of
from plait.data import image_files
from plait.data.field_names import TEXTS
from plait.data.loading.micro_batch import Inputs, collated
from plait.data.sources.contract import Sample, Source, read
from plait.data.sources.filtered import filtered_text
from plait.engine.parallel.distributed import Ranks
from plait.errors import BadSample, PlaitError, counted_reasons, sample_errors
from plait.families.limits import Limits
from plait.keys import key

log = logging.getLogger(__name__)

_SAMPLES, _ALL_SAMPLES = 32, 512
"""How many samples of one source, and of all sources together, are looked at (at most)."""


@dataclass
class SourceLook:
    """Counts of what was found in some samples of one source. `limits`: the input sizes that the model can take."""

    source: Source
    limits: Limits
    read: int = 0
    """Samples looked at, bad ones included."""
    bad: Counter[str] = field(default_factory=Counter)
    """How many samples cannot be used, by reason."""
    without_text: int = 0
    """Samples without any answer or caption, whether the model can use them or not."""
    empty: int = 0
    """Usable samples whose answers or captions are all blank, which the source allows."""
    cut: int = 0
    """Usable samples whose text is truncated to `data.max_tokens`."""
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """Width and height of each image that can be opened."""
    overlap: Overlap | None = None
    """How many samples are held out as well; None where no samples are held out."""
    holding: Counter[str] = field(default_factory=Counter)
    """How many usable samples have text, images, frames, or what a component takes of both: {"images": 30, "images or frames": 32}."""
    fields: dict[str, None] = field(default_factory=dict)
    """Names of the fields, but those of texts, that usable samples without images have, in their order."""
    of_textless: dict[str, None] = field(default_factory=dict)
    """Names of the fields that usable samples without an answer or caption have, in their order."""

    @property
    def usable(self) -> int:
        """Return how many of the samples looked at can be used."""
        return self.read - self.bad.total()

    def text(self) -> str:
        """Return in one line what was found, and no zeros: "500 samples, 32 looked at: 3 bad (3 x no text)"."""
        counts = {
            f"bad ({counted_reasons(self.bad)})": self.bad.total(),
            "without text": self.without_text,
            "with empty text": self.empty,
            "cut by data.max_tokens": self.cut,
            **{f"without {keys}": self.usable - self.holding[keys] for keys in map(_either, self.limits.needs.values())},
            **self._unfit(),
        }
        found = [f"{count} {name}" for name, count in counts.items() if count]
        found += [self.overlap.text(len(self.source))] if self.overlap is not None and self.overlap.notable else []
        looked = "all" if self.read == len(self.source) else self.read
        parts = [f"{len(self.source):,} samples, {looked} looked at: {', '.join(found) or 'all good'}"]
        if self.sizes:
            least, most = (pick(self.sizes, key=lambda size: size[0] * size[1]) for pick in (min, max))
            parts.append(f"pictures of {'x'.join(map(str, least))}{'' if least == most else ' to ' + 'x'.join(map(str, most))} px")
        parts += [filtered_text(self.source)] if self.source.filtered else []
        parts += [] if self.source.stream is None else [self.source.stream.text()]
        parts += [f"left out: {count} of {reason}" for reason, count in self.source.left_out.items()]
        return "; ".join(parts)

    def _unfit(self) -> dict[str, int]:
        """Return how many pictures are over a limit, and how many have a side under what the model sees."""
        over = sum(image_files.over_limit(size, image_files.MAX_PIXELS) is not None for size in self.sizes)
        side = self.limits.image_side or 0
        return {
            f"pictures over {image_files.MAX_PIXELS / 1e6:.0f} megapixels or {image_files.MAX_SIDE} px a side": over,
            f"pictures with a side under the model's {side} px": sum(min(size) < side for size in self.sizes),
        }


def compare_ranks(fingerprints: Mapping[str, str], ranks: Ranks) -> None:
    """Check that all ranks have the same data. `fingerprints`: {source: hash of its content}. Raises PlaitError, on all ranks, if not."""
    by_rank = ranks.gather(dict(fingerprints))
    for name in {name: None for theirs in by_rank for name in theirs}:
        differing = [str(rank) for rank, theirs in enumerate(by_rank) if theirs.get(name) != by_rank[0].get(name)]
        if differing:
            raise PlaitError(
                f"data source {name} is not the same on every rank: rank {', '.join(differing)} has other data than rank 0; "
                "every machine needs the same files"
            )


def report(config: RunConfig, sources: Sequence[Source], inputs: Inputs, limits: Limits, ranks: Ranks, *, seed: int) -> None:
    """Inspect samples of the training sources on rank 0 and log a table. All ranks call this, and all raise PlaitError for the first fault.

    Faults: a source of which no sample, or no text, is usable, and a trained component or a setting for whose input there is no sample; the
    latter is only logged if `guard.no_input` is `continue`. `seed`: of the augmentation.
    """
    error = None
    if ranks.first:
        try:
            found = look(sources, inputs, limits, open_validation(config), seed)
            log.info(listed(table(found)))
            faults, idle = unusable(found), without_input(found, limits, config.trainable)
            if config.guard.no_input == "stop":
                faults += idle
            elif idle:
                log.info(listed([("warning", fault) for fault in idle]))
            error = faults[0] if faults else None
        except PlaitError as raised:
            error = str(raised)
    error = ranks.agree(error)
    if error is not None:
        raise PlaitError(error)


def table(found: Sequence[SourceLook]) -> list[tuple[str, str]]:
    """Return (source name, its counts as one line of text) for each SourceLook in `found`, which `look` returned."""
    return [(one.source.name, one.text()) for one in found]


def listed(rows: Sequence[tuple[str, str]]) -> str:
    """Return (name, text) pairs as indented lines "name: text"."""
    return "\n".join(f"  {name}: {text}" for name, text in rows)


def look(sources: Sequence[Source], inputs: Inputs, limits: Limits, held_out: Sequence[Source], seed: int) -> list[SourceLook]:
    """Read some samples of each source, encode them with `inputs`; return counts. `held_out`: to compare with; `seed`: of augmentation."""
    count = max(1, min(_SAMPLES, _ALL_SAMPLES // max(1, len(sources))))
    found = [SourceLook(source, limits) for source in sources]
    if held_out:
        _compare(found, held_out, count)
    for number, one in enumerate(found):
        stream = one.source.stream
        for index in _spread(len(one.source), count) if stream is None else stream.first(count, (seed, "order", number, 0)):
            _look_at(one, index, inputs, key(seed, "look", index))
    return found


def unusable(found: Sequence[SourceLook]) -> list[str]:
    """Return a sentence per source in `found` without a usable sample, or with images but no text unless its `allow_blank` is on."""
    faults = []
    for one in found:
        if one.read and not one.usable:
            faults.append(f"{one.source.name}: {unusable_data.all_bad(one.bad)}")
        elif one.sizes and not one.holding["text"] and not one.source.allow_blank:
            faults.append(f"{one.source.name}: {unusable_data.without_text(one.bad, one.usable, one.of_textless)}")
    return faults


def without_input(found: Sequence[SourceLook], limits: Limits, trainable: Sequence[str]) -> list[str]:
    """Return advice for each component in `trainable`, or setting, whose input (by `limits`: images, ...) no sample in `found` has."""
    named = {component_of(item.partition(":")[0]) for item in trainable}
    usable = sum(one.usable for one in found)
    faults = []
    for name, keys in limits.needs.items():
        holding = sum(one.holding[_either(keys)] for one in found)
        if usable and not holding and (name.startswith("model.") or name in named or "*" in named):
            bad = sum((one.bad for one in found), Counter[str]())
            fields, idle = dict.fromkeys(field for one in found for field in one.fields), limits.idle.get(name, 0)
            faults.append(unusable_data.without_input(name, _either(keys), bad, usable, fields=fields, idle=idle))
    return faults


def _either(keys: Sequence[str]) -> str:
    return " or ".join(keys)


def _look_at(found: SourceLook, index: int, inputs: Inputs, sample_key: int) -> None:
    """Read and encode one sample of a source, and count what it is in `found`."""
    found.read += 1
    try:
        with sample_errors:
            sample = read(found.source, index, sample_key)
            if found.overlap is not None and not found.source.stored:
                found.overlap.add(content_of(sample))
            answers = _answers(sample)
            found.without_text += not answers
            found.sizes += [image_files.size(image) for image in sample["images"]]
            example = inputs.encode(sample, sample_key)
    except BadSample as error:
        found.bad[str(error)] += 1
        return
    found.holding["text"] += bool(answers)
    found.of_textless |= {} if answers else dict.fromkeys(sample["fields"])
    found.empty += bool(answers) and not any(answer.strip() for answer in answers)
    found.cut += bool(sum(collated(inputs, [example]).get("cut", ())))
    needs = dict.fromkeys([("images",), ("frames",), *map(tuple, found.limits.needs.values())])
    found.holding.update(_either(keys) for keys in needs if any(sample.get(name) for name in keys))
    if not sample.get("images"):
        found.fields |= dict.fromkeys(name for name in sample["fields"] if name not in (*TEXTS, "label"))


def _compare(found: Sequence[SourceLook], held_out: Sequence[Source], least: int) -> None:
    """Compare training samples with held-out ones, `least` or more of each source; sources not stored are compared as they are read."""
    theirs = HeldOutContent(sum(map(len, held_out)))
    for source in held_out:
        theirs.add(contents(source, _spread(len(source), overlap.count(source, len(held_out), least))))
    for one in found:
        one.overlap = Overlap(theirs)
        if one.source.stored:
            for content in contents(one.source, _spread(len(one.source), overlap.count(one.source, len(found), least))):
                one.overlap.add(content)


def _spread(length: int, count: int) -> list[int]:
    """Return up to `count` indices, evenly from the first to the last."""
    return sorted({i * (length - 1) // max(1, count - 1) for i in range(count)}) if length else []


def _answers(sample: Sample) -> list[str]:
    """Return the texts of the assistant in all conversations of a sample."""
    conversations = [annotation["messages"] for annotation in sample.get("annotations", ())] or [sample["messages"]]
    return [turn["content"] for conversation in conversations for turn in conversation if turn["role"] == "assistant"]
