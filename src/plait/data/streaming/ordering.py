"""The order of samples where some sources are streamed.

Mixtures, epochs and batches are those of any order (data/order.py), or of any in buckets (data/buckets.py).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from plait.data.buckets import BucketOrder
from plait.data.order import BatchChanges, Order
from plait.data.streaming.block_shuffle import Stream


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
        self.streams = dict(streams)

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

    def mixed_batches(self, place: np.ndarray, count: int, source: int, epoch: int) -> np.ndarray:
        """Return which of a source's batches come at these places: those of a streamed one in their own sequence."""
        return place if source in self.streams else super().mixed_batches(place, count, source, epoch)

    def shuffled(self, offset: np.ndarray, source: int, group: int, epoch: int) -> np.ndarray:
        """Return the samples of a bucket at these places of its epoch."""
        if (stream := self.streams.get(source)) is not None:
            return stream.permute(offset, (self.seed, "order", source, epoch))
        return super().shuffled(offset, source, group, epoch)
