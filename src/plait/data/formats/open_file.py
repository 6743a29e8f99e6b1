"""Read a local data file at any offset, in any thread, while it stays open. A read that fails by a passing disk error is retried."""

import errno
import logging
import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from plait.errors import BadSample

T = TypeVar("T")

MOST_BYTES = 1 << 30
"""The limit for one file, member or record of a sample: a larger one is no picture or text, and its memory is that of the whole run."""
_PASSING = frozenset([errno.EIO, errno.ESTALE, errno.ETIMEDOUT])  # what a disk, or the network before it, may say once
_WAITS_S = (0.1, 0.5, 2.0)  # between attempts

log = logging.getLogger(__name__)


def try_again(read: Callable[[], T], path: str | Path) -> T:
    """Return `read()`; after a disk error (EIO, ESTALE, ETIMEDOUT) wait and retry, up to 3 times. Raises the last. `path`: for the log."""
    for wait_s in _WAITS_S:
        try:
            return read()
        except OSError as error:
            if error.errno not in _PASSING:
                raise
            log.warning(f"{path}: {error.strerror}; it is read again in {wait_s:g} s")
            time.sleep(wait_s)
    return read()


def check_size(path: str | Path, length: int) -> None:
    """Raise BadSample if `length`, the bytes to read of file `path` for one sample, is over MOST_BYTES (1 GiB)."""
    if length > MOST_BYTES:
        raise BadSample(f"{path}: {length:,} bytes for one sample, over the limit of {MOST_BYTES:,}")


class OpenFile:
    """A file that is closed when it is garbage-collected. It is not memory-mapped: a mapped file that is truncated kills the process.

    The constructor opens it, and raises OSError, such as FileNotFoundError, where that fails.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self._descriptor = path, try_again(lambda: os.open(path, os.O_RDONLY | os.O_CLOEXEC), path)
        weakref.finalize(self, os.close, self._descriptor)

    @property
    def size(self) -> int:
        """The file's current size in bytes."""
        return os.fstat(self._descriptor).st_size

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on.

        Raises BadSample if the file is shorter, or that is over MOST_BYTES (1 GiB); OSError if the disk keeps failing.
        """
        check_size(self.path, length)

        def read() -> bytes:
            body = os.pread(self._descriptor, length, offset)
            while len(body) < length and (more := os.pread(self._descriptor, length - len(body), offset + len(body))):
                body += more
            return body

        body = try_again(read, self.path)
        if len(body) != length:
            raise BadSample(f"{self.path} was cut while it was in use: it ends before byte {offset + length}")
        return body
