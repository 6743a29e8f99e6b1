"""Build a micro-batch of sample ids: read, encode, replace bad samples, collate. The result is the same in any thread, process and layout.

workers.py has who does this work, loader.py when. A bad sample is replaced by another of its bucket (samples of one shape), chosen by a
hash of seed and id, and listed, be the fault in its file, its text, or the code that prepares it.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from plait.config.secrets import masked
from plait.data.loading.replacing import replacement
from plait.data.order import Ordering, SampleId, Slices, Slicing, rank_slices
from plait.data.sources.contract import Sample, Source, read
from plait.errors import BadSample, PlaitError, bad_sample
from plait.keys import key, stem

_ATTEMPTS = 50  # if half of a source were bad, this many bad replacements in a row would come once in 10^15 samples


class Inputs(Protocol):
    """What a model family (kind of model) supplies: how a sample becomes a training example, and how examples become a batch."""

    def encode(self, sample: Sample, key: int, /) -> Any:
        """Return a sample's training example, in any form; randomness comes from the 64-bit `key` alone. Raises BadSample to refuse it."""

    def collate(self, examples: list[Any], /) -> dict[str, Any]:
        """Return the tensors of one forward pass by name, made of some examples as `encode` returned them."""


class Bad(NamedTuple):
    """A sample that could not be used, with its name, the reason, and the id of its replacement. Listed in the run's quarantine.jsonl."""

    id: SampleId
    name: str
    reason: str
    replaced_by: SampleId
    attempt: int
    """0 for a sample of the training order; n for the n-th replacement tried, which was bad too and does not count as a bad sample."""


@dataclass
class MicroBatch:
    """The input of one forward pass: `batch`, tensors of the samples `ids` by name. `bad`: samples replaced; `padding`: adds no loss."""

    batch: dict[str, Any]
    ids: list[SampleId]
    padding: bool
    bad: list[Bad] = field(default_factory=list)
    read_s: list[tuple[int, float]] = field(default_factory=list)  # source of each sample, seconds to read and encode it
    collate_s: float = 0.0


Example = tuple[Any, SampleId, list[Bad], float]
"""One sample's result of `Inputs.encode`, its id, the bad samples that it replaces, and the seconds that all took."""


@dataclass(frozen=True)
class MicroBatchBuilder:
    """Builds any micro-batch of this rank; picklable. `micro_batch`: samples in each (None: all).

    `sources`: what samples are read from; `order`: which ones each step takes. `inputs`: make tensors of them. `seed`: of all randomness.
    `slicing`: divides a step's samples over ranks and micro-batches.
    """

    sources: Sequence[Source]
    order: Ordering
    inputs: Inputs
    seed: int
    rank: int
    world_size: int
    micro_batch: int | None
    replace: bool = True
    """Whether another sample takes the place of a bad one. Without, it is left out; a micro-batch of bad ones alone is padding."""
    slicing: Slicing = rank_slices

    def slices(self, step: int) -> Slices:
        """Return this rank's micro-batches of `step` (from 0), as (sample ids, whether it is padding)."""
        return self.slicing(self.order.ids(step), self.rank, self.world_size, self.micro_batch)

    def encode(self, wanted: SampleId) -> Example:
        """Encode sample `wanted`, or the first usable replacement if it is bad. Raises PlaitError if 50 samples in a row are bad."""
        began, chosen = time.perf_counter(), wanted
        lost: list[tuple[SampleId, str, str]] = []
        while len(lost) < _ATTEMPTS:
            number, index, epoch = chosen
            source, name = self.sources[number], None
            sample_key = key(index, epoch, after=stem(self.seed, "sample", number))
            try:
                sample = read(source, index, sample_key)
                name = sample["id"]
                value = self.inputs.encode(sample, sample_key)
            except BaseException as error:
                fault = bad_sample(error)
                if not isinstance(fault, BadSample):
                    raise
                reason = masked(str(fault))  # here: a worker may have filled in variables that no other process knows of
                lost.append((chosen, name or fault.sample or f"{source.name}[{index}]", reason))
                chosen = replacement(self.sources, self.seed, wanted, len(lost))
            else:
                bad = [Bad(*row, chosen, i) for i, row in enumerate(lost)] if lost else []
                return value, chosen, bad, time.perf_counter() - began
        raise PlaitError(f"{source.name}: sample {lost[0][1]} and {_ATTEMPTS - 1} replacements in a row are bad; the first: {lost[0][2]}")

    def collate(self, examples: Sequence[Example], padding: bool) -> MicroBatch:
        """Collate examples to a micro-batch; raises what `Inputs.collate` raises. `padding`: they repeat a sample; no `bad` is listed."""
        bad = [] if padding else [row for _, _, replaced, _ in examples for row in replaced]
        if not self.replace:
            usable = [example for example in examples if not example[2]]
            examples, padding = usable or examples[:1], padding or not usable
        began, (values, ids, _, seconds) = time.perf_counter(), zip(*examples, strict=True)
        try:
            batch = collated(self.inputs, [*values])
        except Exception as error:
            error.add_note(f"while collating the samples {[tuple(i) for i in ids]}")
            raise
        read_s = [(identity.source, took) for identity, took in zip(ids, seconds, strict=True)]
        return MicroBatch(batch, [*ids], padding, bad, read_s, time.perf_counter() - began)

    def build(self, ids: Sequence[SampleId], padding: bool) -> MicroBatch:
        """Return the micro-batch of the samples `ids`, bad ones replaced. `padding`: only fills up a rank; adds no loss."""
        return self.collate([self.encode(identity) for identity in ids], padding)


def collated(inputs: Inputs, examples: list[Any]) -> dict[str, Any]:
    """Return `inputs.collate(examples)`, a batch's tensors by name. Raises PlaitError if it is no mapping, or a key is no text."""
    batch = inputs.collate(examples)
    if not (isinstance(batch, Mapping) and all(isinstance(name, str) for name in batch)):
        where = f"{type(inputs).__module__}.{type(inputs).__qualname__}.collate(examples)"
        raise PlaitError(f"{where} returned a {type(batch).__name__}: it is to return a dict, tensors by name")
    return dict(batch)
