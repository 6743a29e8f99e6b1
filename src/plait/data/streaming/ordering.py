"""The order of samples where some sources are streamed.

Mixtures, epochs and batches are those of any order (data/order.py), or of any in buckets (data/buckets.py).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from plait.data.buckets import BucketOrder
from plait.data.order import BatchChanges, Order, SampleId
from plait.data.streaming.block_shuffle import Stream


def in_lanes(ids: list[SampleId], streams: Mapping[int, Stream], seed: int) -> list[SampleId]:
    """Return a step's samples with those of a streamed source in the sequence of its lanes.

    They keep to the slots that the source has. So ranks, which take consecutive parts of a step, read the lanes of their machine. A source
    of one lane is left as it is.
    """
    for source, stream in streams.items():
        slots = [slot for slot, one in enumerate(ids) if one.source == source] if stream.lanes > 1 else []
        own = [ids[slot] for slot in slots]
        placed = []
        for epoch in sorted({one.epoch for one in own}):
            of_epoch = [one for one in own if one.epoch == epoch]
            blocks = stream.block_numbers([one.index for one in of_epoch], (seed, "order", source, epoch))
            placed += [of_epoch[number] for number in np.argsort(blocks, kind="stable")]
        for slot, one in zip(slots, placed, strict=True):
            ids[slot] = one
    return ids


def arrangement(streams: Mapping[int, Stream]) -> str:
    """Return what tells an order with these streams from others of the same sizes."""
    return f"streams {[(source, stream.block, stream.lanes) for source, stream in sorted(streams.items())]}"


class StreamedOrder(Order):
    """An order in which the sources `streams`, by number, go through each epoch shard by shard. The rest as of `Order`."""

    def __init__(
        self,
        sizes: Sequence[int],
        sampling_weights: Sequence[float],
        seed: int,
        global_batch: int,
        changes: BatchChanges,
        streams: Mapping[int, Stream],
    ) -> None:
        super().__init__(sizes, sampling_weights, seed, global_batch, changes)
        self.streams, self.arranged = dict(streams), arrangement(streams)

    def ids(self, step: int) -> list[SampleId]:
        """Return the global batch of `step` (from 0), the samples of each lane of a stream next to each other."""
        return in_lanes(super().ids(step), self.streams, self.seed)

    def shuffled(self, offset: np.ndarray, source: int, epoch: int) -> np.ndarray:
        """Return the samples of a source at these places of its epoch."""
        if (stream := self.streams.get(source)) is not None:
            return stream.permute(offset, (self.seed, "order", source, epoch))
        return super().shuffled(offset, source, epoch)


class StreamedBucketOrder(BucketOrder):
    """An order in buckets where the sources `streams`, by number, each of one bucket, go through each epoch shard by shard."""

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        sampling_weights: Sequence[float],
        seed: int,
        global_batch: int,
        changes: BatchChanges,
        streams: Mapping[int, Stream],
    ) -> None:
        assert all(len(groups[source]) == 1 for source in streams)
        self.streams = dict(streams)
        super().__init__(groups, sampling_weights, seed, global_batch, changes)
        self.arranged = arrangement(streams)

    def ids(self, step: int) -> list[SampleId]:
        """Return the global batch of `step` (from 0), the samples of each lane of a stream next to each other."""
        return in_lanes(list(super().ids(step)), self.streams, self.seed)

    def mixed_batches(self, place: np.ndarray, count: int, source: int, epoch: int) -> np.ndarray:
        """Return which of a source's batches come at these places: those of a streamed one in their own sequence."""
        return place if source in self.streams else super().mixed_batches(place, count, source, epoch)

    def shuffled(self, offset: np.ndarray, source: int, group: int, epoch: int) -> np.ndarray:
        """Return the samples of a bucket at these places of its epoch."""
        if (stream := self.streams.get(source)) is not None:
            return stream.permute(offset, (self.seed, "order", source, epoch))
        return super().shuffled(offset, source, group, epoch)
