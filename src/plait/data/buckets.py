"""The order of data in buckets: every global batch holds samples of one bucket, and which one is a pure function of (seed, step).

A source is one data set of the training mixture; a bucket is its samples of one picture size. A bucket of n samples is walked for ever,
each of its epochs in a permutation of its own, and sliced into batches of exactly `global_batch`; nothing is padded and nothing is
dropped. The samples left over at the end of a bucket's epoch (fewer than a batch) begin its first batch of the next epoch. So every batch
has one shape, and every sample comes exactly once in each epoch of its bucket.

By the end of epoch e a bucket of n samples has completed floor((e + 1) n / batch) batches: the batches of epoch e are those in between,
for all buckets together, in an order permuted for that epoch. Both counts are closed forms, so any step is found without replaying others,
in memory that does not grow with the data, and the buckets' shares follow their sample counts exactly. In a mixture, whole batches are
apportioned to the sources by weight.
"""

import math
from collections.abc import Sequence

import numpy as np

from plait.data.order import Order, SampleId, block_counts, interleave, permute
from plait.errors import PlaitError

_STEPS_REMEMBERED = 64  # workers look up the ids of a step once per micro-batch


class BucketOrder:
    """Choose the samples of every step such that a global batch never mixes buckets.

    `groups[source]`: the sizes of its buckets; its samples are numbered bucket after bucket. `weights[source]`: its share of the batches.
    Raises PlaitError for an empty bucket or source, and for a weight that is not positive.
    """

    def __init__(self, groups: Sequence[Sequence[int]], weights: Sequence[float], seed: int, global_batch: int) -> None:
        assert len(groups) == len(weights)
        assert global_batch >= 1
        for source, lengths in enumerate(groups):
            for number, length in enumerate(lengths):
                if length < 1:
                    raise PlaitError(f"bucket {number} of source {source} is empty; remove it or mend its path")
        self.groups = tuple(tuple(int(n) for n in lengths) for lengths in groups)
        plain = Order([sum(lengths) for lengths in groups], weights, seed, global_batch)  # the same checks, sizes and lengths of epochs
        self.sizes, self.seed, self.global_batch, self.epoch, self.steps = plain.sizes, seed, global_batch, plain.epoch, plain.steps
        total = math.fsum(weights)
        self.counts = block_counts([w / total for w in weights], 1)  # batches per source in one block of the mixture
        self._slot_source, self._slot_turn = interleave(self.counts)
        self._memo: dict[int, list[SampleId]] = {}

    def ids(self, step: int) -> list[SampleId]:
        """Return the `global_batch` samples of `step` (from 0), all of one bucket of one source."""
        ids = self._memo.get(step)
        if ids is None:
            ids = self._draw(step)
            kept = dict([*self._memo.items()][1 - _STEPS_REMEMBERED :])
            self._memo = kept | {step: ids}  # replaced as a whole: several threads may call this
        return ids

    def bucket(self, step: int) -> tuple[int, int]:
        """Return (source, bucket) that `step` draws from: positions in `groups` and in `groups[source]`."""
        source, group, _ = self._batch(step)
        return source, group

    def carried(self, source: int, epoch: int) -> list[int]:
        """Return, for each bucket, how many samples are left over when epoch number `epoch` (from 0) ends, and begin its next one."""
        return [(epoch + 1) * n % self.global_batch for n in self.groups[source]]

    def _batch(self, step: int) -> tuple[int, int, int]:
        """Return (source, bucket, number of the bucket's batch) of a step."""
        block, slot = divmod(step, len(self._slot_source))
        source = int(self._slot_source[slot])
        turn = block * self.counts[source] + int(self._slot_turn[slot])  # batches drawn from this source before
        epoch = self._epoch_of(self.groups[source], turn)
        first = self._completed(self.groups[source], epoch)
        after = self._completed(self.groups[source], epoch + 1)
        number = permute(turn - sum(first), sum(after) - sum(first), self.seed, "buckets", source, epoch)
        for group, (begin, end) in enumerate(zip(first, after, strict=True)):
            if number < end - begin:
                return source, group, begin + int(number)
            number -= end - begin
        raise AssertionError("the batches of an epoch are those of its buckets")

    def _completed(self, lengths: Sequence[int], epoch: int) -> list[int]:
        """Return how many batches each bucket has completed when `epoch` begins."""
        return [epoch * n // self.global_batch for n in lengths]

    def _epoch_of(self, lengths: Sequence[int], turn: int) -> int:
        """Return the epoch of the source's batch `turn`: the last one that begins with at most `turn` batches completed.

        With k buckets, epoch * total / batch - k < sum(completed) <= epoch * total / batch bounds it; bisection finds it.
        """
        total = sum(lengths)
        low = turn * self.global_batch // total
        high = (turn + len(lengths)) * self.global_batch // total + 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if sum(self._completed(lengths, middle)) <= turn else (low, middle - 1)
        return low

    def _draw(self, step: int) -> list[SampleId]:
        source, group, batch = self._batch(step)
        n = self.groups[source][group]
        walk = batch * self.global_batch + np.arange(self.global_batch, dtype=np.int64)
        epoch, offset = np.divmod(walk, n)
        index = np.empty_like(offset)
        for e in range(int(epoch[0]), int(epoch[-1]) + 1):
            selected = epoch == e
            index[selected] = permute(offset[selected], n, self.seed, "order", source, group, e)
        index += sum(self.groups[source][:group])
        return [SampleId(source, i, e) for i, e in zip(index.tolist(), epoch.tolist(), strict=True)]
