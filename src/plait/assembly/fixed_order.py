"""An order of chosen samples in fixed batches, for evaluation, in place of the random order of training."""

from collections.abc import Sequence
from dataclasses import dataclass

from plait.data.loading.bucketing import batches_of
from plait.data.order import SampleId
from plait.data.sources.contract import Source


@dataclass(frozen=True)
class FixedOrder:
    """Fixed batches of samples, each of one bucket (samples of one shape). `sizes`: samples per source; `batches`: the ids in each."""

    sizes: tuple[int, ...]
    batches: tuple[tuple[SampleId, ...], ...]

    @classmethod
    def of(cls, chosen: Sequence[SampleId], opened: Sequence[Source], batch: int) -> "FixedOrder":
        """Group the samples `chosen`, ids of samples in the sources `opened`, into batches of at most `batch` samples, in their order."""
        batches = tuple(tuple(ids) for ids in batches_of(chosen, opened, batch))
        return cls(tuple(len(source) for source in opened), batches)

    def ids(self, step: int) -> list[SampleId]:
        """Return the sample ids of batch number `step` (from 0), for the loader."""
        return list(self.batches[step])

    @property
    def steps(self) -> int:
        """The number of batches; the last one of a bucket may be smaller."""
        return len(self.batches)
