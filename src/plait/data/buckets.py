"""The order of data in buckets: every global batch holds samples of one bucket, and which one is a pure function of (seed, step).

A bucket of n samples is walked for ever, each of its epochs in a permutation of its own, and cut into batches of exactly `global_batch`;
nothing is padded and nothing is dropped. What is left over at the end of a bucket's epoch (fewer samples than a batch) is carried: it opens
the bucket's first batch of the next epoch, which the next epoch's walk completes. So every batch has one shape, and every sample comes
exactly once in each epoch of its bucket.

By the end of epoch e a bucket of n samples has completed floor((e + 1) n / batch) batches: the batches of epoch e are those in between, for
all buckets together, in an order permuted for that epoch. Both counts are closed forms, so any step is found without replaying others, in
memory that does not grow with the data, and the buckets' shares follow their sample counts exactly.
In a mixture, whole batches are apportioned to the sources by weight.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from plait.data.order import Order, SampleId, block_counts, interleave, permute
from plait.errors import PlaitError

_STEPS_REMEMBERED = 64  # threads ask for the ids of a step once per micro-batch


class BucketOrder:
    """The global schedule over `groups[source]`, the lengths of consecutive index ranges that never share a batch. See Order."""

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
        """The `global_batch` samples of `step` (from 0), all of one bucket of one source."""
        found = self._memo.get(step)
        if found is None:
            found = self._draw(step)
            self._memo = dict([*self._memo.items()][1 - _STEPS_REMEMBERED :]) | {step: found}  # replaced whole: threads may ask at once
        return found

    def bucket(self, step: int) -> tuple[int, int]:
        """(source, number of its bucket) that `step` draws from."""
        source, group, _ = self._batch(step)
        return source, group

    def carried(self, source: int, epoch: int) -> list[int]:
        """Samples of each bucket that are left over when its epoch `epoch` ends, and open its next one."""
        return [(epoch + 1) * n % self.global_batch for n in self.groups[source]]

    def _batch(self, step: int) -> tuple[int, int, int]:
        """(source, bucket, which of the bucket's batches)."""
        block, slot = divmod(step, len(self._slot_source))
        source = int(self._slot_source[slot])
        turn = block * self.counts[source] + int(self._slot_turn[slot])  # batches that this source gave before
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
        """Batches that each bucket has completed when `epoch` begins."""
        return [epoch * n // self.global_batch for n in lengths]

    def _epoch_of(self, lengths: Sequence[int], turn: int) -> int:
        """The epoch that the source's batch `turn` belongs to: the last one whose beginning has at most `turn` batches completed.

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
        epoch, place = np.divmod(walk, n)
        index = np.empty_like(place)
        for e in range(int(epoch[0]), int(epoch[-1]) + 1):
            mine = epoch == e
            index[mine] = permute(place[mine], n, self.seed, "order", source, group, e)
        index += sum(self.groups[source][:group])
        return [SampleId(source, i, e) for i, e in zip(index.tolist(), epoch.tolist(), strict=True)]


def groups_of(source: Any) -> tuple[int, ...]:
    """The lengths of a source's buckets; a source that has none is one bucket."""
    return tuple(getattr(source, "groups", None) or (len(source),))


def bucket_of(source: Any, index: int) -> range:
    """The indices that share a bucket with `index`."""
    begin = 0
    for length in groups_of(source):
        if index < begin + length:
            return range(begin, begin + length)
        begin += length
    raise IndexError(f"sample {index} of {begin}")


def contents_of(sources: Sequence[Any], global_batch: int) -> list[tuple[str, str]]:
    """Every bucket and what it holds, and all together; nothing where no source has buckets of its own. None is dropped unsaid."""
    rows = [row for source in sources if getattr(source, "groups", None) for row in source.table(global_batch)]
    if not rows:
        return []
    total = {name: sum(row[name] for row in rows) for name in ("samples", "tokens", "batches", "left_over")}
    return [
        (
            f"bucket {row['bucket']}",
            f"{row['samples']:,} samples, {row['tokens']:,} text tokens, {row['batches']:,} batches of {global_batch} an epoch, "
            f"{row['left_over']:,} carried over",
        )
        for row in [*rows, {"bucket": "all", **total}]
    ]


def order_of(sources: Sequence[Any], weights: Sequence[float], seed: int, global_batch: int) -> Order | BucketOrder:
    """The order for `sources`: in buckets when any of them has several, or when two of them have buckets of their own."""
    groups = [groups_of(source) for source in sources]
    own = [source for source in sources if getattr(source, "groups", None)]
    if any(len(lengths) > 1 for lengths in groups) or (own and len(sources) > 1):
        return BucketOrder(groups, weights, seed, global_batch)
    return Order([len(source) for source in sources], weights, seed, global_batch)


def batches_of(chosen: Sequence[SampleId], sources: Sequence[Any], batch: int) -> list[list[SampleId]]:
    """Cut a fixed list of held-out samples into batches of at most `batch`, each of one bucket, in the order of their first samples.

    Without buckets this cuts the list as it stands.
    """
    bounds = [np.cumsum(groups_of(source)) for source in sources]
    bucketed = any(getattr(source, "groups", None) for source in sources)
    waiting: dict[tuple[int, int], list[SampleId]] = {}
    for identity in chosen:
        home = (identity.source, int(np.searchsorted(bounds[identity.source], identity.index, side="right"))) if bucketed else (0, 0)
        waiting.setdefault(home, []).append(identity)
    return [ids[start : start + batch] for ids in waiting.values() for start in range(0, len(ids), batch)]
