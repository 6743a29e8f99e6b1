"""Find pictures that look alike among many, by their perceptual hashes, as `plait data dedup` does (data/selection/duplicates.py)."""

from array import array
from typing import NamedTuple

import numpy as np

DISTANCE = 4
"""Bits of 64 in which the hashes of pictures that look alike may differ."""


_MOST = 100_000  # compared with every other, a hash costs some 0.1 ms then


class Pair(NamedTuple):
    """A picture of sample number `sample` that looks like an earlier one, of sample `of`: `distance` bits of their hashes differ."""

    sample: int
    of: int
    distance: int


class Alike:
    """Hashes of pictures, of their files and of what is seen in them, by the number of their sample: 25 bytes each."""

    def __init__(self) -> None:
        self._files, self._seen, self._known, self._owners = array("Q"), array("Q"), array("B"), array("Q")
        self._found: tuple[int, list[Pair]] = (0, [])

    def add(self, file: int, seen: int | None, owner: int) -> None:
        """Append a picture of sample number `owner`. `file`: hash of its bytes; `seen`: its perceptual hash, None if there is none."""
        self._files.append(file)
        self._seen.append(seen or 0)
        self._known.append(seen is not None)
        self._owners.append(owner)

    def pairs(self) -> list[Pair]:
        """Return the pictures that look like an earlier one, and are not that one to the byte."""
        if self._found[0] == len(self._files):
            return self._found[1]
        files: set[int] = set()
        originals, near = _Originals(), list[Pair]()
        for file, seen, known, owner in zip(self._files, self._seen, self._known, self._owners, strict=True):
            if known and file not in files:
                found = originals.nearest(seen)
                if found is None:
                    originals.add(seen, owner)
                else:
                    near.append(Pair(owner, *found))
            files.add(file)
        self._found = (len(self._files), near)
        return near

    def like(self, other: "Alike") -> list[Pair]:
        """Return the pictures that look like one of `other`, and are not that one to the byte; `of` is of the others."""
        originals, files = _Originals(), set(other._files)
        for seen, known, owner in zip(other._seen, other._known, other._owners, strict=True):
            if known:
                originals.add(seen, owner)
        rows = zip(self._files, self._seen, self._known, self._owners, strict=True)
        found = ((owner, originals.nearest(seen)) for file, seen, known, owner in rows if known and file not in files)
        return [Pair(owner, *of) for owner, of in found if of is not None]


class _Originals:
    """The perceptual hashes that others are compared with, at most _MOST of them: each once, with the sample that had it first."""

    def __init__(self) -> None:
        self._hashes, self._owners = np.zeros(1024, np.uint64), list[int]()
        self._known: dict[int, tuple[int, int] | None] = {}

    def add(self, seen: int, owner: int) -> None:
        """Add a hash, unless it is there or there are too many."""
        count = len(self._owners)
        if count == _MOST or self._known.get(seen) is not None:
            return
        if count == len(self._hashes):
            self._hashes = np.concatenate([self._hashes, np.zeros_like(self._hashes)])
        self._hashes[count] = seen
        self._owners.append(owner)
        self._known[seen] = (owner, 0)

    def nearest(self, seen: int) -> tuple[int, int] | None:
        """Return (sample, bits that differ) of the nearest hash within DISTANCE, the first of several; None without one."""
        count = len(self._owners)
        if (known := self._known.get(seen)) is not None or not count:
            return known
        bits = np.bitwise_count(self._hashes[:count] ^ np.uint64(seen))
        place = int(bits.argmin())
        if bits[place] > DISTANCE:
            return None
        self._known[seen] = (self._owners[place], int(bits[place]))
        return self._known[seen]
