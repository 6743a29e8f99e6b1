"""A tar shard and its index of offsets: opened on disk or at an address, and read sample by sample.

The index of a remote shard comes from the cache, else from `<address>.idx`, else from reading the shard through once.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from plait.data import addresses
from plait.data.formats import index, tar
from plait.data.formats.clips import VIDEO_KINDS
from plait.data.formats.open_file import OpenFile
from plait.data.records import IMAGE_KINDS, Record, from_members
from plait.data.remote import RemoteFile, Unavailable
from plait.data.text import rename
from plait.errors import BadSample, PlaitError
from plait.files import write_whole

_SCAN_BYTES = 4 << 20  # read at once when a remote shard is indexed
_WINDOW_BYTES = 256 << 10  # and of one on disk: each read lets go of Python's lock, and a thread that computes keeps it for 5 ms
_GAP_BYTES = 4096  # members of one remote sample this close are fetched as one range


@dataclass(frozen=True)
class Shard:
    """One tar shard and the header of its index (`head`). `built`: whether the index was made just now, rather than found.

    `path`: a path on disk or an address; `remote`: reads a shard at an address; None for one on disk.
    """

    path: str
    head: index.IndexHead
    remote: RemoteFile | None
    built: bool

    @property
    def samples(self) -> int:
        """The number of samples in the shard."""
        return int(self.head.facts["samples"])


def open_shard(path: str, cache: str | Path | None, *, rebuild: bool = False, beside: bool = False) -> Shard:
    """Open one tar shard, and build its index if there is none (or if `rebuild`). Raises PlaitError if it is missing or damaged.

    `cache`: folder for the index; None: the user's. `beside`: keep the index of a shard on disk next to it instead.
    """
    if addresses.is_remote(path):
        return open_remote(RemoteFile(path, cache), cache, rebuild=rebuild)
    local = Path(path)
    if not local.is_file():
        raise PlaitError(f"{path} is not a regular file")
    make = partial(_walk_local, local, path)
    head, built = index.obtain(local, cache, make, rebuild=rebuild, beside=beside, fits=lambda facts: "members" in facts)
    return Shard(path, head, None, built)


def _walk_local(path: Path, shown: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Index a tar on disk, which messages call `shown`. Raises PlaitError if it is damaged."""
    file = OpenFile(path)
    size = file.size
    if size == 0:
        raise PlaitError(f"{shown} is empty (0 bytes)")
    return tar.index(tar.walk(_in_windows(file.read, size, _WINDOW_BYTES), size, shown), shown)


def cached_index(path: str, cache: str | Path | None) -> Path:
    """Return the path of a remote shard's index in the cache folder; it does not depend on the signature in the address."""
    return index.cached_path(addresses.shown(path), cache, addresses.identity(path))


def open_remote(remote: RemoteFile, cache: str | Path | None, *, rebuild: bool = False, copy: Path | None = None) -> Shard:
    """Open a remote shard. `cache`: folder of its index; `rebuild`: make that again. Raises PlaitError if the shard is damaged.

    `copy`: the whole shard on disk, from which it is then read, and from which an index is made that is not in the cache.
    """
    path, opened = (remote.address, remote) if copy is None else (str(copy), None)
    cached = cached_index(remote.address, cache)
    head = None if rebuild else index.read_head(cached)
    if head is not None and head.stamp == remote.stamp:
        return Shard(path, head, opened, False)
    if copy is not None:
        facts, arrays = _walk_local(copy, addresses.shown(remote.address))
    else:
        facts, arrays = _published_index(path, remote, cached) or _walk_remote(path, remote)
    write_whole(cached, index.pack(remote.stamp, facts, arrays))
    head = index.read_head(cached)
    if head is None:
        raise PlaitError(f"the index {cached} cannot be read, though it was written just now: mend the disk, or set data.cache to another")
    return Shard(path, head, opened, True)


def _published_index(path: str, remote: RemoteFile, cached: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Download the index that was uploaded beside the shard. None when there is none or it is for a file of another size."""
    if addresses.shown(address := addresses.spelled_out(path)) != address:
        return None  # a signature is for one file alone
    try:
        body = RemoteFile(path + ".idx", None).whole()
    except Unavailable:
        return None
    fetched = cached.with_suffix(".fetched")
    write_whole(fetched, body)
    head = index.read_head(fetched)
    fits = head is not None and head.stamp["size"] == remote.size
    contents = (head.facts, {name: array.copy() for name, array in index.map_arrays(head).items()}) if head is not None and fits else None
    fetched.unlink()
    return contents


def _walk_remote(path: str, remote: RemoteFile) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    name = addresses.shown(path)
    if remote.size == 0:
        raise PlaitError(f"{name} is empty (0 bytes)")
    return tar.index(tar.walk(_in_windows(remote.read, remote.size, _SCAN_BYTES), remote.size, name), name)


def _in_windows(read: tar.Read, size: int, window_bytes: int) -> tar.Read:
    """Return a reader of a file of `size` bytes that reads so much at once, as headers lie close together."""
    window: tuple[int, bytes] = (0, b"")  # start and bytes of what was read last

    def read_in_window(offset: int, length: int) -> bytes:
        nonlocal window
        if not window[0] <= offset <= offset + length <= window[0] + len(window[1]):
            window = (offset, read(offset, min(max(length, window_bytes), size - offset)))
        return window[1][offset - window[0] : offset - window[0] + length]

    return read_in_window


class MappedShard:
    """An open shard: the memory-mapped arrays of its index, the extensions of its members, and a reader of their bytes."""

    def __init__(self, shard: Shard) -> None:
        arrays = {name: array.data for name, array in index.map_arrays(shard.head).items()}  # NumPy takes longer to find one number
        self.first, self.kind, self.offset, self.size = (arrays[name] for name in ("first", "kind", "offset", "size"))
        self.name_end, self.names = arrays["name_end"], arrays["names"]
        self.extensions = shard.head.facts["extensions"]
        self.read = _local_reader(shard) if shard.remote is None else partial(_read_ranges, shard.remote)

    def members(self, i: int) -> tuple[str, list[tuple[str, bytes]]]:
        """Return (stem, [(extension, bytes)]) of sample `i` of this shard."""
        first, last = self.first[i], self.first[i + 1]
        bodies = self.read(self.offset[first:last].tolist(), self.size[first:last].tolist())
        return self._stem(i), [(self.extensions[self.kind[first + place]], body) for place, body in enumerate(bodies)]

    def texts(self, i: int) -> tuple[str, list[tuple[str, bytes]]]:
        """Return what `members` does, with empty bytes in place of images and videos, which are not read."""
        first, last = self.first[i], self.first[i + 1]
        kinds = [self.extensions[k] for k in self.kind[first:last]]
        wanted = [place for place, kind in enumerate(kinds) if kind.rpartition(".")[2].lower() not in IMAGE_KINDS | VIDEO_KINDS]
        bodies = [b""] * len(kinds)
        if wanted:
            offsets, sizes = ([array[first + place] for place in wanted] for array in (self.offset, self.size))
            for place, body in zip(wanted, self.read(offsets, sizes), strict=True):
                bodies[place] = body
        return self._stem(i), list(zip(kinds, bodies, strict=True))

    def _stem(self, i: int) -> str:
        return str(self.names[self.name_end[i] : self.name_end[i + 1]], "utf-8", "surrogateescape")


def record_of(name: str, members: Sequence[tuple[str, bytes]], columns: Mapping[str, str]) -> Record:
    """Build record `name` ("shard/stem") of a sample's (extension, bytes), with its fields renamed by `columns`, new name -> old.

    Raises BadSample, which names the sample, if one of its files is broken or a column is missing.
    """
    try:
        record = from_members(name, members)
        return record._replace(fields=rename(record.fields, columns)) if columns else record
    except BadSample as error:
        error.sample = name
        raise


def _local_reader(shard: Shard) -> Callable[[list[int], list[int]], list[bytes]]:
    file = OpenFile(shard.path)
    if file.size != shard.head.stamp["size"]:
        raise PlaitError(f"{shard.path} changed while it was in use: {file.size} bytes, its index knows {shard.head.stamp['size']}")
    return partial(_read_ranges, file)


def _read_ranges(file: RemoteFile | OpenFile, offsets: list[int], sizes: list[int]) -> list[bytes]:
    """Read the members of a sample in one request when they are neighbours, as they nearly always are."""
    start, end = min(offsets), max(map(operator.add, offsets, sizes))
    if end - start > sum(sizes) + _GAP_BYTES * len(sizes):
        return [file.read(o, s) for o, s in zip(offsets, sizes, strict=True)]
    body = file.read(start, end - start)
    return [body[o - start : o - start + s] for o, s in zip(offsets, sizes, strict=True)]
