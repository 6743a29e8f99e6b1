"""The index of a data file: arrays that say where each sample is, built once and memory-mapped from then on.

The file is a magic line, the length and xxh3 of a JSON header, the header and 8-byte aligned arrays. Its stamp (size and time of the data
file) tells whether it is fresh; an index whose header is not whole is made again, one whose arrays do not match their xxh3 is refused.
It is in the cache folder (`cache`: the setting data.cache, None if it is not set), unless `<data file>.idx` exists or is asked for.
"""

import json
import mmap
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from plait.errors import PlaitError
from plait.files import expanded, write_whole
from plait.keys import key

_MAGIC = b"plait index 2\n"
_ALIGN = 8
_PREFIX = 16  # bytes of the header's length and hash


@dataclass(frozen=True)
class IndexHead:
    """The header of an index file, read without its arrays. `facts`: what the data format records (counts, names of extensions).

    `path`: of the index. `stamp`: size and time of the data file when it was indexed. `layout`: {array: [dtype, offset in the body, length
    in elements]}. `body_at`: byte at which the arrays begin; `xxh3`: their hash.
    """

    path: Path
    stamp: dict[str, Any]
    facts: dict[str, Any]
    layout: dict[str, list[Any]]
    body_at: int
    xxh3: str


def cache_folder(cache: str | Path | None) -> Path:
    """Return the folder of cached files: `cache` if it is set, else $PLAIT_CACHE, else ~/.cache/plait."""
    return expanded(cache or os.environ.get("PLAIT_CACHE") or "~/.cache/plait")


def stamp_of(path: Path) -> dict[str, Any]:
    """Return {"size": bytes, "mtime_ns": time} of a local file: when either has changed, its index is stale."""
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def candidate_paths(data_path: Path, cache: str | Path | None) -> list[Path]:
    """Return the two paths where a local file's index may be: beside it, and in folder `cache` (None: the user's)."""
    absolute = data_path.absolute()
    return [absolute.with_name(absolute.name + ".idx"), cached_path(str(absolute), cache)]


def cached_path(name: str, cache: str | Path | None, identity: str = "") -> Path:
    """Return the path of an index in the folder `cache` (None: the user's), named after its data file and a hash.

    `name`: path or address of the data file, whose last part is used. `identity`: what is hashed, such as an address without its
    signature; "": `name`.
    """
    return cache_folder(cache) / "index" / f"{Path(name).name}-{key(identity or name):016x}.idx"


def obtain(
    data_path: Path,
    cache: str | Path | None,
    make: Callable[[], tuple[dict[str, Any], Mapping[str, np.ndarray]]],
    *,
    rebuild: bool = False,
    beside: bool = False,
    fits: Callable[[dict[str, Any]], bool] = lambda facts: True,
) -> tuple[IndexHead, bool]:
    """Return the index header of a local data file, and whether it was built just now.

    An index that is found is used unless it is stale, `rebuild` is set, or `fits(its facts)` is False, being made of the file as another
    kind. `make()` scans the data file and returns (facts, arrays) to store: in the folder `cache` (None: the user's), or next to the data
    if `beside`. Raises PlaitError if the index cannot be written, and whatever `make` raises.
    """
    stamp = stamp_of(data_path)
    at_data, cached = candidate_paths(data_path, cache)
    if not rebuild:
        for path in (at_data,) if beside else (at_data, cached):
            head = read_head(path)
            if head is not None and head.stamp == stamp and fits(head.facts):
                return head, False
    facts, arrays = make()
    path = at_data if beside else cached
    try:
        write_whole(path, pack(stamp, facts, arrays))
    except OSError as error:
        cure = "leave out --beside, and it goes to the cache" if beside else "set data.cache to a folder that can be written"
        raise PlaitError(f"cannot write the index {path}: {error.strerror}; {cure}") from error
    head = read_head(path)
    if head is None:
        raise PlaitError(f"the index {path} cannot be read, though it was written just now: mend the disk, or set data.cache to another")
    return head, True


def pack(stamp: dict[str, Any], facts: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return the bytes of an index file. `stamp`: size and time of the data; `facts`: JSON values of its format; and arrays by name."""
    layout, body = {}, bytearray()
    for name, array in arrays.items():
        layout[name] = [array.dtype.str, len(body), len(array)]
        body += array.tobytes()
        body += bytes(-len(body) % _ALIGN)
    digest = xxhash.xxh3_64(body).hexdigest()
    header = json.dumps({"stamp": stamp, "facts": facts, "layout": layout, "xxh3": digest}).encode()
    header += b" " * (-(len(_MAGIC) + _PREFIX + len(header)) % _ALIGN)
    return _MAGIC + len(header).to_bytes(8, "little") + xxhash.xxh3_64(header).digest() + header + bytes(body)


def read_head(path: Path) -> IndexHead | None:
    """Read the header of an index file; None if it is absent, no index or not whole. Whether its stamp is fresh is not checked."""
    try:
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                return None
            length = int.from_bytes(file.read(8), "little")
            listed = file.read(_PREFIX - 8)
            body = file.read(length) if length <= path.stat().st_size else b""
            if xxhash.xxh3_64(body).digest() != listed:
                return None
            header = json.loads(body)
    except (OSError, ValueError):
        return None
    return IndexHead(path, header["stamp"], header["facts"], header["layout"], len(_MAGIC) + _PREFIX + length, header["xxh3"])


def map_arrays(head: IndexHead) -> dict[str, np.ndarray]:
    """Return the arrays of an index by name, memory-mapped. Raises PlaitError if the file is missing or does not match its hash."""
    try:
        with head.path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise PlaitError(f"the index {head.path} is gone or unreadable ({error}); run `plait data index` on the data again") from error
    body = memoryview(mapped)[head.body_at :]
    if xxhash.xxh3_64(body).hexdigest() != head.xxh3:
        raise PlaitError(f"the index {head.path} is damaged; delete it, and it will be made again")
    return {name: np.frombuffer(body, np.dtype(kind), length, offset) for name, (kind, offset, length) in head.layout.items()}
