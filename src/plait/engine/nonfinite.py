"""Steps whose loss or gradient is not finite: detected before the update on all ranks, reported, then handled as `guard.non_finite` says.

stop: the run ends before the update. skip: the step ends without an update. rewind: the step goes on a list in the run directory, the run
goes back to its newest intact checkpoint and skips the step when it gets there; so does every later start. A stage is a part of a run.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path

from plait import files
from plait.config.schema import Guard
from plait.engine.nonfinite_report import Report
from plait.engine.parallel.distributed import Ranks
from plait.errors import Recurring

log = logging.getLogger(__name__)

SKIPPED = "skipped.jsonl"
"""The file, in a run directory, that lists the steps that `rewind` skips."""
_KINDS = {"step": int, "stage": str}


class Rewind(Exception):
    """Raised on all ranks: the run must go back to its newest intact checkpoint. The step at fault is in RUN/skipped.jsonl by then."""


def any_not_finite(values: Mapping[str, float], ranks: Ranks) -> bool:
    """Return whether any of these numbers is nan or infinite on any rank; all ranks call this and get the same answer."""
    return ranks.any(not all(map(math.isfinite, values.values())))


def respond(report: Report, settings: Guard, ranks: Ranks, *, skipped: int, run: Path, stage: str, step: int) -> None:
    """Stop, skip or rewind after a non-finite step, as `guard.non_finite` says; returns only for skip: the caller makes no update.

    `settings`: the section `guard`. `run`: the run directory. `step`: of the stage, from 0. `skipped`: steps of the run skipped before.
    Raises Recurring for stop, or when `guard.non_finite_steps` are used up (a PlaitError that ends the run), and Rewind for rewind.
    """
    if settings.non_finite == "stop":
        look = "look at these samples with `plait data inspect`, lower optim.lr, or set guard.non_finite"
        raise Recurring(f"{report.what}, stopped before the update; {report.where}; {look}")
    used = skipped if settings.non_finite == "skip" else len(files.read_rows(run / SKIPPED, _KINDS))
    if used >= settings.non_finite_steps:
        raise Recurring(
            f"{report}; {used} steps were passed over before, all that guard.non_finite_steps allows: look at the data or optim.lr"
        )
    if settings.non_finite == "rewind":
        ranks.barrier()  # rank 0 adds to the list only after all ranks have counted it
        if ranks.first:
            files.append_rows(run / SKIPPED, [{"stage": stage, "step": step, "reason": str(report)}])
        raise Rewind(f"{report.what}: back to the newest checkpoint, and past this step from there; {report.where}")
    log.info(f"{report.what}, and ends without an update; {report.where}")


def steps_to_skip(run: Path, stage: str) -> frozenset[int]:
    """Return the steps of a stage, from 0, that end without an update: those that `rewind` has listed in RUN/skipped.jsonl."""
    return frozenset(row["step"] for row in files.read_rows(run / SKIPPED, _KINDS) if row["stage"] == stage)
