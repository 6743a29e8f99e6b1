"""A look at some samples of each training source (data set) before the first step: what is bad, without text, of which size, or held out.

Samples are read and encoded as in training, evenly over each source. Not a check of all data: what turns up later is in quarantine.jsonl.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import xxhash

from plait.assembly.data import open_data
from plait.config.schema import RunConfig
from plait.data import image_files
from plait.data.loading.micro_batch import Inputs
from plait.data.sources.contract import Sample, Source
from plait.engine.parallel.distributed import Ranks
from plait.errors import BadSample, PlaitError, sample_errors
from plait.keys import key

log = logging.getLogger(__name__)

_SAMPLES, _ALL_SAMPLES = 32, 512
"""How many samples of a source, and of all of them together, are looked at."""
_REASONS_SHOWN = 2


@dataclass
class SourceLook:
    """What a look at one source found, as counts that `line` reports."""

    source: Source
    read: int = 0
    """Samples looked at, bad ones included."""
    bad: Counter[str] = field(default_factory=Counter)
    """How many samples cannot be used, by reason."""
    without_text: int = 0
    """Usable samples without any answer or caption."""
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """Width and height of each image."""
    held_out: int = 0
    """Samples whose images and text are those of a held-out sample that was looked at too."""

    def line(self) -> str:
        """Return what was found as one line, such as "scenes train: 32 looked at, pictures of 32x32 px"."""
        parts = [f"{self.read} looked at"]
        if self.bad:
            reasons = "; ".join(f"{count} x {reason}" for reason, count in self.bad.most_common(_REASONS_SHOWN))
            parts.append(f"{self.bad.total()} bad ({reasons}{'; ...' if len(self.bad) > _REASONS_SHOWN else ''})")
        if self.without_text:
            parts.append(f"{self.without_text} without text")
        if self.sizes:
            least, most = (pick(self.sizes, key=lambda size: size[0] * size[1]) for pick in (min, max))
            span = "x".join(map(str, least)) + ("" if least == most else f" to {'x'.join(map(str, most))}")
            parts.append(f"pictures of {span} px")
        if self.held_out:
            parts.append(f"warning: {self.held_out} of them are held-out samples too")
        parts += [f"left out: {count} of {reason}" for reason, count in self.source.left_out.items()]
        return f"{self.source.name}: {', '.join(parts)}"


def compare_ranks(fingerprints: Mapping[str, str], ranks: Ranks) -> None:
    """Raise PlaitError, on all ranks, where a source of `fingerprints` ({name: hash of its content}) has another hash on some rank."""
    by_rank = ranks.gather(dict(fingerprints))
    for name in fingerprints:
        differing = [str(rank) for rank, theirs in enumerate(by_rank) if theirs.get(name) != by_rank[0].get(name)]
        if differing:
            raise PlaitError(
                f"data source {name} is not the same on every rank: rank {', '.join(differing)} has other data than rank 0; "
                "every machine needs the same files"
            )


def report(config: RunConfig, sources: Sequence[Source], inputs: Inputs, ranks: Ranks, seed: int) -> None:
    """Look at the training sources on rank 0 and log a line for each. Raises PlaitError, on all ranks, where `look` does."""
    error = None
    if ranks.first:
        try:
            for found in look(sources, inputs, open_data(config, config.data.validation, "validation"), seed):
                log.info(f"  {found.line()}")
        except PlaitError as raised:
            error = str(raised)
    error = ranks.agree(error)
    if error is not None:
        raise PlaitError(error)


def look(sources: Sequence[Source], inputs: Inputs, held_out: Sequence[Source], seed: int) -> list[SourceLook]:
    """Look at samples of each source. `inputs` encodes them as in training; `held_out`: the sources of `data.validation`.

    Raises PlaitError for a source of which no sample looked at can be used, and for one whose pictures have no text though its entry does
    not say `allow_blank`.
    """
    count = max(1, min(_SAMPLES, _ALL_SAMPLES // max(1, len(sources))))
    known = {_content(sample) for source in held_out for sample in _readable(source, count)}
    found = [_look_at(source, inputs, count, known, seed) for source in sources]
    for one in found:
        usable = one.read - one.bad.total()
        if not usable:
            reason = one.bad.most_common(1)[0][0]
            raise PlaitError(f"{one.source.name}: none of the {one.read} samples looked at can be used: {reason}")
        if one.sizes and one.without_text == usable and not one.source.allow_blank:
            raise PlaitError(
                f"{one.source.name}: none of the {usable} samples looked at has a caption or an answer; name its field with `columns` or "
                "`template`, or say `allow_blank: true` to train on pictures alone"
            )
    return found


def _look_at(source: Source, inputs: Inputs, count: int, held_out: set[str], seed: int) -> SourceLook:
    found = SourceLook(source)
    for index in _spread(len(source), count):
        found.read += 1
        sample_key = key(seed, "look", index)
        try:
            with sample_errors:
                sample = source.draw(index, sample_key)
                inputs.encode(sample, sample_key)
                sizes = [image_files.size(image) for image in sample["images"]]
        except BadSample as error:
            found.bad[str(error)] += 1
            continue
        found.sizes += sizes
        found.without_text += not _has_text(sample)
        found.held_out += _content(sample) in held_out
    return found


def _readable(source: Source, count: int) -> list[Sample]:
    samples = []
    for index in _spread(len(source), count):
        try:
            with sample_errors:
                samples.append(source[index])
        except BadSample:
            continue
    return samples


def _spread(length: int, count: int) -> list[int]:
    """Return up to `count` indices, evenly from the first to the last."""
    return sorted({i * (length - 1) // max(1, count - 1) for i in range(count)}) if length else []


def _has_text(sample: Sample) -> bool:
    conversations = [annotation["messages"] for annotation in sample.get("annotations", ())] or [sample["messages"]]
    return any(turn["role"] == "assistant" and turn["content"].strip() for conversation in conversations for turn in conversation)


def _content(sample: Sample) -> str:
    """Return a hash of a sample's images, arrays and text."""
    digest = xxhash.xxh3_128(repr([(turn["role"], turn["content"]) for turn in sample["messages"]]).encode("utf-8", "surrogatepass"))
    for image in sample["images"]:
        digest.update(image)
    for name, array in sorted(sample.get("arrays", {}).items()):
        digest.update(name.encode() + array.tobytes())
    return digest.hexdigest()
