"""The heartbeat of a rank: what it is doing now, in one small file that other processes read (RUN/heartbeat/rank-0.json).

Not a log: the line is overwritten in place at every beat, by one write of fixed length and without a flush to disk (about 3 us).
`beats.py` reads it; `watchdog.py` finds a rank that is late.
"""

import logging
import os
import time
from pathlib import Path

PHASES = ("start", "stage", "data", "step", "evaluate", "save", "done")
"""start: loading model and state. stage: setting one up. data: waiting for a batch. save: copying to the host, before the write."""

LENGTH = 160

log = logging.getLogger(__name__)


class Heartbeat:
    """One rank's heartbeat file. All ranks write the same sequence of beats, so the rank with the fewest is late."""

    def __init__(self, run: Path, rank: int) -> None:
        self.run, self.rank = run, rank
        self.name, self.step = "start", 0
        self.began_s = time.time()
        """When the phase began (Unix time)."""
        self.last_s = time.monotonic()
        """When this rank last did something (monotonic clock)."""
        path = path_of(run, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.beats, self._failed, self._doing = 0, False, "start"
        self.spent_s: dict[str, float] = {}
        """Seconds so far in each phase, or part of one, such as "data" and "step/backward"."""
        self.phase("start", 0)

    def phase(self, name: str, step: int) -> None:
        """Record that the phase `name` (start, stage, data, step, evaluate, save or done) begins, after `step` updates."""
        assert name in PHASES, f"no phase of a heartbeat: {name}"
        self.name, self.step, self.began_s = name, step, time.time()
        self.part("")

    def part(self, name: str) -> None:
        """Record that a part of the phase begins, such as "backward", or "" at its start; counts as one more beat."""
        now = time.monotonic()
        self.spent_s[self._doing] = self.spent_s.get(self._doing, 0.0) + now - self.last_s
        self.beats, self.last_s, self._doing = self.beats + 1, now, f"{self.name}/{name}" if name else self.name
        progress = f'"phase": "{self.name}", "step": {self.step}, "part": "{name}", "beat": {self.beats}'
        line = f'{{{progress}, "pid": {os.getpid()}, "time_s": {self.began_s:.6f}}}'
        try:
            os.pwrite(self._file, line.ljust(LENGTH - 1).encode() + b"\n", 0)
        except OSError as error:  # nothing is lost with a beat
            if not self._failed:
                log.warning(f"{path_of(self.run, self.rank)}: {error.strerror}; training goes on, and later failures of it are not told")
            self._failed = True

    def close(self) -> None:
        """Close the heartbeat file; its last line stays and shows where this rank ended."""
        os.close(self._file)


def path_of(run: Path, rank: int) -> Path:
    """Return the path of a rank's heartbeat file in the run directory `run`."""
    return run / "heartbeat" / f"rank-{rank}.json"
