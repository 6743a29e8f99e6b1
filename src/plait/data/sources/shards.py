"""Tar shards as a source of samples: an offset index beside each shard, reads through a memory map, remote shards by range.

A sample is the members of one stem (`records.py` says what each is for). Any sample of any shard is one look-up and one copy away,
from any thread or process.
"""

import json
import mmap
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from plait.data import paths
from plait.data.formats import index, tar
from plait.data.records import Record, from_members
from plait.data.remote import RemoteFile, connect
from plait.data.text import rename
from plait.errors import PlaitError
from plait.files import write_whole

_OPEN_MAX = 128  # shards mapped at once: each costs four file descriptors
_OPENERS = 8  # threads that look at shards at the start; what they wait for is the store
_SCAN_BYTES = 4 << 20  # read at once when a remote shard is indexed
_GAP_BYTES = 4096  # members of one remote sample this close are fetched as one range


@dataclass(frozen=True)
class Shard:
    """One shard and its index's header."""

    path: str
    head: index.IndexHead
    remote: RemoteFile | None
    built: bool  # just now, rather than found

    @property
    def samples(self) -> int:
        return int(self.head.facts["samples"])


def open_shard(path: str, cache: str | Path | None, *, rebuild: bool = False) -> Shard:
    """Find or make the index of one shard. Errors name the file and the offset."""
    if paths.is_remote(path):
        return _open_remote(path, cache, rebuild)
    place = Path(path)
    if not place.is_file():
        raise PlaitError(f"{path} is not a file")

    def make() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        with open(place, "rb") as file:
            size = place.stat().st_size
            if size == 0:
                raise PlaitError(f"{path} is empty (0 bytes)")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                return tar.index(tar.walk(lambda offset, length: mapped[offset : offset + length], size, path), path)

    head, built = index.obtain(place, cache, make, rebuild=rebuild)
    return Shard(path, head, None, built)


def _open_remote(path: str, cache: str | Path | None, rebuild: bool) -> Shard:
    """The index comes from our cache, from `<address>.idx` beside the shard, or from reading the shard through once, in this order."""
    remote = RemoteFile(path, cache)
    place = index.cached_place(path, cache)
    head = None if rebuild else index.read_head(place)
    if head is not None and head.stamp == remote.stamp:
        return Shard(path, head, remote, False)
    facts, arrays = _published_index(path, remote, place) or _walk_remote(path, remote)
    write_whole(place, index.pack(remote.stamp, facts, arrays))
    head = index.read_head(place)
    assert head is not None
    return Shard(path, head, remote, True)


def _published_index(path: str, remote: RemoteFile, place: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """An index made where the shard was made, and uploaded with it; passed over when it is for a file of another size."""
    system, inner = connect(path + ".idx")
    if not system.exists(inner):
        return None
    fetched = place.with_suffix(".fetched")
    write_whole(fetched, system.cat_file(inner))
    head = index.read_head(fetched)
    found = (head.facts, {k: v.copy() for k, v in index.map_arrays(head).items()}) if head and head.stamp["size"] == remote.size else None
    fetched.unlink()
    return found


def _walk_remote(path: str, remote: RemoteFile) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    window: tuple[int, bytes] = (0, b"")  # start and bytes of what was read last: headers lie close together

    def read(offset: int, length: int) -> bytes:
        nonlocal window
        if not window[0] <= offset <= offset + length <= window[0] + len(window[1]):
            window = (offset, remote.read(offset, min(max(length, _SCAN_BYTES), remote.size - offset)))
        return window[1][offset - window[0] :][:length]

    return tar.index(tar.walk(read, remote.size, path), path)


class _Opened:
    """A shard mapped into memory: index arrays, bytes, and what each kind of member is for."""

    def __init__(self, shard: Shard) -> None:
        arrays = index.map_arrays(shard.head)
        self.first, self.kind, self.offset, self.size = (arrays[name] for name in ("first", "kind", "offset", "size"))
        self.name_end, self.names = arrays["name_end"], arrays["names"]
        self.kinds = shard.head.facts["extensions"]
        self.read = _local_reader(shard) if shard.remote is None else partial(_read_ranges, shard.remote)

    def members(self, i: int) -> tuple[str, list[tuple[str, bytes]]]:
        """(stem, [(kind, bytes)]) of sample `i` of this shard."""
        first, last = self.first[i : i + 2].tolist()
        offsets, sizes = self.offset[first:last].tolist(), self.size[first:last].tolist()
        start, end = self.name_end[i : i + 2].tolist()
        bodies = self.read(offsets, sizes)
        return self.names[start:end].tobytes().decode("utf-8", "surrogateescape"), [
            (self.kinds[k], body) for k, body in zip(self.kind[first:last].tolist(), bodies, strict=True)
        ]


def _local_reader(shard: Shard) -> Callable[[list[int], list[int]], list[bytes]]:
    with open(shard.path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if len(mapped) != shard.head.stamp["size"]:
        raise PlaitError(f"{shard.path} changed while it was in use: {len(mapped)} bytes, its index knows {shard.head.stamp['size']}")
    return lambda offsets, sizes: [mapped[o : o + s] for o, s in zip(offsets, sizes, strict=True)]


def _read_ranges(remote: RemoteFile, offsets: list[int], sizes: list[int]) -> list[bytes]:
    """One request for the whole sample when its members are neighbours, as they nearly always are."""
    start, end = min(offsets), max(o + s for o, s in zip(offsets, sizes, strict=True))
    if end - start > sum(sizes) + _GAP_BYTES * len(sizes):
        return [remote.read(o, s) for o, s in zip(offsets, sizes, strict=True)]
    body = remote.read(start, end - start)
    return [body[o - start : o - start + s] for o, s in zip(offsets, sizes, strict=True)]


class Shards:
    """All samples of a list of shards, in the order of the list."""

    def __init__(self, shard_paths: list[str], cache: str | Path | None, columns: Mapping[str, str]) -> None:
        with ThreadPoolExecutor(_OPENERS) as openers:
            self.shards = list(openers.map(partial(open_shard, cache=cache), shard_paths))
        self.ends = list(accumulate(shard.samples for shard in self.shards))
        self.stems = [Path(shard.path).stem for shard in self.shards]
        self.columns = dict(columns)
        facts = [[Path(s.path).name, s.head.stamp["size"], s.samples, s.head.xxh3] for s in self.shards]
        self.digest = xxhash.xxh3_64(json.dumps(facts).encode()).hexdigest()
        self._start_cold()

    def _start_cold(self) -> None:
        self._opened: OrderedDict[int, _Opened] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_opened", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start_cold()

    def __len__(self) -> int:
        return self.ends[-1]

    def read(self, i: int) -> Record:
        """Sample `i`. Errors: BadSample when a member cannot be understood."""
        record = from_members(*self.members(i))
        return record._replace(fields=rename(record.fields, self.columns)) if self.columns else record

    def members(self, i: int) -> tuple[str, list[tuple[str, bytes]]]:
        """(shard/stem, [(kind, bytes)]) of sample `i`: its files as they are."""
        number = bisect_right(self.ends, i)
        stem, found = self._open(number).members(i - (self.ends[number - 1] if number else 0))
        return f"{self.stems[number]}/{stem}", found

    def _open(self, number: int) -> _Opened:
        with self._lock:
            found = self._opened.get(number)
            if found is None:
                found = self._opened[number] = _Opened(self.shards[number])
                if len(self._opened) > _OPEN_MAX:
                    self._opened.popitem(last=False)  # unmapped when the last reader lets go
            else:
                self._opened.move_to_end(number)
            return found
