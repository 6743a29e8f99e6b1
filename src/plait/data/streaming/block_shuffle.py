"""Order a source that is read shard by shard: shards in a random sequence, samples shuffled within blocks of a few.

A pure function of the epoch's key, as `order.permute` is, so that any step is found without reading what comes before it, and what a step
needs is `block` shards and no other. As in MosaicML's py1b and WebDataset's buffer, samples are mixed within a block only: shards whose
samples are sorted, as by class, want larger blocks.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from plait.data.order import permute

_EPOCHS_REMEMBERED = 4

EpochKey = tuple[int | str, ...]
"""What an epoch is permuted by: (seed, purpose, source, epoch)."""


Fetch = Callable[[int, Callable[[], bool]], None]


class _Epoch(NamedTuple):
    """The shards of one epoch in their sequence: their numbers (`shards`), and where each ends among the samples (`ends`)."""

    shards: np.ndarray
    ends: np.ndarray
    slots: np.ndarray
    """The place of each shard, by its number, in the sequence."""


class Stream:
    """How a source is read shard by shard. `lengths`: samples of each shard, in the order of the source's indices; some may be 0.

    `block`: shards whose samples are mixed. `fetch(number, abandoned)`: brings a shard onto this machine, or gives up once
    `abandoned()` is True; None for shards that lie on a disk. `lanes`: parts of an epoch's sequence that are read side by side, so that as
    many machines each read shards of their own. `unit`: what a shard is called.
    """

    def __init__(self, lengths: Sequence[int], block: int, fetch: Fetch | None = None, *, lanes: int = 1, unit: str = "shard") -> None:
        assert lengths and block >= 1 and lanes >= 1
        self.block, self.fetch, self.lanes, self.unit = block, fetch, lanes, unit
        self.lengths = np.asarray(lengths, np.int64)
        self._starts = np.cumsum(self.lengths) - self.lengths
        self._epochs: dict[EpochKey, _Epoch] = {}  # the latest; replaced as a whole, as several threads may ask

    def text(self) -> str:
        """Return in words how the source is read: "streamed, 1,000 shards in blocks of 2"."""
        lanes = f", for {self.lanes} machines" if self.lanes > 1 else ""
        return f"streamed, {len(self.lengths):,} {self.unit}{'s' * (len(self.lengths) > 1)} in blocks of {self.block}{lanes}"

    def permute(self, position: np.ndarray, epoch: EpochKey) -> np.ndarray:
        """Return the samples at these positions of an epoch: each index once.

        Those of one block are next to each other in their lane. Positions go round the lanes, whose parts of the sequence are equal to one
        sample.
        """
        sequence = self._epoch(epoch)
        if self.lanes > 1:
            turn, lane = np.divmod(position, self.lanes)
            smaller, larger = divmod(int(sequence.ends[-1]), self.lanes)  # the first `larger` lanes have one sample more
            position = lane * smaller + np.minimum(lane, larger) + turn
        block_ends = self._block_ends(sequence)
        block = np.searchsorted(block_ends, position, side="right")
        index = np.empty_like(position)
        for number in np.unique(block).tolist():
            selected = block == number
            begin = int(block_ends[number - 1]) if number else 0
            place = begin + permute(position[selected] - begin, int(block_ends[number]) - begin, *epoch, "block", number)
            slot = np.searchsorted(sequence.ends, place, side="right")
            shard = sequence.shards[slot]
            index[selected] = self._starts[shard] + place - (sequence.ends[slot] - self.lengths[shard])
        return index

    def first(self, count: int, epoch: EpochKey) -> list[int]:
        """Return the first samples, at most `count`, of an epoch: what a look at them downloads, the first steps need anyway."""
        indices: list[int] = self.permute(np.arange(min(count, int(self.lengths.sum()))), epoch).tolist()
        return indices

    def blocks_of(self, indices: Sequence[int], epoch: EpochKey) -> set[int]:
        """Return the numbers of the blocks, in the sequence of an epoch, that these samples are in."""
        return {*self.block_numbers(indices, epoch).tolist()}

    def block_numbers(self, indices: Sequence[int], epoch: EpochKey) -> np.ndarray:
        """Return for each of these samples the number of its block."""
        shards = np.searchsorted(self._starts, np.asarray(indices, np.int64), side="right") - 1
        numbers: np.ndarray = self._epoch(epoch).slots[shards] // self.block
        return numbers

    def blocks(self) -> int:
        """Return the number of blocks in an epoch."""
        return -(-len(self.lengths) // self.block)

    def shards_of(self, block: int, epoch: EpochKey) -> list[int]:
        """Return the numbers of the shards of one block of an epoch."""
        shards: list[int] = self._epoch(epoch).shards[block * self.block : (block + 1) * self.block].tolist()
        return shards

    def substitute(self, index: int, number: int, epoch: EpochKey) -> int:
        """Return another sample in place of a bad one, drawn by `number`: of another shard of its block, which is at hand.

        Where the block has no other shard with samples, it is of a neighbouring block, and in a source of one shard of that shard.
        """
        own = int(np.searchsorted(self._starts, index, side="right")) - 1
        (block,) = self.blocks_of([index], epoch)
        for near in (block, block + 1, block - 1):
            shards = np.array([one for one in self.shards_of(near, epoch) if one != own] if near >= 0 else [], np.int64)
            if total := int(self.lengths[shards].sum()):
                break
        else:
            shards, total = np.array([own]), int(self.lengths[own])
        ends = np.cumsum(self.lengths[shards])
        slot = int(np.searchsorted(ends, number % total, side="right"))
        return int(self._starts[shards[slot]] + number % total - (ends[slot] - self.lengths[shards[slot]]))

    def part(self, kept: Callable[[np.ndarray], np.ndarray]) -> "Stream":
        """Return the stream of a part of the source. `kept(indices)`: how many samples before each of these indices belong to it."""
        ends = kept(np.cumsum([0, *self.lengths]))
        return Stream(np.diff(ends).tolist(), self.block, self.fetch, lanes=self.lanes, unit=self.unit)

    def _epoch(self, epoch: EpochKey) -> _Epoch:
        known = self._epochs.get(epoch)
        if known is None:
            shards = permute(np.arange(len(self.lengths)), len(self.lengths), *epoch, "shards")
            assert isinstance(shards, np.ndarray)
            known = _Epoch(shards, np.cumsum(self.lengths[shards]), np.argsort(shards))
            self._epochs = dict([*self._epochs.items()][1 - _EPOCHS_REMEMBERED :]) | {epoch: known}
        return known

    def _block_ends(self, sequence: _Epoch) -> np.ndarray:
        """Return where each block ends among the samples of an epoch."""
        ends: np.ndarray = sequence.ends[[*range(self.block - 1, len(sequence.ends) - 1, self.block), -1]]
        return ends
