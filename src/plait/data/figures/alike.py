"""Find pictures that look alike among many, by their perceptual hashes, as `plait data dedup` does (data/selection/duplicates.py)."""

from array import array
from typing import NamedTuple

import numpy as np

from plait.data.selection.duplicates import HASHED, READ, copies

DISTANCE = 4
"""Bits of 64 in which the hashes of pictures that look alike may differ."""


class Pair(NamedTuple):
    """A picture of sample number `sample` that looks like an earlier one, of sample `of`: `distance` bits of their hashes differ."""

    sample: int
    of: int
    distance: int


class Alike:
    """Hashes of pictures, of their files and of what is seen in them, by the number of their sample: 21 bytes each."""

    def __init__(self) -> None:
        self._files, self._seen, self._known, self._owners = array("Q"), array("Q"), array("B"), array("I")
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
        found = copies(self._rows(), DISTANCE, same_text=False)
        first: dict[int, int] = {}
        near = []
        for copy in found:
            if copy.distance is not None and self._files[copy.row] not in first:
                first[self._files[copy.row]] = copy.row
                near.append(Pair(self._owners[copy.row], self._owners[copy.of], copy.distance))
        self._found = (len(self._files), near)
        return near

    def like(self, other: "Alike") -> list[Pair]:
        """Return the pictures that look like one of `other`, and are not that one to the byte; `of` is a number of the other's samples."""
        theirs = len(other._files)
        found = copies(np.concatenate([other._rows(), self._rows()]), DISTANCE, same_text=False)
        return [
            Pair(self._owners[copy.row - theirs], other._owners[copy.of], copy.distance)
            for copy in found
            if copy.distance is not None and copy.of < theirs <= copy.row
        ]

    def _rows(self) -> np.ndarray:
        """Return the hashes as the columns that `copies` takes."""
        rows = np.zeros((len(self._files), 5), np.uint64)
        if self._files:
            rows[:, 0] = READ + HASHED * np.frombuffer(self._known, np.uint8).astype(np.uint64)
            rows[:, 1], rows[:, 3] = np.frombuffer(self._files, np.uint64), np.frombuffer(self._seen, np.uint64)
        return rows
