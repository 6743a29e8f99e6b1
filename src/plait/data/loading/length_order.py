"""Order samples so that a batch has sequences of similar length, and little of it is padding.

The samples of a step are a pure function of (seed, step).

The samples are those of `Order`, in blocks of some steps each. A block is sorted by length and divided into its batches, which come in an
order permuted for it ("group by length" of sequence-to-sequence trainers). No block crosses the border of an epoch, so that a stage of
whole epochs takes every sample as often as without. After a change of the global batch size, what was not yet drawn of a block comes first.
"""

import math
from collections.abc import Sequence

import numpy as np
import xxhash

from plait.data.order import BatchChanges, Order, SampleId, permute, segment_of

BLOCK_STEPS = 64
"""About how many steps a block has: enough that batches are even, few enough that long samples come all through the stage."""


class LengthOrder(Order):
    """Choose the samples of every step such that a global batch has similar lengths.

    `lengths[source]`: tokens of each of its samples; NaN where that is not known. The other arguments, and errors, are those of `Order`.
    """

    def __init__(
        self,
        lengths: Sequence[np.ndarray],
        sampling_weights: Sequence[float],
        seed: int,
        global_batch: int,
        changes: BatchChanges = (),
    ) -> None:
        super().__init__([len(each) for each in lengths], sampling_weights, seed, global_batch, changes)
        self._lengths = [np.nan_to_num(np.asarray(each, np.float32)) for each in lengths]
        hashed = xxhash.xxh3_64()
        for each in self._lengths:
            hashed.update(each.tobytes())
        self.arranged = f"length {hashed.hexdigest()}"
        self._left: list[np.ndarray] = [np.empty(0, np.int64)]
        """Per segment: positions of `Order` that earlier segments passed over, which come first in it."""
        self._arranged: dict[tuple[int, int], list[SampleId]] = {}
        for number, part in enumerate(self.segments[1:]):
            self._left.append(self._passed_over(number, part.step))

    def ids(self, step: int) -> list[SampleId]:
        """Return the global batch of `step` (from 0), from the shortest sample to the longest."""
        number = self.segments.index(segment_of(self.segments, step))
        begin, end = self._block(number, step)
        batch = self.segments[number].batch
        samples = self._arranged.get((number, begin))
        if samples is None:
            positions = self._positions(number, begin, end)
            drawn = self._at(positions)
            samples = [drawn[i] for i in self._sorted(number, begin, end, positions)]
            kept = dict([*self._arranged.items()][-1:])
            self._arranged = kept | {(number, begin): samples}  # replaced as a whole: several threads may call this
        return samples[(step - begin) * batch : (step - begin + 1) * batch]

    def _block(self, number: int, step: int) -> tuple[int, int]:
        """Return the steps from `begin` up to, not including, `end` of the block that holds `step`, by the segment `number`."""
        part, total = self.segments[number], sum(self.sizes)

        def border(epoch: int) -> int:  # the first step that holds no sample of an earlier epoch
            return part.step + max(0, -((part.before - epoch * total) // part.batch))

        epoch = (part.before + (step - part.step) * part.batch) // total
        while border(epoch + 1) <= step:
            epoch += 1
        while epoch and border(epoch) > step:
            epoch -= 1
        first, steps = border(epoch), border(epoch + 1) - border(epoch)
        blocks = max(1, round(steps / BLOCK_STEPS))
        which = (step - first) * blocks // steps
        while first + which * steps // blocks > step:
            which -= 1
        while first + (which + 1) * steps // blocks <= step:
            which += 1
        return first + which * steps // blocks, first + (which + 1) * steps // blocks

    def _passed_over(self, number: int, step: int) -> np.ndarray:
        """Return the positions before the border of what segment `number` took in order, that it has not drawn when it ends at `step`."""
        begin, end = self._block(number, step)
        part, left = self.segments[number], self._left[number]
        if begin == step:
            return left[(step - part.step) * part.batch :]
        drawn = self._positions(number, begin, end)
        rest = drawn[self._sorted(number, begin, end, drawn)[(step - begin) * part.batch :]]
        return np.concatenate([np.sort(rest), left[(end - part.step) * part.batch :]])

    def _positions(self, number: int, begin: int, end: int) -> np.ndarray:
        """Return the positions in `Order` of a block's samples, before they are sorted."""
        part, left = self.segments[number], self._left[number]
        places = np.arange((begin - part.step) * part.batch, (end - part.step) * part.batch, dtype=np.int64)
        positions = part.before + places
        positions[: max(0, len(left) - int(places[0]))] = left[int(places[0]) : int(places[-1]) + 1]
        return positions

    def _at(self, positions: np.ndarray) -> list[SampleId]:
        """Return the samples at these positions of `Order`."""
        first = int(positions.min())
        drawn = self._draw(first, int(positions.max()) - first + 1)
        return [drawn[position - first] for position in positions.tolist()]

    def _sorted(self, number: int, begin: int, end: int, positions: np.ndarray) -> np.ndarray:
        """Return the order in which a block's samples come: by length, then its batches permuted."""
        samples, batch = self._at(positions), self.segments[number].batch
        lengths = np.array([self._lengths[sample.source][sample.index] for sample in samples])
        by_length = np.argsort(lengths, kind="stable").reshape(end - begin, batch)
        batches = permute(np.arange(end - begin), end - begin, self.seed, "length batches", number, begin)
        sorted_: np.ndarray = by_length[batches].ravel()
        return sorted_


def padded_share(lengths: Sequence[np.ndarray], order: Order, steps: int, micro_batch: int) -> float:
    """Return the share of padding among all positions of the first `steps` steps, each micro-batch padded to its longest sample."""
    tokens = positions = 0.0
    for step in range(steps):
        row = np.nan_to_num([lengths[sample.source][sample.index] for sample in order.ids(step)])
        for start in range(0, len(row), micro_batch):
            part = row[start : start + micro_batch]
            tokens, positions = tokens + float(part.sum()), positions + float(part.max()) * len(part)
    return 1 - tokens / positions if positions else math.nan
