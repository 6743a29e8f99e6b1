"""Find samples with the same picture: exact copies by a hash of the files, near ones by a perceptual hash.

The perceptual hash is pHash (Zauner 2010, "Implementation and benchmarking of perceptual image hash functions"): the signs, against their
median, of the 8 x 8 lowest coefficients of the cosine transform (DCT-II) of the picture in 32 x 32 greys. Two pictures are near copies
if at most `distance` of the 64 bits differ. A picture of nearly one grey has no such signs, and is compared by its file alone, as
are the pictures of a sample that has several: whether a held-out sample has one of them, shared_pictures.py finds.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image

from plait.data import image_files
from plait.data.selection.measures import Measure, Sample

_SIDE, _LOW = 32, 8
_FLAT = 2.0  # standard deviation of the greys below which there is nothing to compare
_AT_ONCE = 2048  # hashes of one bucket that are compared with as many others together

_frequency, _position = np.mgrid[0:_LOW, 0:_SIDE]
_DCT = np.cos(np.pi * _frequency * (2 * _position + 1) / (2 * _SIDE))  # (8, 32); its scale does not change signs against a median

READ, HASHED, SEVERAL = 1, 2, 4
"""Flags of a sample: its pictures were read, at least one; it has a perceptual hash; it has several pictures, or a clip."""


def perceptual_hash(pixels: np.ndarray) -> int | None:
    """Return the 64-bit pHash of a picture, uint8 (H, W, 3); None for one of nearly one grey."""
    grey = Image.fromarray(pixels).convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    values = np.asarray(grey, np.float64)
    if values.std() < _FLAT:
        return None
    low = (_DCT @ values @ _DCT.T).ravel()
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def _hashes(sample: Sample) -> Sequence[int]:
    """Return (flags, two halves of a hash of the files, perceptual hash, hash of the text) of a sample."""
    pictures = [*sample["images"], *sample.get("frames", ())]
    if not pictures:
        return 0, 0, 0, 0, 0
    exact, rest = file_hash(pictures)
    conversations = [annotation["messages"] for annotation in sample.get("annotations", ())] or [sample["messages"]]
    text = hashlib.sha256(repr([[(turn["role"], turn["content"]) for turn in turns] for turns in conversations]).encode("utf-8", "replace"))
    pixels = [image_files.decode_rgb(data, at_least=(_SIDE, _SIDE)) for data in pictures]
    seen = perceptual_hash(pixels[0]) if len(pixels) == 1 else None
    flags = READ | (0 if seen is None else HASHED) | (SEVERAL if len(pictures) > 1 else 0)
    return flags, exact, rest, seen or 0, int.from_bytes(text.digest()[:8], "big")


def file_hash(pictures: Sequence[bytes]) -> tuple[int, int]:
    """Return the first two 64-bit words of a hash (SHA-256) of encoded pictures, in their order."""
    digest = hashlib.sha256(b"".join(hashlib.sha256(data).digest() for data in pictures)).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big")


HASHES = Measure("picture hashes 2", 5, _hashes, "<u8")
"""Flags, hash of the files (two columns), perceptual hash and hash of the text of each sample; zeros of one that cannot be read."""


@dataclass(frozen=True)
class Copy:
    """A sample that is a copy of another, by their rows. `distance`: bits that differ; None: the files are equal."""

    row: int
    of: int
    distance: int | None


def copies(rows: np.ndarray, distance: int, *, same_text: bool) -> list[Copy]:
    """Return the copies among samples; each is the copy of one before it that is no copy itself. `rows`: their HASHES (n, 5).

    `distance`: bits of the perceptual hash that may differ. `same_text`: only samples with the same text are copies.
    """
    text = rows[:, 4] if same_text else np.zeros(len(rows), np.uint64)
    read = np.flatnonzero(rows[:, 0] & READ)
    exact = np.column_stack([rows[read, 1], rows[read, 2], text[read]])
    _, first, which = np.unique(exact, axis=0, return_index=True, return_inverse=True)
    original = read[first[which.ravel()]]
    found = [Copy(int(row), int(of), None) for row, of in zip(read, original, strict=True) if row != of]
    kept = read[read == original]
    kept = kept[(rows[kept, 0] & HASHED).astype(bool)]
    _, first, which = np.unique(np.column_stack([rows[kept, 3], text[kept]]), axis=0, return_index=True, return_inverse=True)
    same = first[which.ravel()]  # the first of those with equal hashes, which are near to the same others: it stands for them
    distinct = np.sort(first)
    near = near_pairs(rows[kept[distinct], 3], text[kept[distinct]], distance)
    copied: dict[int, int] = {}
    for one in range(len(distinct)):
        if one not in copied:
            for other in near.get(one, ()):
                copied.setdefault(other, one)
    of_distinct = {int(distinct[row]): int(distinct[of]) for row, of in copied.items()}
    bits = rows[:, 3]
    originals = {row: of_distinct.get(int(of), int(of)) for row, of in enumerate(same)}
    again = {int(kept[row]): int(kept[of]) for row, of in originals.items() if row != of}
    found = [Copy(copy.row, again.get(copy.of, copy.of), _differ(bits, copy.of, again.get(copy.of))) for copy in found]
    found += [Copy(row, of, _differ(bits, row, of)) for row, of in again.items()]
    return sorted(found, key=lambda copy: copy.row)


def _differ(bits: np.ndarray, row: int, of: int | None) -> int | None:
    return None if of is None else int(bits[row] ^ bits[of]).bit_count()


def near_pairs(bits: np.ndarray, text: np.ndarray, distance: int) -> dict[int, list[int]]:
    """Return {number of a hash: those of later ones within `distance` of it, with the same text}, in rising order.

    Of `distance` + 1 bands of the bits at least one is equal in two hashes that near: only samples with an equal band are compared.
    """
    near: dict[int, set[int]] = {}
    edges = np.linspace(0, 64, distance + 2).astype(int)
    for low, high in pairwise(edges):
        mask = np.uint64((1 << int(high - low)) - 1)
        band = (bits >> np.uint64(low)) & mask
        order = np.lexsort((np.arange(len(bits)), text, band))
        new = (np.diff(band[order]) != 0) | (np.diff(text[order]) != 0)
        for run in np.split(order, np.flatnonzero(new) + 1):
            for one, other in _pairs(bits, run, distance):
                near.setdefault(one, set()).add(other)
    return {one: sorted(others) for one, others in near.items()}


def _pairs(bits: np.ndarray, run: np.ndarray, distance: int) -> Iterator[tuple[int, int]]:
    """Yield the pairs of a rising run of samples whose hashes are within `distance`, the earlier first."""
    for start in range(0, len(run), _AT_ONCE) if len(run) > 1 else ():
        some = run[start : start + _AT_ONCE]
        for begin in range(start, len(run), _AT_ONCE):
            others = run[begin : begin + _AT_ONCE]
            close = np.bitwise_count(bits[some][:, None] ^ bits[others][None]) <= distance
            first, second = np.nonzero(close)
            for one, other in zip(some[first].tolist(), others[second].tolist(), strict=True):
                if one < other:
                    yield one, other
