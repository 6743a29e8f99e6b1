"""Report a step whose loss or gradient is not finite, with samples, parameters and statistics of modules, and respond to it."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from plait import files
from plait.config.sections.guard import Guard
from plait.engine.nonfinite import KINDS, SKIPPED, Rewind
from plait.engine.parallel.distributed import Ranks, local
from plait.errors import Recurring, first_names

log = logging.getLogger(__name__)

REPORTS = "non-finite"
"""The folder of reports in a run directory."""


@dataclass(frozen=True)
class Report:
    """A non-finite step as text: `what` (step, numbers) and `where` (samples as source:index@epoch, parameters with bad gradients)."""

    what: str
    where: str

    def __str__(self) -> str:
        return f"{self.what}; {self.where}"


def make_report(step: int, values: Mapping[str, float], ids: Sequence[str], *, model: nn.Module, ranks: Ranks, run: Path) -> Report:
    """Return a report of step `step` of the run, whose loss or gradient is not finite, from what all ranks found. All call this.

    `values`: its losses and gradient norm by name. `ids`: this rank's samples, as source:index@epoch. `run`: the run directory.
    Also written to RUN/non-finite/step-N.json, with rank 0's statistics of every module.
    """
    bad = {name: value for name, value in values.items() if not math.isfinite(value)}
    samples = [sample for part in ranks.gather(list(ids)) for sample in part]
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

    `weight_max`: largest absolute weight, as text, for it may be nan; `gradient_max`: largest finite gradient, None without gradients;
    `gradients_not_finite`: how many values of the module's gradients are infinite or nan, 0 without gradients. All are of this rank's part.
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


def respond(report: Report, settings: Guard, ranks: Ranks, *, skipped: int, run: Path, stage: str, step: int) -> None:
    """Stop, skip or rewind after a non-finite step, as `guard.non_finite` says; returns only for skip: the caller makes no update.

    `settings`: the section `guard`. `run`: the run directory. `step`: of the stage, from 0. `skipped`: steps of the run skipped before.
    Raises Recurring for stop, or when `guard.non_finite_steps` are used up (a PlaitError that ends the run), and Rewind for rewind.
    """
    if settings.non_finite == "stop":
        look = "look at these samples with `plait data inspect`, lower optim.lr, or set guard.non_finite"
        raise Recurring(f"{report.what}, stopped before the update; {report.where}; {look}")
    used = skipped if settings.non_finite == "skip" else len(files.read_rows(run / SKIPPED, KINDS))
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
