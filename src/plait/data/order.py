"""Which samples a step consumes: a pure function of (seed, step), so that no position in the data is ever saved.

A source (one data set) of n samples is read in epochs. Each epoch is a permutation of [0, n) computed point by point (O(1) memory, O(1)
seek) by a generalised Feistel network (Luby and Rackoff 1988) over a rectangle of about sqrt(n) x sqrt(n) cells; the few cells past n are
left by walking the cycle (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). Statistical shuffling, not cryptography.

A mixture (several weighted sources) is one fixed block of slots, apportioned to the sources by weight (largest remainder) and interleaved
evenly; the blocks repeat forever, and each source goes through its own epochs whenever its slots come up. Ranks, workers and
micro-batches do not change it: they only decide how a global batch is sliced (`rank_slices`).
"""

import math
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import xxhash

from plait.errors import PlaitError
from plait.keys import key

_ROUNDS = 8  # four per half: twice what Luby and Rackoff need, because halves are small when n is
_BLOCK_MAX = 1 << 20  # slots; bounds the memory of a mixture, whatever the sizes of its sources
_DRAW_AT_ONCE = 1024  # samples; NumPy's cost per call is spread over them
_SHARE_TOLERANCE = 1e-3  # a block is accepted when every source's share is within 0.1 % of its weight
_U64 = np.uint64


class SampleId(NamedTuple):
    """The identity of one training sample: which source, which of its samples, in which of that source's epochs (all from 0)."""

    source: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls here
    epoch: int


Slices = list[tuple[list[SampleId], bool]]  # the micro-batches of one rank, (ids, padding)
Slicing = Callable[[Sequence[SampleId], int, int, int | None], Slices]
"""Slices a global batch, as `rank_slices` does: (ids, rank, world size, samples in each micro-batch)."""


class Segment(NamedTuple):
    """A run of steps with one batch size: from `step` on, `batch` samples each. `before`: samples consumed by all earlier steps."""

    step: int
    batch: int
    before: int


BatchChanges = Sequence[Sequence[int]]
"""Changes of a stage's global batch size: (step of the stage from which it holds, samples per step), in rising order."""


def segments(global_batch: int, changes: BatchChanges) -> tuple[Segment, ...]:
    """Return the segments of a training stage that begins with `global_batch` samples per step; one more per (step, batch) of `changes`."""
    parts = [Segment(0, global_batch, 0)]
    for step, batch in changes:
        assert batch >= 1 and step >= parts[-1].step
        parts.append(Segment(step, batch, parts[-1].before + (step - parts[-1].step) * parts[-1].batch))
    return tuple(parts)


def segment_of(parts: Sequence[Segment], step: int) -> Segment:
    """Return the segment of `parts` that contains `step`."""
    return next(part for part in reversed(parts) if part.step <= step)


def permute(position: int | np.ndarray, n: int, *parts: int | str) -> int | np.ndarray:
    """Return where a random permutation of [0, n), seeded by the values `parts` (seed, purpose, ...), maps `position` (elementwise)."""
    assert n >= 1, "a permutation needs at least one element"
    array = np.atleast_1d(np.asarray(position, dtype=_U64))
    assert array.size == 0 or int(array.max()) < n, f"position outside [0, {n})"
    height = math.isqrt(n - 1) + 1
    width = -(-n // height)  # height * width >= n, and exceeds it by less than `height` cells
    round_keys = _mix(np.arange(_ROUNDS, dtype=_U64) * _U64(0x9E3779B97F4A7C15) + _U64(key(*parts)))
    cells = _feistel(array, height, width, round_keys)
    while (outside := np.flatnonzero(cells >= n)).size:
        cells[outside] = _feistel(cells[outside], height, width, round_keys)
    return cells.astype(np.int64) if isinstance(position, np.ndarray) else int(cells[0])


def _feistel(cells: np.ndarray, height: int, width: int, round_keys: np.ndarray) -> np.ndarray:
    """Run the network once: each round shifts one coordinate by a hash of the other, which is invertible."""
    h, w = _U64(height), _U64(width)
    row, column = np.divmod(cells, w)
    for even, odd in zip(round_keys[0::2], round_keys[1::2], strict=True):
        row = (row + _mix(column + even) % h) % h
        column = (column + _mix(row + odd) % w) % w
    return row * w + column


def _mix(z: np.ndarray) -> np.ndarray:
    """Hash 64-bit words by SplitMix64's finaliser (Steele, Lea and Flood 2014), a bijection that spreads every bit over all."""
    z = (z ^ (z >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> _U64(27))) * _U64(0x94D049BB133111EB)
    mixed: np.ndarray = z ^ (z >> _U64(31))
    return mixed


class Ordering(Protocol):
    """The schedule that a loader follows: the ids of each step, and the sizes of the sources that they index."""

    @property
    def sizes(self) -> Sequence[int]:
        """The number of samples of each source."""

    def ids(self, step: int) -> list[SampleId]:
        """Return the samples of the whole global batch of `step` (from 0), the same list on every rank."""


class Order:
    """Choose the samples of every step without buckets: `ids(step)` (from 0) is the same on every rank and for every world size.

    `sizes`: samples per source. `sampling_weights`: their shares of the samples drawn, not of their sizes: two sources of weight 1 are
    drawn equally often, and the smaller one begins its next epoch sooner. An epoch of a mixture is as many samples as its sources hold
    together. `global_batch`: samples per step at first; `changes`: (step, samples per step from then on); they slice the same sequence of
    samples differently. Raises PlaitError if there is no source, for an empty one, and for a weight that is not positive.
    """

    def __init__(
        self, sizes: Sequence[int], sampling_weights: Sequence[float], seed: int, global_batch: int, changes: BatchChanges = ()
    ) -> None:
        assert len(sizes) == len(sampling_weights)
        assert global_batch >= 1
        if not sizes:
            raise PlaitError("there is no data to order: name at least one source under data.train")
        for number, (size, weight) in enumerate(zip(sizes, sampling_weights, strict=True)):
            if size < 1:
                raise PlaitError(f"source {number} of the mixture is empty; remove it or mend its path")
            if not (weight > 0 and math.isfinite(weight)):
                raise PlaitError(f"source {number} of the mixture has weight {weight}; weights are positive numbers")
        self.sizes, self.seed, self.segments, self.arranged = tuple(int(s) for s in sizes), seed, segments(global_batch, changes), ""
        self.counts = block_counts([w / math.fsum(sampling_weights) for w in sampling_weights], global_batch)
        self._slot_source, self._slot_turn = interleave(self.counts)
        self._memo: tuple[int, list[SampleId]] = (0, [])  # first position and samples; replaced as a whole: several threads may call `ids`

    def ids(self, step: int) -> list[SampleId]:
        """Return the global batch of `step` (from 0). Batches run across epoch borders: none is short, no sample is dropped."""
        part = segment_of(self.segments, step)
        size = max(1, _DRAW_AT_ONCE // part.batch) * part.batch
        number, start = divmod((step - part.step) * part.batch, size)
        first, memo = part.before + number * size, self._memo
        if memo[0] != first or len(memo[1]) != size:
            memo = self._memo = (first, self._draw(first, size))
        return memo[1][start : start + part.batch]

    def _draw(self, first: int, count: int) -> list[SampleId]:
        """Return `count` samples from position `first` on: as many as are worth one call of the permutation."""
        position = first + np.arange(count, dtype=np.int64)
        block, slot = np.divmod(position, len(self._slot_source))
        source = self._slot_source[slot]
        turn = block * np.asarray(self.counts, np.int64)[source] + self._slot_turn[slot]  # how often this source was drawn before
        epoch, offset = np.divmod(turn, np.asarray(self.sizes, np.int64)[source])
        index = np.empty_like(offset)
        for s, e in sorted({*zip(source.tolist(), epoch.tolist(), strict=True)}):
            selected = (source == s) & (epoch == e)
            index[selected] = self.shuffled(offset[selected], s, e)
        return list(map(SampleId, source.tolist(), index.tolist(), epoch.tolist()))

    def shuffled(self, offset: np.ndarray, source: int, epoch: int) -> np.ndarray:
        """Return the samples of a source at these places of its epoch."""
        return np.asarray(permute(offset, self.sizes[source], self.seed, "order", source, epoch))

    def samples(self, step: int) -> int:
        """Return how many samples all steps before `step` consume together."""
        part = segment_of(self.segments, step)
        return part.before + (step - part.step) * part.batch

    def steps(self, samples: float) -> int:
        """Return the least number of steps, at least 1, that together consume `samples` samples or more from step 0 on."""
        last = self.segments[-1]
        return max(1, last.step + math.ceil((samples - last.before) / last.batch - 1e-9))


def digest(ids: Iterable[SampleId]) -> int:
    """Return a hash of a step's samples that does not depend on their order, to compare what two runs have trained on.

    It is a sum of 32-bit hashes, so the digests of the ranks' slices add up to that of the global batch.
    """
    return sum(xxhash.xxh32_intdigest(struct.pack("<3q", *identity)) for identity in ids)


def block_counts(fractions: Sequence[float], global_batch: int) -> tuple[int, ...]:
    """Return how many slots (samples) each source gets in one block of a mixture, in proportion to `fractions` (sum 1).

    The block, which repeats, is the shortest multiple of `global_batch` that is within 0.1 % of every fraction, else the best one up to
    2^20 slots. Raises PlaitError for a fraction too small for that.
    """
    best, best_error, multiple = None, math.inf, 1
    while multiple == 1 or multiple * global_batch <= _BLOCK_MAX:
        counts = largest_remainder(fractions, multiple * global_batch)
        error = max(abs(c / (multiple * global_batch) - s) / s for c, s in zip(counts, fractions, strict=True))
        if min(counts) and error < best_error:
            best, best_error = counts, error
        if best_error <= _SHARE_TOLERANCE:
            break
        multiple += 1 if multiple < 1024 else multiple // 16  # finely first, then in steps of 6 %
    if best is None:
        raise PlaitError(f"the smallest weight of the mixture is {min(fractions):.1e} of the whole, less than 1 in {_BLOCK_MAX}; raise it")
    return tuple(best)


def largest_remainder(fractions: Sequence[float], total: int) -> list[int]:
    """Split `total` into integers by `fractions` (sum 1), Hamilton's method: whole parts first, the rest to the largest fractions."""
    exact = [fraction * total for fraction in fractions]
    counts = [math.floor(x + 1e-9) for x in exact]
    by_fraction = sorted(range(len(exact)), key=lambda s: (counts[s] - exact[s], s))
    for s in by_fraction[: total - sum(counts)]:
        counts[s] += 1
    return counts


def interleave(counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Spread each source's `counts` slots evenly over a block. Returns (source of each slot, how often that source came before it)."""
    source = np.repeat(np.arange(len(counts)), counts)
    turn = np.concatenate([np.arange(c) for c in counts])
    when = (turn + 0.5) / np.asarray(counts)[source]
    slots = np.lexsort((source, when))
    return source[slots], turn[slots]


def rank_slices(ids: Sequence[SampleId], rank: int, world_size: int, micro_batch: int | None) -> Slices:
    """Slice a global batch into the micro-batches, (ids, padding), of one of `world_size` ranks. `micro_batch`: samples in each; None: all.

    Every rank gets the same number of micro-batches, because each one takes part in collectives. A rank with fewer samples gets padding
    micro-batches (`padding` True): they repeat one sample to have a shape, and must contribute nothing to loss and gradient.
    """
    assert 0 <= rank < world_size
    assert len(ids) >= 1
    largest = -(-len(ids) // world_size)
    size = min(micro_batch or largest, largest)
    assert size >= 1
    of_rank = list(ids[rank * len(ids) // world_size : (rank + 1) * len(ids) // world_size])
    slices = [(of_rank[start : start + size], False) for start in range(0, len(of_rank), size)]
    return slices + [([ids[0]], True)] * (-(-largest // size) - len(slices))
