"""Read what a rank's heartbeat last said it was doing (`heartbeat.py` writes it)."""

import json
from pathlib import Path
from typing import Any

from plait.engine.monitoring.heartbeat import LENGTH, path_of


def read(run: Path, rank: int = 0) -> dict[str, Any] | None:
    """Return a rank's last heartbeat, or None before the first.

    Keys: `phase`, `step`, `part`, `beat` (how many beats so far), `pid`, `time_s` (Unix time at which the phase began).
    """
    try:
        line = path_of(run, rank).read_bytes()[:LENGTH]
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not line.endswith(b"\n"):
        return None
    beat: dict[str, Any] = json.loads(line)
    return beat


def position(beat: dict[str, Any]) -> tuple[str, int, int]:
    """Return (phase, step, pid) of a heartbeat from `read`. If equal for two of them, the process is still in the same phase."""
    return beat["phase"], beat["step"], beat["pid"]
