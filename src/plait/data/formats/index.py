"""An index beside a data file: arrays of offsets, built once, memory-mapped ever after.

The file is a magic line, a JSON header and 8-byte aligned arrays. Its stamp (size and time of the data file) says whether it is fresh;
its xxh3, checked when it is mapped, says whether it is whole. It lives at `<data file>.idx`, or in the cache folder when the data's own
folder is read-only.
"""

import json
import mmap
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from plait.errors import PlaitError
from plait.files import write_whole
from plait.keys import key

_MAGIC = b"plait index 1\n"
_ALIGN = 8


@dataclass(frozen=True)
class IndexHead:
    """What is known of an index without mapping it. `facts` is the maker's own (counts, names of extensions)."""

    path: Path
    stamp: dict[str, Any]
    facts: dict[str, Any]
    layout: dict[str, list[Any]]  # array name -> [dtype, offset in the body, length in elements]
    body_at: int
    xxh3: str  # of the arrays


def cache_folder(cache: str | Path | None) -> Path:
    """The configured cache, or the user's: $PLAIT_CACHE, else ~/.cache/plait."""
    return Path(cache or os.environ.get("PLAIT_CACHE") or "~/.cache/plait").expanduser()


def stamp_of(path: Path) -> dict[str, Any]:
    """Size and time of a local file: when either differs, its index is stale."""
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def places(data_path: Path, cache: str | Path | None) -> list[Path]:
    """Where the index of a local file may be: beside it, then in the cache."""
    absolute = data_path.absolute()
    return [absolute.with_name(absolute.name + ".idx"), cached_place(str(absolute), cache)]


def cached_place(name: str, cache: str | Path | None) -> Path:
    """The cache's file for the index of `name` (a path or an address)."""
    return cache_folder(cache) / "index" / f"{Path(name).name}-{key(name):016x}.idx"


def obtain(
    data_path: Path, cache: str | Path | None, make: Callable[[], tuple[dict[str, Any], Mapping[str, np.ndarray]]], *, rebuild: bool = False
) -> tuple[IndexHead, bool]:
    """The fresh index of a local file, and whether it had to be made now. `make` returns (facts, arrays)."""
    stamp = stamp_of(data_path)
    beside, cached = places(data_path, cache)
    if not rebuild:
        for place in (beside, cached):
            head = read_head(place)
            if head is not None and head.stamp == stamp:
                return head, False
    facts, arrays = make()
    body = pack(stamp, facts, arrays)
    place = beside if _may_write(beside.parent) else cached
    try:
        write_whole(place, body)
    except OSError as error:
        if place == cached:
            raise PlaitError(
                f"cannot write the index {cached}: {error.strerror}; set data.cache to a folder that can be written"
            ) from error
        write_whole(place := cached, body)
    head = read_head(place)
    assert head is not None
    return head, True


def _may_write(folder: Path) -> bool:
    """Mode bits count even for root, whom the system would let write anywhere."""
    return bool(folder.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)) and os.access(folder, os.W_OK)


def pack(stamp: dict[str, Any], facts: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of an index file."""
    layout, body = {}, bytearray()
    for name, array in arrays.items():
        layout[name] = [array.dtype.str, len(body), len(array)]
        body += array.tobytes()
        body += bytes(-len(body) % _ALIGN)
    digest = xxhash.xxh3_64(body).hexdigest()
    header = json.dumps({"stamp": stamp, "facts": facts, "layout": layout, "xxh3": digest}).encode()
    header += b" " * (-(len(_MAGIC) + 8 + len(header)) % _ALIGN)
    return _MAGIC + len(header).to_bytes(8, "little") + header + bytes(body)


def read_head(path: Path) -> IndexHead | None:
    """The header of an index file; None when there is none or it is not one of ours (then it is made anew)."""
    try:
        with open(path, "rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                return None
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (FileNotFoundError, PermissionError, ValueError):
        return None
    return IndexHead(path, header["stamp"], header["facts"], header["layout"], len(_MAGIC) + 8 + length, header["xxh3"])


def map_arrays(head: IndexHead) -> dict[str, np.ndarray]:
    """Map the arrays. Errors: a body that does not hash to what the header says."""
    try:
        with open(head.path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise PlaitError(f"the index {head.path} is gone or unreadable ({error}); run `plait data index` on the data again") from error
    body = memoryview(mapped)[head.body_at :]
    if xxhash.xxh3_64(body).hexdigest() != head.xxh3:
        raise PlaitError(f"the index {head.path} is damaged; delete it, and it will be made again")
    return {name: np.frombuffer(body, np.dtype(kind), length, offset) for name, (kind, offset, length) in head.layout.items()}
