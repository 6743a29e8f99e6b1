"""A step whose loss or gradient is not finite: found before the update on all ranks, reported, then stopped at, skipped, or gone back from.

`guard.non_finite` chooses. skip: the step ends without an update. rewind: the step goes on a list in the run directory, the run goes back
to its newest intact checkpoint, and passes over the step when it gets there; so does every later start, which makes it exact.
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
from plait.engine.parallel.distributed import Ranks, local
from plait.errors import Stopped

log = logging.getLogger(__name__)

LIST = "skipped.jsonl"
REPORTS = "non-finite"
_NAMES_SHOWN = 5


class Rewind(Exception):
    """Raised on all ranks: go back to the newest intact checkpoint; the step at fault is on the list."""


def found(values: Mapping[str, float], ranks: Ranks) -> bool:
    """Whether any of these numbers is not finite on any rank; every rank gets the same answer."""
    return ranks.any(not all(map(math.isfinite, values.values())))


@dataclass(frozen=True)
class Report:
    """What is wrong in a step: the numbers, the samples (source:index@epoch) and where gradients are not finite; all in a file too."""

    what: str
    where: str

    def __str__(self) -> str:
        return f"{self.what}; {self.where}"


def report(step: int, values: Mapping[str, float], ids: Sequence[Any], model: nn.Module, ranks: Ranks, run: Path) -> Report:
    """Gather it from all ranks. RUN/non-finite/step-N.json has the statistics of every module too, as rank 0 sees them."""
    bad = {name: value for name, value in values.items() if not math.isfinite(value)}
    samples = [identity for part in ranks.gather([f"{i.source}:{i.index}@{i.epoch}" for i in ids]) for identity in part]
    own = [name for name, value in model.named_parameters() if value.grad is not None and not local(value.grad).isfinite().all()]
    broken = list(dict.fromkeys(name for part in ranks.gather(own) for name in part))
    path = run / REPORTS / f"step-{step:08d}.json"
    if ranks.first:
        figures = {name: str(value) if name in bad else value for name, value in values.items()}
        files.write_json(path, {"step": step, "figures": figures, "samples": samples, "gradients": broken, "modules": statistics(model)})
    shown = ", ".join(f"{name} = {value}" for name, value in bad.items()) or "another rank's loss"
    where = f"samples {' '.join(samples)}; gradients not finite in {some(broken)}; each module in {path}"
    return Report(f"step {step} is not finite ({shown})", where)


def statistics(model: nn.Module) -> dict[str, dict[str, Any]]:
    """For each module with weights of its own: the largest weight, the largest finite gradient, and how many gradients are not finite."""
    found = {}
    for name, module in model.named_modules():
        own = [local(value.detach()) for value in module.parameters(recurse=False) if value.numel()]
        if not own:
            continue
        gradients = [local(value.grad) for value in module.parameters(recurse=False) if value.grad is not None]
        finite = [gradient[gradient.isfinite()] for gradient in gradients]
        found[name] = {
            "weight_max": str(max(float(value.abs().max()) for value in own)),
            "gradient_max": max((float(value.abs().max()) for value in finite if value.numel()), default=None),
            "gradients_not_finite": sum(int((~gradient.isfinite()).sum()) for gradient in gradients),
        }
    return found


def some(names: Sequence[str]) -> str:
    """The first few names."""
    shown = ", ".join(names[:_NAMES_SHOWN]) or "none"
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN} more"


def answer(said: Report, settings: Guard, skipped: float, ranks: Ranks, run: Path, stage: str, step: int) -> None:
    """What `guard.non_finite` says; returns when the step (from 0, of its stage) is to end without an update, as rank 0 then tells.

    `skipped`: how many steps of the run did already. Raises Stopped for stop, or when guard.non_finite_steps are used up, and Rewind.
    """
    if settings.non_finite == "stop":
        look = "look at these samples with `plait data inspect`, lower optim.lr, or set guard.non_finite"
        raise Stopped(f"{said.what}, stopped before the update; {said.where}; {look}")
    used = skipped if settings.non_finite == "skip" else len(files.read_rows(run / LIST))
    if used >= settings.non_finite_steps:
        raise Stopped(
            f"{said}; {used:.0f} steps were passed over before, all that guard.non_finite_steps allows: look at the data or optim.lr"
        )
    if settings.non_finite == "rewind":
        ranks.barrier()  # nobody adds to the list before all have counted it
        if ranks.first:
            files.append_rows(run / LIST, [{"stage": stage, "step": step, "reason": str(said)}])
        raise Rewind(f"{said.what}: back to the newest checkpoint, and past this step from there; {said.where}")
    log.info(f"{said.what}, and ends without an update; {said.where}")


def listed(run: Path, stage: str) -> frozenset[int]:
    """The steps of a stage (from 0) that are to be passed over."""
    return frozenset(row["step"] for row in files.read_rows(run / LIST) if row["stage"] == stage)
