"""What must not pass unseen: gradients where none belong, samples that cannot be read."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from plait import files
from plait.engine.nonfinite import some
from plait.engine.parallel.distributed import Ranks
from plait.errors import Stopped

_NAMES_SHOWN = 5
_FEW_SAMPLES = 100


def audit(model: nn.Module) -> list[str]:
    """What is odd about the gradients of a stage's first step, one line each: trainable without one, frozen with one."""
    idle = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    leaking = [name for name, value in model.named_parameters() if not value.requires_grad and value.grad is not None]
    if leaking:
        raise Stopped(
            f"audit: {len(leaking)} frozen parameters have a gradient: {some(leaking)}; this is a defect of plait, please report it"
        )
    said = f"audit: {len(idle)} trainable parameters got no gradient in the first step and will not move: {some(idle)}"
    return [said] if idle else []


@dataclass
class Quarantine:
    """`quarantine.jsonl`: the samples that could not be used, with reason and replacement; stops the run when they are too many."""

    path: Path
    max_fraction: float

    def resume(self, step: int) -> None:
        """Forget what was listed after update `step`: those steps are run again."""
        files.keep_rows(self.path, lambda row: row["step"] <= step)

    def add(self, step: int, bad: Iterable[Any], totals: dict[str, float], ranks: Ranks) -> None:
        """List the bad samples of a step from every rank and hold their number against all samples so far.

        Raises Stopped beyond `max_fraction` of the samples (counted as at least 100) with the latest reasons.
        """
        rows = [row for part in ranks.gather([self._row(step, item) for item in bad]) for row in part] if ranks.any(bool(bad)) else []
        if not rows:
            return
        totals["bad"] = totals.get("bad", 0) + len(rows)
        if ranks.first:
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
