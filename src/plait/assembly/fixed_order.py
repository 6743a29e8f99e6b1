"""Chosen samples in batches of a fixed order, where training has a random one: for evaluations and probes."""

from collections.abc import Sequence
from dataclasses import dataclass

from plait.data.order import SampleId
from plait.data.sources.bucketing import batches_of
from plait.data.sources.contract import Source


@dataclass(frozen=True)
class FixedOrder:
    """Chosen samples in fixed batches, in place of the random order of training. A batch is of one bucket (samples of one shape)."""

    sizes: tuple[int, ...]
    batches: tuple[tuple[SampleId, ...], ...]

    @classmethod
    def of(cls, chosen: Sequence[SampleId], opened: Sequence[Source], batch: int) -> "FixedOrder":
        """Cut the `chosen` samples of the sources `opened` into batches of at most `batch`, in their order."""
        batches = tuple(tuple(ids) for ids in batches_of(chosen, opened, batch))
        return cls(tuple(len(source) for source in opened), batches)

    def ids(self, step: int) -> list[SampleId]:
        """Return the ids of the samples of batch number `step` (from 0), as the loader asks for them."""
        return list(self.batches[step])

    @property
    def steps(self) -> int:
        """Return how many batches there are; the last of a bucket may be smaller."""
        return len(self.batches)
