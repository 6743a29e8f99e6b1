"""The learning rate as a function of how far a stage is, counted in updates or in tokens.

A token is what the family's loss counts as one (`Loss.counts`): a position of the language model's sequence that is no padding. The count
of a step is known before its forward pass and is the same on any ranks, so the rate of an update is too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from plait.config.schema import Component, Optim, Schedule
from plait.errors import PlaitError

TOKENS = "tokens"
STAGE_TOKENS = "stage_tokens"
"""Of a state's totals: tokens of the running stage, which a schedule in tokens goes by."""


@dataclass(frozen=True)
class Moment:
    """An update, in the schedule's unit: what the stage had done `before` it and has done `after` it, and where the curve ends."""

    before: float
    after: float
    end: float


def moment(schedule: Schedule, step: int, steps: int, totals: Mapping[str, float], counted: Mapping[str, float]) -> Moment:
    """Update `step` (from 0) of a stage of `steps`, whose batch holds what was `counted`."""
    if schedule.units == "steps":
        return Moment(step, step + 1, schedule.decay_steps or steps)
    before = totals.get(STAGE_TOKENS, 0.0)
    return Moment(before, before + counted[TOKENS], schedule.decay_tokens or math.inf)


def check(schedule: Schedule, counts: Sequence[str], family: str) -> None:
    """Raise PlaitError for a schedule in tokens of a family that has none."""
    if schedule.units == TOKENS and TOKENS not in counts:
        raise PlaitError(f"optim.schedule.units is tokens, but family {family} counts none: use steps")


def warmup_of(optim: Optim, component: str | None = None) -> int:
    """The warm-up of a component (None: the common one), in the schedule's unit."""
    schedule, own = optim.schedule, optim.components.get(component or "", Component())
    if schedule.units == "steps":
        return schedule.warmup_steps if own.warmup_steps is None else own.warmup_steps
    return schedule.warmup_tokens if own.warmup_tokens is None else own.warmup_tokens


def lr_factor(name: str, at: Moment, warmup: float, floor: float = 0.0) -> float:
    """The learning rate of an update as a share of its peak, for one of the curves of `Schedule.name`.

    Warm-up is linear from `floor`: f + (1 - f) a / W with a the count after the update, so that update 0 already moves. Then, with
    p = (b - W) / (end - W) and b the count before it: constant 1; linear 1 - (1 - f) p; cosine f + (1 - f) (1 + cos(pi p)) / 2;
    inverse_sqrt max(f, sqrt(W / b)). None is ever below `floor`.
    """
    if at.before < warmup:
        return floor + (1 - floor) * min(1.0, at.after / warmup)
    if name == "constant":
        return 1.0
    if name == "inverse_sqrt":
        return max(floor, math.sqrt(max(warmup, 1) / max(at.before, warmup, 1)))
    progress = min(1.0, (at.before - warmup) / max(1, at.end - warmup))
    if name == "linear":
        return 1 - (1 - floor) * progress
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2


def curve(optim: Optim, steps: int, points: int) -> tuple[list[float], float, str]:
    """The common learning rate at `points` places of its curve, as shares of the peak; where it ends, and in which unit."""
    schedule, warmup = optim.schedule, warmup_of(optim)
    end = (schedule.decay_steps or steps) if schedule.units == "steps" else (schedule.decay_tokens or 4 * max(warmup, 1))
    places = [round(i * (end - 1) / (points - 1)) for i in range(points)]
    values = [lr_factor(schedule.name, Moment(place, place + 1, end), warmup, schedule.min_lr / optim.lr) for place in places]
    return values, end, schedule.units
