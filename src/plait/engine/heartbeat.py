"""What a rank is doing right now, in one small file that anyone may read: RUN/heartbeat/rank-0.json.

Not a log: the line is overwritten in place at every change of phase, by one write of fixed length and without a flush to disk (about 3 us).
"""

import json
import os
import time
from pathlib import Path
from typing import Any

PHASES = ("start", "stage", "data", "step", "evaluate", "save", "done")
"""start: reading model and state. stage: setting one up. data: waiting for a batch. save: copying out; the writing goes on behind."""

_LENGTH = 128


class Heartbeat:
    """The heartbeat of one rank of a run."""

    def __init__(self, run: Path, rank: int):
        path = path_of(run, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.phase("start", 0)

    def phase(self, name: str, step: int) -> None:
        """From now on: `name`, after `step` updates."""
        line = f'{{"phase": "{name}", "step": {step}, "pid": {os.getpid()}, "time_s": {time.time():.6f}}}'
        os.pwrite(self._file, line.ljust(_LENGTH - 1).encode() + b"\n", 0)

    def close(self) -> None:
        """Let the file go; it keeps the last phase."""
        os.close(self._file)


def path_of(run: Path, rank: int) -> Path:
    """Where the heartbeat of a rank is."""
    return run / "heartbeat" / f"rank-{rank}.json"


def read(run: Path, rank: int = 0) -> dict[str, Any] | None:
    """The phase, step, pid and time_s of a rank's latest change; None before the first."""
    try:
        line = path_of(run, rank).read_bytes()[:_LENGTH]
    except FileNotFoundError:
        return None
    return json.loads(line) if line.endswith(b"\n") else None
