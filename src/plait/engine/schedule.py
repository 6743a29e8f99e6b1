"""The learning rate as a function of how far a stage is, counted in updates or in tokens.

A token is what the family's loss counts as one (`Loss.counts`): a position of the language model's sequence that is no padding. The count
of a step is known before its forward pass and is the same on any ranks, so the rate of an update is too.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from plait.config.schema import Component, Optim, Schedule
from plait.errors import PlaitError

TOKENS = "tokens"  # the count, among `Loss.counts`, that a schedule in tokens goes by
STAGE_TOKENS = "stage_tokens"
"""Key among a state's totals: the tokens of the running stage, which a schedule in tokens goes by."""


class Progress(NamedTuple):
    """How far a stage is, in steps or tokens (the schedule's unit): `before` and `after` an update; `end`: where the curve ends."""

    before: float
    after: float
    end: float


def progress_at(schedule: Schedule, step: int, steps: int, totals: Mapping[str, float], counts: Mapping[str, float]) -> Progress:
    """Return the progress before and after update `step` (from 0) of a stage of `steps`, in the schedule's unit.

    `totals`: the run's counters before the update. `counts`: what its batch adds, by the names of `Loss.counts`.
    """
    if schedule.units == "steps":
        return Progress(step, step + 1, schedule.decay_steps or steps)
    before = totals.get(STAGE_TOKENS, 0.0)
    return Progress(before, before + counts[TOKENS], schedule.decay_tokens or math.inf)


def check(schedule: Schedule, counts: Sequence[str], family: str) -> None:
    """Raise PlaitError for a schedule in tokens where `counts`, the totals that the family's loss counts, holds no `tokens`."""
    if schedule.units == TOKENS and TOKENS not in counts:
        raise PlaitError(f"optim.schedule.units is tokens, but family {family} counts none: use steps")


def with_warmup(optim: Optim, steps: int) -> Optim:
    """Return the settings with each warm-up given as a share (`warmup`) turned into steps or tokens. `steps`: the stage's length."""
    key = f"warmup_{optim.schedule.units}"
    total = steps if optim.schedule.units == "steps" else optim.schedule.decay_tokens or 0

    def counted(section: Schedule | Component) -> dict[str, int | None]:
        return {} if section.warmup is None else {"warmup": None, key: round(section.warmup * total)}

    components = {name: component.model_copy(update=counted(component)) for name, component in optim.components.items()}
    return optim.model_copy(update={"schedule": optim.schedule.model_copy(update=counted(optim.schedule)), "components": components})


def warmup_of(optim: Optim, component: str | None = None) -> int:
    """Return the warm-up of a component in the schedule's unit, steps or tokens. `component`: a part of the model; None: the common one."""
    schedule, overrides = optim.schedule, optim.components.get(component or "", Component())
    if schedule.units == "steps":
        return schedule.warmup_steps if overrides.warmup_steps is None else overrides.warmup_steps
    return schedule.warmup_tokens if overrides.warmup_tokens is None else overrides.warmup_tokens


def factor(optim: Optim, progress: Progress, warmup: float) -> float:
    """Return an update's learning rate over its peak, by the schedule of `optim`; `warmup`: of the component, in the schedule's unit."""
    schedule = optim.schedule
    return lr_factor(schedule.name, progress, warmup, schedule.min_lr / optim.lr, schedule.warmup_from)


def lr_factor(name: str, progress: Progress, warmup: float, floor: float = 0.0, start: float | None = None) -> float:
    """Return an update's learning rate over its peak, for the curve `name` (as `Schedule.name`). `floor`: f, that ratio at the end.

    In `warmup` W it is linear from `start` s (None: f): s + (1 - s) a / W with a the count after the update, so that update 0 already
    moves. Then, with p = (b - W) / (end - W) and b the count before it: constant 1; linear 1 - (1 - f) p; cosine
    f + (1 - f) (1 + cos(pi p)) / 2; inverse_sqrt max(f, sqrt(W / b)). After the warm-up none is ever below `floor`.
    """
    if progress.before < warmup:
        first = floor if start is None else start
        return first + (1 - first) * min(1.0, progress.after / warmup)
    if name == "constant":
        return 1.0
    if name == "inverse_sqrt":
        return max(floor, math.sqrt(max(warmup, 1) / max(progress.before, warmup, 1)))
    p = min(1.0, (progress.before - warmup) / max(1, progress.end - warmup))
    if name == "linear":
        return 1 - (1 - floor) * p
    return floor + (1 - floor) * (1 + math.cos(math.pi * p)) / 2
