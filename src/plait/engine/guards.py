"""Guards of a run: an audit of which parameters get gradients, and the list of unusable samples. Recurring, a PlaitError, ends the run."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from plait import files
from plait.config.secrets import shown
from plait.engine.loss import UnusableSample
from plait.engine.parallel.distributed import Ranks
from plait.errors import Recurring, first_names

log = logging.getLogger(__name__)

_NAMES_SHOWN = 5
_FIRST_STEPS = 10  # without any gradient: a text among pictures may leave one step without, by chance
_FEW_SAMPLES = 100


def audit(model: nn.Module) -> list[str]:
    """Return [a log line on trainable parameters without gradients] after backward, or []. Raises Recurring where a frozen one has one."""
    idle = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    leaking = [name for name, value in model.named_parameters() if not value.requires_grad and value.grad is not None]
    if leaking:
        raise Recurring(
            f"audit: {len(leaking)} frozen parameters have a gradient: {first_names(leaking)}; this is a defect of plait, please report it"
        )
    line = f"audit: {len(idle)} trainable parameters got no gradient in the first step and will not move: {first_names(idle)}"
    return [line] if idle else []


class GradientWatch:
    """Stop a run whose gradient is exactly 0, for all that trains, in each of the first ten steps after a start.

    Call it with each step's row of metrics; it then raises Recurring. `components`: what trains, for the message; `stop`: False only warns.
    """

    def __init__(self, components: Sequence[str], *, stop: bool) -> None:
        self.components, self.stop = components, stop
        self.zeros: int | None = 0
        """Steps so far, all of them with a gradient of 0; None once one was seen, or after the report."""

    def __call__(self, row: Mapping[str, Any], *, last: bool) -> None:
        """Check a step's `grad_norm`. `last`: the stage ends here. Then, or at the tenth step, raises Recurring, or warns, if all are 0."""
        if self.zeros is None or row.get("skipped"):
            return
        self.zeros = self.zeros + 1 if row["grad_norm"] == 0 else None
        if self.zeros is None or not (self.zeros == _FIRST_STEPS or last):
            return
        what = f"the gradient of {', '.join(self.components)} was exactly 0 in the first {self.zeros} steps, at a loss of {row['loss']:g}"
        self.zeros = None
        cure = "nothing that trains takes part in the loss of these samples: look at them with `plait data inspect`, and at trainable"
        if self.stop:
            raise Recurring(f"{what}; {cure}; to go on all the same, say guard.no_gradient=continue")
        log.warning(f"{what}; {cure}")


@dataclass
class Quarantine:
    """The file RUN/quarantine.jsonl of unusable samples. More than `max_fraction` of the samples drawn so far in the run stop it."""

    path: Path
    max_fraction: float

    def resume(self, step: int) -> None:
        """Remove the lines of steps after `step` from quarantine.jsonl: called on resume, because those steps are run again."""
        files.keep_rows(self.path, lambda row: row["step"] <= step, files.STEP_KINDS)

    def add(self, step: int, bad: Sequence[UnusableSample], totals: dict[str, float], ranks: Ranks) -> None:
        """Append the unusable samples of a step to quarantine.jsonl, and count them in the state's counters: "bad" of `totals`.

        `bad`: this rank's; every rank calls it, also with none. Each bad sample is replaced by another: one that was a replacement itself
        is listed, but not counted. Raises Recurring beyond `max_fraction` of `totals["samples"]`, taken as at least 100.
        """
        rows = [row for part in ranks.gather([self._row(step, sample) for sample in bad]) for row in part] if ranks.any(bool(bad)) else []
        if not rows:
            return
        totals["bad"] = totals.get("bad", 0) + sum(row["attempt"] == 0 for row in rows)
        if ranks.first:
            files.append_rows(self.path, rows)
        allowed = self.max_fraction * max(totals["samples"], _FEW_SAMPLES)
        if totals["bad"] > allowed:
            shown = "; ".join(f"{row['sample']}: {row['reason']}" for row in rows[:_NAMES_SHOWN])
            raise Recurring(
                f"{totals['bad']:.0f} of {totals['samples']:.0f} samples could not be used, more than guard.max_bad_fraction = "
                f"{self.max_fraction:g} allows; all are in {self.path}; the latest: {shown}"
            )

    @staticmethod
    def _row(step: int, sample: UnusableSample) -> dict[str, Any]:
        return {
            "step": step,
            "sample": shown(sample.name),
            "source": sample.id.source,
            "index": sample.id.index,
            "reason": shown(sample.reason),
            "replaced_by": sample.replaced_by.index,
            "attempt": sample.attempt,
        }
