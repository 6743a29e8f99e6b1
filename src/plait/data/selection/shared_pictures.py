"""Find training samples that have a picture of a held-out sample, where either has several pictures, or a clip.

duplicates.py takes the pictures of such a sample as one. Here each of them is compared by itself, exactly and by its perceptual hash, and a
clip as a whole, by its files.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from plait.data import image_files
from plait.data.selection.duplicates import HASHED, READ, SEVERAL, Copy, file_hash, near_pairs, perceptual_hash
from plait.data.selection.survey import Samples
from plait.errors import BadSample, sample_errors

_SIDE = 32
_AT_ONCE = 256

Picture = tuple[int, int, int, int]
"""Two halves of the hash of a file, the perceptual hash (0 without one), and whether there is one."""


def pictures_of(source: Samples, index: int) -> list[Picture]:
    """Return the hashes of each image of a sample, and of its frames as one; [] of one that cannot be read."""
    try:
        with sample_errors:
            sample = source.peek(index)
            seen = [perceptual_hash(image_files.decode_rgb(body, at_least=(_SIDE, _SIDE))) for body in sample["images"]]
            files = [file_hash([body]) for body in sample["images"]]
            clip = [(*file_hash(sample["frames"]), 0, 0)] if sample.get("frames") else []
    except BadSample:
        return []
    return [(*file, bits or 0, int(bits is not None)) for file, bits in zip(files, seen, strict=True)] + clip


def hashed(source: Samples, rows: np.ndarray, threads: int) -> Iterator[tuple[int, Picture]]:
    """Yield (index of its sample, hashes) of each picture of a source. `rows`: HASHES of its samples; only those of several are read."""
    single = ((rows[:, 0] & READ) != 0) & ((rows[:, 0] & SEVERAL) == 0)
    for index in np.flatnonzero(single).tolist():
        flags, exact, rest, seen, _ = rows[index].tolist()
        yield index, (exact, rest, seen, int(bool(flags & HASHED)))
    several = np.flatnonzero(rows[:, 0] & SEVERAL).tolist()
    with ThreadPoolExecutor(threads) as readers:
        for start in range(0, len(several), _AT_ONCE):
            some = several[start : start + _AT_ONCE]
            for index, pictures in zip(some, readers.map(lambda index: pictures_of(source, index), some), strict=True):
                for picture in pictures:
                    yield index, picture


def shared_with_held_out(
    pictures: Sequence[tuple[int, Picture]], rows: np.ndarray, held_out: np.ndarray, distance: int, *, same_text: bool
) -> list[Copy]:
    """Return the training samples with a picture of a held-out one, each once, where one of the two has several.

    `pictures`: (row of its sample, hashes); `rows`: HASHES (n, 5) of all samples, `held_out` (n,) which of them are.
    `distance`: bits of the perceptual hash that may differ; an equal file goes first. `same_text`: only of samples with the same text.
    """
    if not pictures:
        return []
    owner = np.array([row for row, _ in pictures], np.int64)
    hashes = np.array([picture for _, picture in pictures], np.uint64)
    text = rows[owner, 4] if same_text else np.zeros(len(owner), np.uint64)
    several = (rows[:, 0] & SEVERAL) != 0
    kinds = np.unique(np.column_stack([hashes[:, :2], text]), axis=0, return_inverse=True)[1].ravel()
    held = _Held(kinds, owner, several, held_out)
    found: dict[int, Copy] = {}
    for kind, row in zip(kinds.tolist(), owner.tolist(), strict=True):
        if row not in found and (of := held.owner(kind, row)) is not None:
            found[row] = Copy(row, of, None)
    known = np.flatnonzero(hashes[:, 3])
    values, which = np.unique(np.column_stack([hashes[known, 2], text[known]]), axis=0, return_inverse=True)
    held, bits = _Held(which.ravel(), owner[known], several, held_out), values[:, 0]
    near = {kind: {kind} for kind in range(len(values))}
    for one, others in near_pairs(bits, values[:, 1], distance).items():
        near[one].update(others)
        for other in others:
            near[other].add(one)
    for kind, row in zip(which.ravel().tolist(), owner[known].tolist(), strict=True):
        owners = [(int(bits[kind] ^ bits[other]).bit_count(), of) for other in near[kind] if (of := held.owner(other, row)) is not None]
        if row not in found and owners:
            differ, of = min(owners)
            found[row] = Copy(row, of, differ)
    return [found[row] for row in sorted(found)]


class _Held:
    """The first held-out sample that has a picture of a kind, and the first that has others too. `kinds`, `owner`: of each picture."""

    def __init__(self, kinds: np.ndarray, owner: np.ndarray, several: np.ndarray, held_out: np.ndarray) -> None:
        self._several, self._held_out = several, held_out
        self._first: dict[int, int] = {}
        self._of_several: dict[int, int] = {}
        for kind, row in zip(kinds.tolist(), owner.tolist(), strict=True):
            if held_out[row]:
                self._first.setdefault(kind, row)
                if several[row]:
                    self._of_several.setdefault(kind, row)

    def owner(self, kind: int, row: int) -> int | None:
        """Return the held-out sample with a picture of this kind that the training sample `row` is to be compared with, None without."""
        if self._held_out[row]:
            return None
        return (self._first if self._several[row] else self._of_several).get(kind)
