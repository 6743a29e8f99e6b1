"""Steps whose loss or gradient is not finite: detected before the update on all ranks, reported, then handled as `guard.non_finite` says.

stop: the run ends before the update. skip: the step ends without an update. rewind: the step goes on a list in the run directory, the run
goes back to its newest intact checkpoint and skips the step when it gets there; so does every later start, which keeps the run exact.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from plait import files
from plait.config.schema import Guard
from plait.engine.loss import SampleId
from plait.engine.parallel.distributed import Ranks, local
from plait.errors import Stopped

log = logging.getLogger(__name__)

SKIPPED = "skipped.jsonl"
_KINDS = {"step": int, "stage": str}
"""In a run directory: the steps that `rewind` skips."""
REPORTS = "non-finite"
"""In a run directory: the folder of reports."""
_NAMES_SHOWN = 5


class Rewind(Exception):
    """Raised on all ranks: the run must go back to its newest intact checkpoint; the step at fault is on the list of skipped ones."""


def any_not_finite(values: Mapping[str, float], ranks: Ranks) -> bool:
    """Return whether any of these numbers is nan or infinite on any rank; all ranks call this and get the same answer."""
    return ranks.any(not all(map(math.isfinite, values.values())))


@dataclass(frozen=True)
class Report:
    """A non-finite step as text: `what` (step, numbers) and `where` (samples as source:index@epoch, parameters with bad gradients)."""

    what: str
    where: str

    def __str__(self) -> str:
        return f"{self.what}; {self.where}"


def make_report(step: int, values: Mapping[str, float], ids: Sequence[SampleId], *, model: nn.Module, ranks: Ranks, run: Path) -> Report:
    """Return a report of step `step` of the run, which is not finite, from the findings of all ranks; all of them call this.

    `values`: its losses and gradient norm by name. `ids`: this rank's samples. `run`: the run directory. Also written to
    RUN/non-finite/step-N.json, with rank 0's statistics of every module.
    """
    bad = {name: value for name, value in values.items() if not math.isfinite(value)}
    samples = [sample for part in ranks.gather([f"{i.source}:{i.index}@{i.epoch}" for i in ids]) for sample in part]
    names = [name for name, value in model.named_parameters() if value.grad is not None and not local(value.grad).isfinite().all()]
    broken = list(dict.fromkeys(name for part in ranks.gather(names) for name in part))
    path = run / REPORTS / f"step-{step:08d}.json"
    if ranks.first:
        figures = {name: str(value) if name in bad else value for name, value in values.items()}
        files.write_json(path, {"step": step, "figures": figures, "samples": samples, "gradients": broken, "modules": statistics(model)})
    shown = ", ".join(f"{name} = {value}" for name, value in bad.items()) or "another rank's loss"
    where = f"samples {' '.join(samples)}; gradients not finite in {first_names(broken)}; each module in {path}"
    return Report(f"step {step} is not finite ({shown})", where)


def statistics(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return {module name: {"weight_max", "gradient_max", "gradients_not_finite"}} for each module that has parameters of its own.

    `weight_max`: largest absolute weight, as text, for it may be nan; `gradient_max`: largest finite gradient, None without gradients.
    """
    by_module = {}
    for name, module in model.named_modules():
        weights = [local(value.detach()) for value in module.parameters(recurse=False) if value.numel()]
        if not weights:
            continue
        gradients = [local(value.grad) for value in module.parameters(recurse=False) if value.grad is not None]
        finite = [gradient[gradient.isfinite()] for gradient in gradients]
        by_module[name] = {
            "weight_max": str(max(float(value.abs().max()) for value in weights)),
            "gradient_max": max((float(value.abs().max()) for value in finite if value.numel()), default=None),
            "gradients_not_finite": sum(int((~gradient.isfinite()).sum()) for gradient in gradients),
        }
    return by_module


def first_names(names: Sequence[str]) -> str:
    """Join the first five names, as "a, b, c, d, e and 2 more", for messages about many parameters; "none" for no name."""
    shown = ", ".join(names[:_NAMES_SHOWN]) or "none"
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN} more"


def respond(report: Report, settings: Guard, ranks: Ranks, *, skipped: int, run: Path, stage: str, step: int) -> None:
    """Stop, skip or rewind after a non-finite step, as `guard.non_finite` says; returns only for skip: the caller makes no update.

    `step`: of the stage, from 0. `skipped`: how many steps of the run were skipped before. Raises Stopped for stop, or when
    `guard.non_finite_steps` are used up, and Rewind for rewind.
    """
    if settings.non_finite == "stop":
        look = "look at these samples with `plait data inspect`, lower optim.lr, or set guard.non_finite"
        raise Stopped(f"{report.what}, stopped before the update; {report.where}; {look}")
    used = skipped if settings.non_finite == "skip" else len(files.read_rows(run / SKIPPED, _KINDS))
    if used >= settings.non_finite_steps:
        raise Stopped(
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
