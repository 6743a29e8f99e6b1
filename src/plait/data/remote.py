"""Files at fsspec addresses (s3://, https://, ...), read by range.

With a cache folder, blocks of 4 MiB are fetched once and kept, each written whole or not at all. Without one, exactly the bytes requested
are fetched, and nothing is kept.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from plait.errors import PlaitError
from plait.files import write_whole
from plait.keys import key

T = TypeVar("T")

BLOCK_BYTES = 4 << 20
_WAITS_S = (0.5, 2.0, 8.0)  # between attempts at one range
_LOCKS = 16  # two threads never fetch one block at once


def connect(address: str) -> tuple[Any, str]:
    """Return (fsspec file system, path inside it) of an address such as s3://bucket/file.tar.

    Raises PlaitError for a protocol that fsspec does not know, or whose package is not installed.
    """
    try:
        system, inner = fsspec.core.url_to_fs(address)
        return system, str(inner)
    except (ImportError, ValueError) as error:
        raise PlaitError(f"cannot open {address}: {error}") from error


class RemoteFile:
    """One remote file, read by byte range. Threads may read at once, and it may be pickled to another process.

    `cache`: the folder that keeps fetched blocks, or None. `size` is in bytes; `stamp` is size and version, to recognise a changed file.
    Raises PlaitError for a file that does not exist, cannot be reached or has no known size.
    """

    def __init__(self, address: str, cache: str | Path | None) -> None:
        self.address = address
        info = self._try(lambda: self._connect().info(self._inner), "read")
        if info.get("size") is None:
            raise PlaitError(f"{address} does not tell its size, so it cannot be read by range; copy it to disk first")
        self.size = int(info["size"])
        self.stamp: dict[str, Any] = {"size": self.size, "version": _version(info)}
        name = f"{Path(address).name}-{key(address, self.size, self.stamp['version']):016x}"
        self._blocks = Path(cache).expanduser() / "blocks" / name if cache else None
        self._locks = [threading.Lock() for _ in range(_LOCKS)]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_system", "_locks")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._connect()
        self._locks = [threading.Lock() for _ in range(_LOCKS)]

    def read(self, offset: int, length: int) -> bytes:
        """Read `length` bytes from `offset`. Raises PlaitError past the end, for a short answer, and after several failed attempts."""
        if offset + length > self.size:
            raise PlaitError(f"{self.address}: bytes {offset} to {offset + length} lie past its end at {self.size}")
        if self._blocks is None:
            return self._fetch(offset, offset + length)
        first, last = offset // BLOCK_BYTES, (offset + max(length, 1) - 1) // BLOCK_BYTES
        body = b"".join(self._block(number) for number in range(first, last + 1))
        return body[offset - first * BLOCK_BYTES :][:length]

    def _block(self, number: int) -> bytes:
        """Return a block from the cache folder, fetched first if it is not there."""
        start, end = number * BLOCK_BYTES, min((number + 1) * BLOCK_BYTES, self.size)
        assert self._blocks is not None
        cached = self._blocks / f"{number:08d}"
        with self._locks[number % _LOCKS]:
            if cached.is_file() and len(body := cached.read_bytes()) == end - start:
                return body
            body = self._fetch(start, end)
            write_whole(cached, body)
            return body

    def _fetch(self, start: int, end: int) -> bytes:
        if start == end:
            return b""
        body: bytes = self._try(lambda: self._system.cat_file(self._inner, start=start, end=end), f"read bytes {start} to {end} of")
        if len(body) != end - start:
            raise PlaitError(f"{self.address} sent {len(body)} bytes of {end - start} from offset {start}: it changed, or was cut short")
        return body

    def _connect(self) -> Any:
        self._system, self._inner = connect(self.address)
        return self._system

    def _try(self, action: Callable[[], T], what: str) -> T:
        """Call `action`, again after a wait when the network fails. Raises PlaitError after the last attempt."""
        for wait_s in (*_WAITS_S, None):
            try:
                return action()
            except FileNotFoundError as error:
                raise PlaitError(f"there is no file {self.address}") from error
            except OSError as error:
                if wait_s is None:
                    raise PlaitError(f"cannot {what} {self.address} ({len(_WAITS_S) + 1} attempts): {error}") from error
                time.sleep(wait_s)
        raise AssertionError("unreachable")


def _version(info: dict[str, Any]) -> str:
    """Return what the store says of a file's content (a hash, else a time), to recognise when it changed."""
    marks = (info.get(name) for name in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created"))
    return str(next((mark for mark in marks if mark is not None), ""))
