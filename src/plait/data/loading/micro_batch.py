"""Sample ids to a micro-batch: read, encode, replace what is bad, collate. The same result in any thread, process and layout.

A bad sample gives way to another of its source, chosen by key, and both are listed. Any other error is a defect of plait, of a family or
of a disk, and travels on with the sample's name.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch

from plait.data.buckets import bucket_of
from plait.data.order import Ordering, SampleId, shares
from plait.data.sources.open import Source
from plait.errors import BadSample, PlaitError
from plait.keys import key

_ATTEMPTS = 50  # if half of a source were bad, this many bad replacements in a row would come once in 10^15 samples


class Inputs(Protocol):
    """A family's side of the loader."""

    def encode(self, sample: dict[str, Any], key: int, /) -> Any: ...
    def collate(self, examples: list[Any], /) -> dict[str, Any]: ...


class Bad(NamedTuple):
    """One line of the quarantine list."""

    id: SampleId
    name: str
    reason: str
    replaced_by: SampleId


@dataclass
class MicroBatch:
    """What one forward pass takes. `ids` are the samples really inside, replacements included; a void one contributes nothing."""

    batch: dict[str, Any]
    ids: list[SampleId]
    padding: bool
    bad: list[Bad] = field(default_factory=list)


class Example(NamedTuple):
    """One encoded sample, which sample it is, and what it stands in for."""

    value: Any
    id: SampleId
    bad: list[Bad]


@dataclass(frozen=True)
class Preparation:
    """Everything needed to make any micro-batch of this rank. Can be sent to another process."""

    sources: Sequence[Source]
    order: Ordering
    inputs: Inputs
    seed: int
    rank: int
    world_size: int
    micro_batch: int | None
    pin: bool = False

    def parts(self, step: int) -> list[tuple[list[SampleId], bool]]:
        """This rank's micro-batches of `step`, as (ids, void)."""
        return shares(self.order.ids(step), self.rank, self.world_size, self.micro_batch)

    def example(self, wanted: SampleId) -> Example:
        """Encode `wanted`, or the first of its replacements that is good."""
        bad: list[tuple[SampleId, str, str]] = []
        for attempt in range(_ATTEMPTS):
            chosen = wanted if attempt == 0 else self._replacement(wanted, attempt)
            value, name, reason = self._encode(chosen)
            if reason is None:
                return Example(value, chosen, [Bad(*lost, replaced_by=chosen) for lost in bad])
            bad.append((chosen, name, reason))
        name = self.sources[wanted.source].name
        raise PlaitError(f"{name}: sample {bad[0][1]} and {_ATTEMPTS - 1} replacements in a row are bad; the first: {bad[0][2]}")

    def assemble(self, examples: Sequence[Example], padding: bool) -> MicroBatch:
        """Collate. A void micro-batch lists nothing as bad: another rank owns the sample it repeats."""
        ids = [example.id for example in examples]
        try:
            batch = self.inputs.collate([example.value for example in examples])
        except Exception as error:
            error.add_note(f"while collating the samples {[tuple(i) for i in ids]}")
            raise
        return MicroBatch(pinned(batch) if self.pin else batch, ids, padding, [] if padding else [b for e in examples for b in e.bad])

    def micro(self, step: int, number: int) -> MicroBatch:
        """Micro-batch `number` (from 0) of `step`, start to end."""
        return self.prepared(*self.parts(step)[number])

    def prepared(self, ids: Sequence[SampleId], padding: bool) -> MicroBatch:
        """The micro-batch of these samples, start to end."""
        return self.assemble([self.example(i) for i in ids], padding)

    def _replacement(self, wanted: SampleId, attempt: int) -> SampleId:
        alike = bucket_of(self.sources[wanted.source], wanted.index)
        chosen = alike[key(self.seed, "replace", wanted.source, wanted.index, wanted.epoch, attempt) % len(alike)]
        return wanted._replace(index=chosen)

    def _encode(self, chosen: SampleId) -> tuple[Any, str, str | None]:
        """(example, name, why it is bad or None)."""
        source = self.sources[chosen.source]
        name = f"{source.name}[{chosen.index}]"
        drawn = key(self.seed, "sample", *chosen)
        try:
            draw = getattr(source, "draw", None)  # not isinstance of a protocol, which takes 20 us a sample
            sample = source[chosen.index] if draw is None else draw(chosen.index, drawn)
            name = sample["id"]
            return self.inputs.encode(sample, drawn), name, None
        except BadSample as error:
            return None, name, str(error)
        except PlaitError as error:
            raise PlaitError(f"sample {name} of {source.name}: {error}") from error
        except Exception as error:
            error.add_note(f"while preparing sample {name} of {source.name} (index {chosen.index}, epoch {chosen.epoch})")
            raise


def pinned(value: Any) -> Any:
    """A copy with every tensor in page-locked memory, from which copies to the GPU run beside the computation."""
    if isinstance(value, torch.Tensor):
        return value.pin_memory()
    if isinstance(value, dict):
        return {name: pinned(item) for name, item in value.items()}
    return type(value)(map(pinned, value)) if type(value) in (list, tuple) else value
