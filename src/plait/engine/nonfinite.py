"""Steps whose loss or gradient is not finite: detected before the update on all ranks, reported, then handled as `guard.non_finite` says.

stop: the run ends before the update. skip: the step ends without an update. rewind: the step goes on a list in the run directory, the run
goes back to its newest intact checkpoint and skips the step when it gets there; so does every later start. A stage is a part of a run.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from plait import files
from plait.engine.parallel.distributed import Ranks

SKIPPED = "skipped.jsonl"
"""The file, in a run directory, that lists the steps that `rewind` skips."""
KINDS = {"step": int, "stage": str}
"""Keys of a row of skipped.jsonl, with their types."""


class Rewind(Exception):
    """Raised on all ranks: the run must go back to its newest intact checkpoint. The step at fault is in RUN/skipped.jsonl by then."""


def any_not_finite(values: Mapping[str, float], ranks: Ranks) -> bool:
    """Return whether any of these numbers is nan or infinite on any rank; all ranks call this and get the same answer."""
    return ranks.any(not all(map(math.isfinite, values.values())))


def steps_to_skip(run: Path, stage: str) -> frozenset[int]:
    """Return the steps of a stage, from 0, that end without an update: those that `rewind` has listed in RUN/skipped.jsonl."""
    return frozenset(row["step"] for row in files.read_rows(run / SKIPPED, KINDS) if row["stage"] == stage)
