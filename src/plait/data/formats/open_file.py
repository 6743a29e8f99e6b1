"""A local data file that is open for reads at any offset, in any thread."""

import os
import weakref
from pathlib import Path

from plait.errors import BadSample


class OpenFile:
    """A file that stays open until nothing refers to it. It is read, not memory-mapped: a map of a file that is cut ends the process."""

    def __init__(self, path: str | Path) -> None:
        self.path, self._descriptor = path, os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)

    @property
    def size(self) -> int:
        """The file's bytes now."""
        return os.fstat(self._descriptor).st_size

    def read(self, offset: int, length: int) -> bytes:
        """Read `length` bytes from `offset` on. Raises BadSample where the file has become shorter than that."""
        body = os.pread(self._descriptor, length, offset)
        while len(body) < length and (more := os.pread(self._descriptor, length - len(body), offset + len(body))):
            body += more
        if len(body) != length:
            raise BadSample(f"{self.path} was cut while it was in use: it ends before byte {offset + length}")
        return body
