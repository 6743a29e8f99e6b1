"""A part of a source (one data set): the share held out for validation, or all other samples, which are trained.

Whether a sample is held out depends on the run's seed and on the sample's index alone: the same samples on every rank and after every
restart, also when more samples are added at the end, and in every source that reads the same file. A bucket is samples of one shape.
"""

import abc
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from plait.data.sources.contract import Sample, Source
from plait.errors import PlaitError
from plait.keys import key

_AT_ONCE = 1 << 20  # samples whose numbers are computed together


class Subset(Source):
    """Some of the samples of the source `whole`. `sizes`: how many of each bucket of `whole`; of one bucket alone, how many there are.

    A subclass sets `fingerprint` and `stream`, and says which samples they are.
    """

    def __init__(self, whole: Source, sizes: Sequence[int]) -> None:
        self.whole, self._sizes = whole, list(sizes)
        self.name, self.left_out, self.filtered, self.unfiltered = whole.name, dict(whole.left_out), dict(whole.filtered), whole.unfiltered
        self.has_template, self.allow_blank, self.stored = whole.has_template, whole.allow_blank, whole.stored
        self.may_wait = whole.may_wait
        self.groups = tuple(size for size in self._sizes if size) if whole.groups else ()

    @abc.abstractmethod
    def in_whole(self, indices: Any) -> Any:
        """Return the indices, in the whole source, of samples of this subset; `indices`: an integer or an array."""

    def index_in_whole(self, index: int) -> int:
        """Return the index, in the whole source, of sample `index` of this subset. Raises IndexError if `index` is out of range."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return int(self.in_whole(index))

    def __len__(self) -> int:
        return sum(self._sizes)

    def __getitem__(self, index: int, /) -> Sample:
        return self.whole[self.index_in_whole(index)]

    def draw(self, index: int, sample_key: int) -> Sample:
        """Return sample `index` of this subset, drawn by the whole source with the 64-bit seed `sample_key`; IndexError beyond its end."""
        return self.whole.draw(self.index_in_whole(index), sample_key)

    def worded(self, index: int) -> Sample:
        """Return sample `index` of this subset for its text alone. Raises IndexError if `index` is out of range."""
        return self.whole.worded(self.index_in_whole(index))

    def peek(self, index: int) -> Sample:
        """Return what the whole source tells of sample `index` of this subset. Raises IndexError if `index` is out of range."""
        return self.whole.peek(self.index_in_whole(index))

    def sketch(self, index: int) -> Sample:
        """Return what the whole source tells of sample `index` and the sizes of its pictures. Raises IndexError if it is out of range."""
        return self.whole.sketch(self.index_in_whole(index))

    def places(self, indices: Any) -> Any:
        """Return the indices, in the source before any filter, of samples of this subset."""
        return self.whole.places(self.in_whole(indices))

    @property
    def maker(self) -> str:
        """Return the import path of the class of the whole source."""
        return self.whole.maker

    def table(self, global_batch: int) -> list[Mapping[str, Any]]:
        """Return the whole source's table, a dict per bucket, with this subset's counts: samples, `tokens` in proportion, and batches.

        `global_batch`: samples per step, by which `batches` and `left_over` are counted.
        """
        rows: list[Mapping[str, Any]] = []
        for row, size in zip(self.whole.table(global_batch), self._sizes, strict=False):
            tokens = round(row["tokens"] * size / row["samples"])
            counts = {"samples": size, "tokens": tokens, "batches": size // global_batch, "left_over": size % global_batch}
            rows += [{**row, **counts}] if size else []
        return rows


class Part(Subset):
    """The held-out part of a source (`held_out` True), about `share` of its samples, or all others; in the order of the source.

    Which samples are held out is a function of `seed` and index. Either part gets at least one sample of each bucket; the only sample of a
    bucket of one is trained on. Raises PlaitError if the source is too small to hold anything out.
    """

    def __init__(self, source: Source, share: float, seed: int, *, held_out: bool) -> None:
        ends = np.cumsum([0, *(source.groups or (len(source),))])
        chosen = [_held_out(source, range(begin, end), share, seed) for begin, end in pairwise(ends)]
        self.held_out, self._held = held_out, np.concatenate([np.zeros(0, np.int64), *chosen])
        if not len(self._held):
            raise PlaitError(
                f"a share of {source.name} is held out, which has {len(source):,}, too few for it: list other sources in data.validation"
            )
        self._shift = self._held - np.arange(len(self._held))  # held-out sample k follows as many that are trained
        sizes = [len(part) if held_out else int(end - begin) - len(part) for part, (begin, end) in zip(chosen, pairwise(ends), strict=True)]
        super().__init__(source, sizes)
        self.fingerprint = f"{source.fingerprint}-{'held' if held_out else 'train'}-{key(str(share), seed):016x}"
        if source.stream is not None:
            if held_out:
                self.whole = OneByOne(source)
            else:
                self.stream = source.stream.part(lambda indices: indices - np.searchsorted(self._held, indices))

    def in_whole(self, indices: Any) -> Any:
        """Return the indices, in the whole source, of samples of this part; `indices`: an integer or an array."""
        return self._held[indices] if self.held_out else indices + np.searchsorted(self._shift, indices, side="right")


class OneByOne(Source):
    """A streamed source whose samples are read one by one, as held-out ones are: no whole shard is downloaded for one sample."""

    def __init__(self, whole: Source) -> None:
        self.whole, self.name, self.fingerprint, self.left_out = whole, whole.name, whole.fingerprint, whole.left_out
        self.has_template, self.allow_blank, self.may_wait = whole.has_template, whole.allow_blank, whole.may_wait

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, index: int, /) -> Sample:
        return self.whole[index]

    def places(self, indices: Any) -> Any:
        """Return the indices of samples in the source before any filter."""
        return self.whole.places(indices)

    @property
    def maker(self) -> str:
        """Return the import path of the class of the whole source."""
        return self.whole.maker


def _held_out(source: Source, bucket: range, share: float, seed: int) -> np.ndarray:
    """Return which of the indices in `bucket` are held out, sorted: those whose random number, of their place, is below `share`.

    At least one, that with the smallest number, and not all of them; none of fewer than two.
    """
    begin, end = bucket.start, bucket.stop
    if end - begin < 2:
        return np.zeros(0, np.int64)
    below, least, most = [], (2.0, -1), (-1.0, -1)
    for first in range(begin, end, _AT_ONCE):
        indices = np.arange(first, min(end, first + _AT_ONCE), dtype=np.int64)
        numbers = _uniform(source.places(indices), seed)
        below.append(indices[numbers < share])
        least = min(least, (float(numbers.min()), int(indices[numbers.argmin()])))
        most = max(most, (float(numbers.max()), int(indices[numbers.argmax()])))
    held = np.concatenate(below)
    if not len(held):
        return np.array([least[1]], np.int64)
    return held if len(held) < end - begin else held[held != most[1]]


def _uniform(indices: np.ndarray, seed: int) -> np.ndarray:
    """Return a number from 0 to 1 for each index, a function of it and `seed`. By the finaliser of SplitMix64 (Steele et al. 2014)."""
    z = (indices.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key(seed, "held-out share"))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    numbers: np.ndarray = (z ^ (z >> np.uint64(31))) / np.float64(2**64)
    return numbers
