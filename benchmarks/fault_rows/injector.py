"""Makes one call of a process fail as a disk does: imported by the server that `plait` is forked from, at work in what it forks.

The file named by PLAIT_FAULTS is read at the first call in a forked process: {"under": [folders], "at": N, "errno": E, "counted": FILE}.
Of the calls that open, read, write, flush, rename or remove something below these folders the N-th raises OSError, and FILE "fired" is
made; without "at" each leaves a line with its name in FILE. Calls that libraries make without Python (safetensors) are not seen.
"""

import builtins
import io
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

SERVER = os.getpid()
REAL = {name: getattr(os, name) for name in ("open", "pread", "pwrite", "fsync", "replace", "rename", "unlink", "mkdir", "rmdir")}
REAL_OPEN = io.open


class Plan:
    """The plan of this process, once it has been read, and how many calls there were."""

    def __init__(self) -> None:
        self.pid, self.calls, self.plan = 0, 0, {"under": []}
        self.lock = threading.RLock()
        self.reading = False

    def call(self, name: str, where: object) -> None:
        """Count a call on a path or descriptor; raises OSError where it is the one to fail."""
        if os.getpid() == SERVER or self.reading:
            return
        with self.lock:
            if self.pid != os.getpid():
                self.read()
            path = self.path(where)
            if path is None:
                return
            self.calls += 1
            if self.calls == self.plan.get("at"):
                os.close(REAL["open"](self.plan["fired"], os.O_WRONLY | os.O_CREAT))
                raise OSError(self.plan["errno"], os.strerror(self.plan["errno"]), path)
            if "counted" in self.plan:
                descriptor = REAL["open"](self.plan["counted"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.write(descriptor, f"{name} {path}\n".encode())
                os.close(descriptor)

    def read(self) -> None:
        self.pid, self.reading = os.getpid(), True
        try:
            file = Path(os.environ["PLAIT_FAULTS"])
            self.calls, self.plan = 0, json.loads(file.read_text()) if file.is_file() else {"under": []}
        finally:
            self.reading = False

    def path(self, where: object) -> str | None:
        """Return the path of what a call is on, if it is below the folders of the plan."""
        try:
            path = os.readlink(f"/proc/self/fd/{where}") if isinstance(where, int) else os.path.abspath(os.fsdecode(where))  # type: ignore[arg-type]
        except (OSError, TypeError):
            return None
        return path if any(path.startswith(f"{folder}/") for folder in self.plan["under"]) else None


PLAN = Plan()


class Raw(io.FileIO):
    """An open file whose reads and writes are counted."""

    def write(self, body: Any) -> int:
        PLAN.call("write", self.fileno())
        return super().write(body)

    def readinto(self, buffer: Any) -> int:
        PLAN.call("read", self.fileno())
        return super().readinto(buffer)

    def readall(self) -> bytes:
        PLAN.call("read", self.fileno())
        return super().readall()


def opened(
    file: Any,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Any = None,
) -> Any:
    """Stand in for `open`: files below the plan's folders are opened so that their reads and writes are counted."""
    PLAN.call("open", file)
    if os.getpid() == SERVER or PLAN.reading or PLAN.path(file) is None or opener is not None:
        return REAL_OPEN(file, mode, buffering, encoding, errors, newline, closefd, opener)
    raw = Raw(file, mode.replace("b", "").replace("t", ""), closefd)
    if buffering == 0:
        return raw
    both, writes = "+" in mode, any(letter in mode for letter in "wax")
    buffered: Any = io.BufferedRandom(raw) if both else io.BufferedWriter(raw) if writes else io.BufferedReader(raw)
    return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)


def counted(name: str) -> Callable[..., Any]:
    """Return the function `os.NAME` with its calls counted."""

    def call(where: Any, *arguments: Any, **named: Any) -> Any:
        PLAN.call(name, where)
        return REAL[name](where, *arguments, **named)

    return call


for _name in REAL:
    setattr(os, _name, counted(_name))
io.open = builtins.open = opened
