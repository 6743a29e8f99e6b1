"""Numbers of many samples, kept as arrays of a few bytes each: their percentiles, histogram, and which of them are equal."""

import math
from array import array
from typing import Any, NamedTuple

import numpy as np

_SHARES = (0, 1, 5, 25, 50, 75, 95, 99, 100)


class Histogram(NamedTuple):
    """Counts between `edges`, of which there is one more; `logarithmic`: whether the edges are evenly spaced by their logarithms."""

    edges: list[float]
    counts: list[int]
    logarithmic: bool


class Series:
    """A growing list of numbers of at least 0. `unit`: of each, such as "px"; `logarithmic`: whether their ratios matter."""

    def __init__(self, unit: str, *, logarithmic: bool = False, whole: bool = True) -> None:
        self.unit, self.logarithmic, self.whole = unit, logarithmic, whole
        self._values: array[float] = array("q" if whole else "d")

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: float) -> None:
        """Append a number."""
        self._values.append(int(value) if self.whole else value)

    @property
    def values(self) -> np.ndarray:
        """Return the numbers as a read-only array."""
        values = np.frombuffer(self._values, np.int64 if self.whole else np.float64) if self._values else np.zeros(0)
        values.flags.writeable = False
        return values

    @property
    def varies(self) -> bool:
        """Return whether there are different numbers, which a histogram can show."""
        return bool(len(self)) and bool(self.values.min() < self.values.max())

    def summary(self) -> dict[str, float]:
        """Return {"min", "p1", "p5", "p25", "median", "p75", "p95", "p99", "max", "mean"}; {} without numbers."""
        if not len(self):
            return {}
        names = ["min", "p1", "p5", "p25", "median", "p75", "p95", "p99", "max"]
        points = np.percentile(self.values, _SHARES, method="lower")
        return {**dict(zip(names, (_rounded(float(point)) for point in points), strict=True)), "mean": _rounded(float(self.values.mean()))}

    def histogram(self, bins: int = 32) -> Histogram:
        """Return a histogram from the smallest to the largest number. Whole numbers of few kinds get a bin each."""
        values = self.values
        if not len(self):
            return Histogram([0.0, 1.0], [0], False)
        low, high = float(values.min()), float(values.max())
        logarithmic = self.logarithmic and low > 0 and high / low > 4 and (not self.whole or high - low >= bins)
        if logarithmic:
            end = high + 1 if self.whole else high
            edges = np.exp(np.linspace(math.log(low), math.log(end), bins + 1))
            edges = np.unique(np.rint(edges)) if self.whole else edges
            edges[0], edges[-1] = low, end
        elif self.whole:
            width = max(1, math.ceil((high - low + 1) / bins))
            edges = np.arange(low, high + width + 0.5, width)
        else:
            edges = np.linspace(low, high if high > low else low + 1, bins + 1)
        counts, edges = np.histogram(values, edges)
        return Histogram([float(edge) for edge in edges], [int(count) for count in counts], logarithmic)

    def plain(self) -> dict[str, Any]:
        """Return the unit, the count, the summary and the histogram as JSON values."""
        shown = self.histogram()
        histogram = {"edges": [_rounded(edge) for edge in shown.edges], "counts": shown.counts} if len(self) else None
        return {"unit": self.unit, "count": len(self), **self.summary(), "histogram": histogram}


class Hashes:
    """Hashes of many things by the number of their sample, to find those that are equal: 16 bytes for each."""

    def __init__(self) -> None:
        self._hashes, self._owners = array("Q"), array("Q")

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, value: int, owner: int) -> None:
        """Append a 64-bit hash of something of sample number `owner`."""
        self._hashes.append(value)
        self._owners.append(owner)

    def repeated(self, most: int) -> tuple[int, int, list[tuple[int, list[int]]]]:
        """Return how many are equal to an earlier one, how many kinds come again, and the most frequent kinds, up to `most`.

        Each of these is (how often it comes, numbers of the first samples that have it).
        """
        if not len(self):
            return 0, 0, []
        hashes = np.frombuffer(self._hashes, np.uint64)
        owners = np.frombuffer(self._owners, np.uint64)
        kinds, earliest, counts = np.unique(hashes, return_index=True, return_counts=True)
        several = np.flatnonzero(counts > 1)
        first = several[np.lexsort((earliest[several], -counts[several]))][:most]
        groups = [(int(counts[kind]), [int(owner) for owner in owners[hashes == kinds[kind]][:8]]) for kind in first]
        return int(len(hashes) - len(kinds)), len(several), groups

    def shared(self, other: "Hashes") -> tuple[int, list[tuple[int, int]]]:
        """Return how many of these are among the `other`, and (own sample, other's sample) of the first few."""
        own, theirs = np.frombuffer(self._hashes, np.uint64), np.frombuffer(other._hashes, np.uint64)
        if not len(own) or not len(theirs):
            return 0, []
        places = np.flatnonzero(np.isin(own, theirs))
        pairs = [(int(self._owners[place]), int(other._owners[int(np.flatnonzero(theirs == own[place])[0])])) for place in places[:8]]
        return len(places), pairs


def _rounded(value: float) -> float:
    """Return a number with six significant digits, a whole one as it is."""
    return int(value) if value == int(value) else float(f"{value:.6g}")
