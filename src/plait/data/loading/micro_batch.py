"""From sample ids to a micro-batch: read, encode, replace what is bad, collate. The result is the same in any thread, process and layout.

Who does this work is in workers.py, and when in loader.py. A bad sample is replaced by another of its bucket, chosen by key, and listed.
Any other error is a defect of plait, of a family or of a disk, and propagates with the sample's name.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch

from plait.data.order import Ordering, SampleId, rank_slices
from plait.data.sources.bucketing import bucket_of
from plait.data.sources.contract import Sample, Source
from plait.errors import BadSample, PlaitError
from plait.keys import key

_ATTEMPTS = 50  # if half of a source were bad, this many bad replacements in a row would come once in 10^15 samples


class Inputs(Protocol):
    """A family's side of the loader."""

    def encode(self, sample: Sample, key: int, /) -> Any:
        """Return the example of a sample, with randomness from the key alone. Raises BadSample for one that it cannot use."""

    def collate(self, examples: list[Any], /) -> dict[str, Any]:
        """Return the batch of some examples."""


class Bad(NamedTuple):
    """One line of the quarantine list."""

    id: SampleId
    name: str
    reason: str
    replaced_by: SampleId


@dataclass
class MicroBatch:
    """The input of one forward pass. `ids` are the samples in it, replacements included; a padding micro-batch contributes nothing."""

    batch: dict[str, Any]
    ids: list[SampleId]
    padding: bool
    bad: list[Bad] = field(default_factory=list)


class Example(NamedTuple):
    """One encoded sample, its id, and the bad samples that it replaces."""

    value: Any
    id: SampleId
    bad: list[Bad]


@dataclass(frozen=True)
class MicroBatchBuilder:
    """Builds any micro-batch of this rank. It pickles, so that it can be sent to another process."""

    sources: Sequence[Source]
    order: Ordering
    inputs: Inputs
    seed: int
    rank: int
    world_size: int
    micro_batch: int | None
    pin: bool = False

    def slices(self, step: int) -> list[tuple[list[SampleId], bool]]:
        """Return this rank's micro-batches of `step`, as (ids, padding)."""
        return rank_slices(self.order.ids(step), self.rank, self.world_size, self.micro_batch)

    def encode(self, wanted: SampleId) -> Example:
        """Encode `wanted`, or the first of its replacements that is good. Raises PlaitError when all of them are bad."""
        bad: list[tuple[SampleId, str, str]] = []
        for attempt in range(_ATTEMPTS):
            chosen = wanted if attempt == 0 else self._replacement(wanted, attempt)
            value, name, reason = self._try_encode(chosen)
            if reason is None:
                return Example(value, chosen, [Bad(*failure, replaced_by=chosen) for failure in bad])
            bad.append((chosen, name, reason))
        name = self.sources[wanted.source].name
        raise PlaitError(f"{name}: sample {bad[0][1]} and {_ATTEMPTS - 1} replacements in a row are bad; the first: {bad[0][2]}")

    def collate(self, examples: Sequence[Example], padding: bool) -> MicroBatch:
        """Collate examples. A padding micro-batch lists nothing as bad: another rank owns the sample that it repeats."""
        ids = [example.id for example in examples]
        try:
            batch = self.inputs.collate([example.value for example in examples])
        except Exception as error:
            error.add_note(f"while collating the samples {[tuple(i) for i in ids]}")
            raise
        bad = [] if padding else [row for example in examples for row in example.bad]
        return MicroBatch(pinned(batch) if self.pin else batch, ids, padding, bad)

    def build(self, ids: Sequence[SampleId], padding: bool) -> MicroBatch:
        """Encode and collate the samples of one micro-batch."""
        return self.collate([self.encode(identity) for identity in ids], padding)

    def _replacement(self, wanted: SampleId, attempt: int) -> SampleId:
        candidates = bucket_of(self.sources[wanted.source], wanted.index)
        chosen = candidates[key(self.seed, "replace", wanted.source, wanted.index, wanted.epoch, attempt) % len(candidates)]
        return wanted._replace(index=chosen)

    def _try_encode(self, chosen: SampleId) -> tuple[Any, str, str | None]:
        """Return (example, name, why it is bad or None)."""
        source = self.sources[chosen.source]
        name = f"{source.name}[{chosen.index}]"
        sample_key = key(self.seed, "sample", *chosen)
        try:
            sample = source.draw(chosen.index, sample_key)
            name = sample["id"]
            return self.inputs.encode(sample, sample_key), name, None
        except BadSample as error:
            return None, name, str(error)
        except PlaitError as error:
            raise PlaitError(f"sample {name} of {source.name}: {error}") from error
        except Exception as error:
            error.add_note(f"while preparing sample {name} of {source.name} (index {chosen.index}, epoch {chosen.epoch})")
            raise


def pinned(value: Any) -> Any:
    """Copy every tensor in a structure to page-locked memory, from which copies to the GPU overlap with computation."""
    if isinstance(value, torch.Tensor):
        return value.pin_memory()
    if isinstance(value, dict):
        return {name: pinned(item) for name, item in value.items()}
    return type(value)(map(pinned, value)) if type(value) in (list, tuple) else value
