"""The journal of one shard under way: outcomes and pictures of finished rows, appended as they come, read again after a kill.

An entry is a line of JSON, the outcome with `size` and `xxh3` of the picture's file, and then that file. What a kill, a full disk or a
power cut left torn at the end is cut off when the journal is opened. A lock keeps a second process out.
"""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import xxhash

from plait.data.download.outcomes import Outcome
from plait.errors import PlaitError

_LONGEST_LINE = 1 << 20


class Journal:
    """A journal, opened and locked. `outcomes`: by row.

    Raises PlaitError if another process has it open, OSError where it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: dict[int, Outcome] = {}
        self._places: dict[int, tuple[int, int]] = {}
        self._file = _open(path)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise PlaitError(f"another process downloads into {path.parent.parent}: wait for it, or give each its own --part") from None
        except OSError:  # no locks here
            pass
        self._end = self._load()
        os.ftruncate(self._file, self._end)

    def _load(self) -> int:
        """Read the entries that are whole, and return where the last of them ends."""
        end = 0
        with self.path.open("rb") as file:
            while line := file.readline(_LONGEST_LINE):
                try:
                    entry = json.loads(line)
                    size, hashed = entry.pop("size"), entry.pop("xxh3")
                    outcome = Outcome.of_plain(entry)
                except (ValueError, KeyError, TypeError, AttributeError):
                    break
                start = file.tell()
                body = file.read(size)
                if len(body) < size or not line.endswith(b"\n") or _hash(line_head(entry), body) != hashed:
                    break
                self.outcomes[outcome.row], self._places[outcome.row] = outcome, (start, size)
                end = file.tell()
        return end

    def add(self, outcome: Outcome, body: bytes = b"") -> None:
        """Append an outcome and the picture's file. Raises OSError where it cannot be written; the journal then is as it was before."""
        told = outcome.plain()
        line = json.dumps({**told, "size": len(body), "xxh3": _hash(line_head(told), body)}, ensure_ascii=True).encode() + b"\n"
        rest = memoryview(line + body)
        try:
            at = self._end
            while rest:
                written = os.pwrite(self._file, rest, at)
                at, rest = at + written, rest[written:]
        except OSError:
            os.ftruncate(self._file, self._end)
            raise
        self.outcomes[outcome.row], self._places[outcome.row] = outcome, (self._end + len(line), len(body))
        self._end = at

    def body(self, row: int) -> bytes:
        """Return the file of a saved row. Raises OSError if it cannot be read."""
        start, size = self._places[row]
        body = os.pread(self._file, size, start)
        if len(body) != size:
            raise OSError(f"{self.path} was cut short while it was in use")
        return body

    def close(self, *, remove: bool = False) -> None:
        """Unlock the journal; `remove` deletes it first."""
        if self._file >= 0:
            if remove:
                self.path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = -1


def _open(path: Path) -> int:
    """Open a journal, and make its folder, which another part of the download removes when it ends and finds it empty."""
    while True:
        path.parent.mkdir(exist_ok=True)
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            continue


def line_head(told: dict[str, Any]) -> bytes:
    """Return the bytes of an outcome that its entry's hash covers, with the file."""
    return json.dumps(told, ensure_ascii=True, sort_keys=True).encode()


def _hash(head: bytes, body: bytes) -> str:
    digest = xxhash.xxh3_64(head)
    digest.update(body)
    return digest.hexdigest()
