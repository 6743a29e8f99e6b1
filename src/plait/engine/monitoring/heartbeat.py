"""What a rank is doing right now, in one small file that anyone may read: RUN/heartbeat/rank-0.json.

Not a log: the line is overwritten in place at every change, by one write of fixed length and without a flush to disk (about 3 us).
Who looks for a rank that is late is watchdog.py.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

PHASES = ("start", "stage", "data", "step", "evaluate", "save", "done")
"""start: reading model and state. stage: setting one up. data: waiting for a batch. save: copying out; the writing goes on behind."""

_LENGTH = 160


class Heartbeat:
    """The heartbeat of one rank of a run. All ranks go through the same beats, so the one with the fewest keeps the others waiting."""

    def __init__(self, run: Path, rank: int):
        self.run, self.rank = run, rank
        path = path_of(run, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.beats = 0
        self.phase("start", 0)

    def phase(self, name: str, step: int) -> None:
        """From now on: `name`, after `step` updates."""
        self.name, self.step, self.time_s = name, step, time.time()
        self.part("")

    def part(self, name: str) -> None:
        """From now on: this part of the phase."""
        self.beats += 1
        self.alive()
        where = f'"phase": "{self.name}", "step": {self.step}, "part": "{name}", "beat": {self.beats}'
        line = f'{{{where}, "pid": {os.getpid()}, "time_s": {self.time_s:.6f}}}'
        os.pwrite(self._file, line.ljust(_LENGTH - 1).encode() + b"\n", 0)

    def alive(self) -> None:
        """Something was done, which is not worth a line."""
        self.last_s = time.monotonic()

    def close(self) -> None:
        """Let the file go; it keeps the last phase."""
        os.close(self._file)


def path_of(run: Path, rank: int) -> Path:
    """Where the heartbeat of a rank is."""
    return run / "heartbeat" / f"rank-{rank}.json"


def read(run: Path, rank: int = 0) -> dict[str, Any] | None:
    """The phase, its step, part and beginning (time_s), the number of beats and the pid of a rank; None before the first."""
    try:
        line = path_of(run, rank).read_bytes()[:_LENGTH]
    except FileNotFoundError:
        return None
    return json.loads(line) if line.endswith(b"\n") else None


def moment(beat: dict[str, Any]) -> tuple[str, int, int]:
    """Phase, step and process of what `read` tells, whatever part of the phase it is in."""
    return beat["phase"], beat["step"], beat["pid"]
