"""What must not pass unseen: numbers that are not finite, gradients where none belong, samples that cannot be read."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from plait import files
from plait.engine.distributed import World, local
from plait.errors import Stopped

_NAMES_SHOWN = 5
_FEW_SAMPLES = 100


def assert_finite(step: int, values: dict[str, float], ids: Sequence[Any], model: nn.Module, world: World) -> None:
    """Stop all ranks before the update when a loss or the gradient norm is not finite on any.

    Raises Stopped with the values, the sample ids of the step (source:index@epoch) and the modules whose gradients are not finite.
    """
    bad = {name: value for name, value in values.items() if not math.isfinite(value)}
    if not world.any(bool(bad)):
        return
    shown = ", ".join(f"{name} = {value}" for name, value in bad.items()) or "another rank's loss"
    everyone = [identity for part in world.gather([f"{i.source}:{i.index}@{i.epoch}" for i in ids]) for identity in part]
    own = [name for name, value in model.named_parameters() if value.grad is not None and not local(value.grad).isfinite().all()]
    broken = list(dict.fromkeys(name for part in world.gather(own) for name in part))
    raise Stopped(
        f"step {step} is not finite ({shown}), stopped before the update; samples {' '.join(everyone)}; "
        f"gradients not finite in {_some(broken)}; look at these samples with `plait data inspect`, or lower optim.lr"
    )


def audit(model: nn.Module) -> list[str]:
    """What is odd about the gradients of a stage's first step, one line each: trainable without one, frozen with one."""
    idle = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    leaking = [name for name, value in model.named_parameters() if not value.requires_grad and value.grad is not None]
    lines = []
    if idle:
        lines.append(f"audit: {len(idle)} trainable parameters got no gradient in the first step and will not move: {_some(idle)}")
    if leaking:
        raise Stopped(
            f"audit: {len(leaking)} frozen parameters have a gradient: {_some(leaking)}; this is a defect of plait, please report it"
        )
    return lines


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN]) or "none"
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN} more"


@dataclass
class Quarantine:
    """`quarantine.jsonl`: the samples that could not be used, with reason and replacement; stops the run when they are too many."""

    path: Path
    max_fraction: float

    def resume(self, step: int) -> None:
        """Forget what was listed after update `step`: those steps are run again."""
        files.keep_rows(self.path, lambda row: row["step"] <= step)

    def add(self, step: int, bad: Iterable[Any], totals: dict[str, float], world: World) -> None:
        """List the bad samples of a step from every rank and hold their number against all samples so far.

        Raises Stopped beyond `max_fraction` of the samples (counted as at least 100) with the latest reasons.
        """
        rows = [row for part in world.gather([self._row(step, item) for item in bad]) for row in part] if world.any(bool(bad)) else []
        if not rows:
            return
        totals["bad"] = totals.get("bad", 0) + len(rows)
        if world.first:
            files.append_rows(self.path, rows)
        allowed = self.max_fraction * max(totals["samples"], _FEW_SAMPLES)
        if totals["bad"] > allowed:
            shown = "; ".join(f"{row['sample']}: {row['reason']}" for row in rows[:_NAMES_SHOWN])
            raise Stopped(
                f"{totals['bad']:.0f} of {totals['samples']:.0f} samples could not be used, more than guard.max_bad_fraction = "
                f"{self.max_fraction:g} allows; all are in {self.path}; the latest: {shown}"
            )

    @staticmethod
    def _row(step: int, item: Any) -> dict[str, Any]:
        return {
            "step": step,
            "sample": item.name,
            "source": item.id.source,
            "index": item.id.index,
            "reason": item.reason,
            "replaced_by": item.replaced_by.index,
        }
