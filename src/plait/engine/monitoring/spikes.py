"""Find steps whose loss or gradient norm is finite and stands out from those before, and respond as `guard.spikes` says.

The rise of a figure is the logarithm of its ratio to its median over the last 25 steps. It is compared with the last 200 rises of the stage
(part of a run): its distance above their median must be more than 9 standard deviations, estimated by the median absolute deviation, and
more than 3.5 times that of the second largest of them, and a factor of 1.3. The first condition holds for noise of any size, the second for
long tails, sources with unequal losses, and a level that is changing. Twenty times the second largest is enough in any case.
"""

import itertools
import logging
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.config.sections.guard import Guard
from plait.engine import nonfinite_report
from plait.engine.loss import StepBatch
from plait.engine.nonfinite_report import Report
from plait.engine.parallel.distributed import Ranks
from plait.engine.state import State

log = logging.getLogger(__name__)

NEAR, WINDOW = 25, 200
"""Steps whose median a figure is compared with, and number of rises that a rise is compared with."""
FEWEST = 40
"""Rises before which none stands out: their spread is not known."""
WATCHED = ("loss", "grad_norm")
"""The figures of a step that are compared."""
_RISES = " rises"  # after the name of a figure: its rises, in `State.recent`
_FEWEST_NEAR = 10
_DEVIATIONS, _REACHES, _FACTOR, _ENOUGH = 9.0, 3.5, math.log(1.3), math.log(20)
_TO_DEVIATION = 1.4826  # standard deviation of a normal distribution / its median absolute deviation

Row = Mapping[str, Any]
Look = Callable[[str, Row, StepBatch], str]
"""Given what stands out, a step's metrics and its batch, before the update, on all ranks: returns what is at fault, for the message."""


def limit(rises: Sequence[float], rise: float) -> float | None:
    """Return the largest usual rise after `rises`, if `rise` is beyond it; else None, also after fewer than 40."""
    as_large = itertools.islice((earlier for earlier in rises if earlier >= rise), 2)
    if len(rises) < FEWEST or len([*as_large]) > 1:
        return None
    ordered = sorted(rises)
    median = statistics.median(ordered)
    deviation = _TO_DEVIATION * statistics.median(abs(earlier - median) for earlier in ordered)
    reach = ordered[-2] - median
    usual = median + max(_FACTOR, min(max(_DEVIATIONS * deviation, _REACHES * reach), reach + _ENOUGH))
    return usual if rise > usual else None


def compare(recent: dict[str, list[float]], name: str, value: float) -> str:
    """Compare a step's figure with those of the steps before, in `recent`, and add it; returns what stands out.

    Added is the figure, or the largest usual one. Returned is "", or such as "loss 38.2 (the 25 steps before: median 1.21, at most 1.9)".
    Figures that are not positive have no logarithm, and are passed over.
    """
    if not 0 < value < math.inf:
        return ""
    near, rises = recent.setdefault(name, []), recent.setdefault(name + _RISES, [])
    found = ""
    if len(near) >= _FEWEST_NEAR:
        median = statistics.median(near)
        rise = math.log(value / median)
        usual = limit(rises, rise)
        if usual is not None:
            found = f"{name} {value:.4g} (the {len(near)} steps before: median {median:.4g}, at most {max(near):.4g})"
            rise, value = usual, median * math.exp(usual)
        rises.append(rise)
        del rises[:-WINDOW]
    near.append(value)
    del near[:-NEAR]
    return found


@dataclass
class SpikeWatch:
    """Compares each step of a stage with those before it, in `state.recent`, and responds to one that stands out."""

    state: State
    guard: Guard
    """Settings, of which `spikes` says what to do: `tell`, `skip` or `rewind`."""
    ranks: Ranks
    run: Path
    stage: str
    look: Look
    finding: str = ""
    """What stands out in the present step; "" for nothing."""

    def stands_out(self, row: Row) -> bool:
        """Compare a step's `loss` and `grad_norm` with those before, and add them; returns whether one stands out."""
        self.finding = ", ".join(filter(None, [compare(self.state.recent, name, float(row[name])) for name in WATCHED]))
        return bool(self.finding)

    def respond(self, row: Row, batch: StepBatch) -> tuple[dict[str, Any], bool]:
        """Look into the step and tell what is found; returns (its metrics, whether to update). All ranks call this, before the update.

        Raises Rewind for rewind, and Recurring where `guard.non_finite_steps` are used up, both as for a step that is not finite.
        """
        state, policy = self.state, self.guard.spikes
        finding = next(filter(None, self.ranks.gather(self.finding)))
        row = {**row, "spike": 1}
        report = Report(f"step {state.step + 1} stands out: {finding}", self.look(finding, row, batch))
        if policy == "tell":
            log.warning(f"{report}; it is trained on (guard.spikes is tell)")
            return row, True
        settings, used = self.guard.model_copy(update={"non_finite": policy}), int(state.totals.get("skipped", 0))
        nonfinite_report.respond(report, settings, self.ranks, skipped=used, run=self.run, stage=self.stage, step=state.stage_step)
        return row | {"skipped": 1}, False
