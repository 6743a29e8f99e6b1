"""Order data in buckets: every global batch has samples of one bucket, which is a pure function of (seed, step).

A source is one data set of the training mixture; a bucket is its samples of one picture size. A bucket of n samples is traversed
forever, each epoch in a permutation of its own, and sliced into batches of exactly `global_batch`; nothing is padded and nothing is
dropped. The samples left over at the end of a bucket's epoch (fewer than a batch) begin its first batch of the next epoch. So every batch
has one shape, and every sample comes exactly once in each epoch of its bucket.

By the end of epoch e a bucket of n samples has completed floor((e + 1) n / batch) batches: the batches of epoch e are those in between,
for all buckets together, in an order permuted for that epoch. Both counts are closed forms, so any step is found without replaying others,
in memory that does not grow with the data, and the buckets' shares follow their sample counts exactly. In a mixture, whole batches are
apportioned to the sources by weight. After a change of the global batch size, each bucket continues with the samples of its epoch that
were not drawn yet.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from plait.data.order import BatchChanges, Order, SampleId, block_counts, interleave, permute, segment_of
from plait.errors import PlaitError

_STEPS_REMEMBERED = 64  # workers look up the ids of a step once per micro-batch


@dataclass(frozen=True)
class _Walk:
    """The positions of a bucket's samples in the order in which a segment takes them; a position counts on through all epochs."""

    taken: int = 0
    """Samples taken before the segment."""
    earlier: "_Walk | None" = None
    """The walk of the segment before, None in the first; with samples per batch, its batches not drawn, and the place where it ended."""
    batch: int = 1
    open: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    end: int = 0

    def after(self, batch: int, begin: int, end: int, drawn: np.ndarray) -> "_Walk":
        """Return the walk that follows this one, of whose batches all before `begin` were taken, and of those before `end` only `drawn`."""
        left = np.setdiff1d(np.arange(begin, end), drawn)
        return _Walk(self.taken + (begin + len(drawn)) * batch, self, batch, left, end * batch)

    def positions(self, places: np.ndarray) -> np.ndarray:
        """Return the positions at these places of the walk: what the walk before left out comes first."""
        if self.earlier is None:
            return places
        left_out = len(self.open) * self.batch
        early, inner = places < left_out, places - left_out + self.end
        inner[early] = self.open[places[early] // self.batch] * self.batch + places[early] % self.batch
        return self.earlier.positions(inner)


class BucketOrder:
    """Choose the samples of every step such that a global batch never mixes buckets.

    Nothing is dropped: samples of a bucket's epoch that do not fill a batch begin its first batch of the next epoch, so a batch of a bucket
    that is smaller holds samples of several epochs.
    `groups[source]`: the sizes of its buckets; its samples are numbered bucket after bucket. `sampling_weights[source]`: its share of the
    batches. `seed`: the run's, which all permutations depend on.
    `global_batch`: samples per step at first; `changes`: (step, samples per step from then on), in rising order.
    Raises PlaitError for an empty bucket or source, and for a weight that is not positive.
    """

    def __init__(
        self, groups: Sequence[Sequence[int]], sampling_weights: Sequence[float], seed: int, global_batch: int, changes: BatchChanges = ()
    ) -> None:
        assert len(groups) == len(sampling_weights)
        assert global_batch >= 1
        for source, lengths in enumerate(groups):
            for number, length in enumerate(lengths):
                if length < 1:
                    raise PlaitError(f"bucket {number} of source {source} is empty; remove it or mend its path")
        self.groups = tuple(tuple(int(n) for n in lengths) for lengths in groups)
        plain = Order(
            [sum(lengths) for lengths in groups], sampling_weights, seed, global_batch, changes
        )  # the same checks, sizes and lengths
        self.arranged = plain.arranged
        self.sizes, self.seed, self.segments, self.samples, self.steps = plain.sizes, seed, plain.segments, plain.samples, plain.steps
        total = math.fsum(sampling_weights)
        self.counts = block_counts([w / total for w in sampling_weights], 1)  # batches per source in one block of the mixture
        self._slot_source, self._slot_turn = interleave(self.counts)
        self._memo: dict[int, list[SampleId]] = {}
        self._walks = [[[_Walk() for _ in lengths] for lengths in groups]]
        """Per segment, source and bucket."""
        for number, part in enumerate(self.segments[1:]):
            self._walks.append(self._walks_after(number, part.step))

    def ids(self, step: int) -> list[SampleId]:
        """Return the global batch of `step` (from 0): a (source, index in it, epoch) per sample, all of one bucket."""
        ids = self._memo.get(step)
        if ids is None:
            ids = self._draw(step)
            kept = dict([*self._memo.items()][1 - _STEPS_REMEMBERED :])
            self._memo = kept | {step: ids}  # replaced as a whole: several threads may call this
        return ids

    def bucket(self, step: int) -> tuple[int, int]:
        """Return (source, bucket) that `step` draws from: indices into `groups` and `groups[source]`."""
        source, group, _ = self._batch(step)
        return source, group

    def _number(self, step: int) -> int:
        """Return the number of the segment that `step` is in."""
        return self.segments.index(segment_of(self.segments, step))

    def _batch(self, step: int) -> tuple[int, int, range]:
        """Return (source, bucket, range of places in the bucket's walk) of a step."""
        number = self._number(step)
        part = self.segments[number]
        block, slot = divmod(step - part.step, len(self._slot_source))
        source = int(self._slot_source[slot])
        turn = block * self.counts[source] + int(self._slot_turn[slot])  # batches drawn from this source before, in this segment
        epoch, first, after = self._epoch_of(number, source, turn)
        chosen = int(self.mixed_batches(np.array([turn - sum(first)]), sum(after) - sum(first), source, epoch)[0])
        for group, (begin, end) in enumerate(zip(first, after, strict=True)):
            if chosen < end - begin:
                return source, group, range((begin + chosen) * part.batch, (begin + chosen + 1) * part.batch)
            chosen -= end - begin
        raise AssertionError("the batches of an epoch are those of its buckets")

    def mixed_batches(self, place: np.ndarray, count: int, source: int, epoch: int) -> np.ndarray:
        """Return which of the `count` batches of a source's epoch, numbered bucket after bucket, come at these places."""
        return np.asarray(permute(place, count, self.seed, "buckets", source, epoch))

    def shuffled(self, offset: np.ndarray, source: int, group: int, epoch: int) -> np.ndarray:
        """Return the samples of a bucket at these places of its epoch."""
        return np.asarray(permute(offset, self.groups[source][group], self.seed, "order", source, group, epoch))

    def _completed(self, number: int, source: int, epoch: int) -> list[int]:
        """Return how many batches of segment `number` each bucket of the source has completed when `epoch` begins."""
        batch, walks = self.segments[number].batch, self._walks[number][source]
        return [max(0, epoch * n - walk.taken) // batch for n, walk in zip(self.groups[source], walks, strict=True)]

    def _epoch_of(self, number: int, source: int, turn: int) -> tuple[int, list[int], list[int]]:
        """Return the epoch of the source's batch `turn` of a segment, and `_completed` of it and of the next one.

        It is the last one that begins with at most `turn` batches completed. With k buckets and t samples taken before the segment,
        sum(completed) > (epoch * total - t) / batch - k bounds it; bisection finds it.
        """
        total, taken = self.sizes[source], sum(walk.taken for walk in self._walks[number][source])
        low, high = 0, ((turn + len(self.groups[source])) * self.segments[number].batch + taken) // total + 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if sum(self._completed(number, source, middle)) <= turn else (low, middle - 1)
        return low, self._completed(number, source, low), self._completed(number, source, low + 1)

    def _walks_after(self, number: int, step: int) -> list[list[_Walk]]:
        """Return, per source and bucket, the walk that follows that of segment `number`, which ends at `step`."""
        part, walks = self.segments[number], []
        blocks, slots = divmod(step - part.step, len(self._slot_source))
        for source, before in enumerate(self._walks[number]):
            turns = blocks * self.counts[source] + int(np.count_nonzero(self._slot_source[:slots] == source))
            epoch, first, after = self._epoch_of(number, source, turns)
            drawn = self.mixed_batches(np.arange(turns - sum(first)), sum(after) - sum(first), source, epoch)
            follow, ends = [], np.cumsum([0, *(end - begin for begin, end in zip(first, after, strict=True))])
            for group, walk in enumerate(before):
                of_bucket = drawn[(drawn >= ends[group]) & (drawn < ends[group + 1])] - ends[group] + first[group]
                follow.append(walk.after(part.batch, first[group], after[group], of_bucket))
            walks.append(follow)
        return walks

    def _draw(self, step: int) -> list[SampleId]:
        source, group, places = self._batch(step)
        n, walk = self.groups[source][group], self._walks[self._number(step)][source][group]
        epoch, offset = np.divmod(walk.positions(np.arange(places.start, places.stop, dtype=np.int64)), n)
        index = np.empty_like(offset)
        for e in sorted({*epoch.tolist()}):
            selected = epoch == e
            index[selected] = self.shuffled(offset[selected], source, group, e)
        index += sum(self.groups[source][:group])
        return [SampleId(source, i, e) for i, e in zip(index.tolist(), epoch.tolist(), strict=True)]
