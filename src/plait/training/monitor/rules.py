"""Judge by the recorded rows of a stage (part of a run) how its components learn, and warn once of each fault.

A component is a named part of the model; a connector is what leads from an encoder of pictures to the language model.
"""

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from plait.config.resolved import Resolved, StageView
from plait.config.schema import Component
from plait.config.show import override

Row = Mapping[str, Any]

CONNECTORS = ("projector", "connector")
PATIENCE, FEWEST_ROWS, SETTLED_STEP = 5, 2, 20
"""Recorded rows in a row (that have the figure) with a fault before it is told, those at the least, where rows are far apart, and the step
of a stage before which nothing is."""
PATIENCE_STEPS = 50
"""Steps over which the rows before a fault is told are spread, at the most, unless that is fewer than the least."""
STILL = 1e-6
"""Update over weights, in norms, below which a component does not learn. A run that learns has 1e-5 to 1e-2."""
JUMP = 0.2
"""The same above which it is torn about."""
DRIFT = 10.0
"""How many times a connector's update over its weights that of another component may be, if its rate is so many times as high:"""
DRIFT_RATE = 3.0
NO_GRADIENT = 1e-7
"""Norm of a component's gradient over that of all, below which it gets none."""
DEAD = 0.5
"""Share of a component's output units that are constant, or of a layer's units that get no gradient."""
GROWN = 200.0
"""Scale of an output over what it was at the first look: that of a connector drawn at random grows forty times in a run that learns."""
CLIPPED = 100.0
"""Norm of the gradient over train.grad_clip."""
WORSE, GAP, WIDE_GAP = 1.1, 0.6, 0.2
"""Held-out loss over its best, in two evaluations, and the training loss over it, from which a model learns its samples by heart; with the
last, any rise counts."""
_PEAK = 0.1
"""Share of a component's peak rate from which an update tells what one at the peak would be: not in the first steps, nor the last."""


class Rules:
    """A monitor of the rows of one stage: call it with each recorded row, in order; it returns warnings. Rows of others are ignored.

    `trained`: names of the components that train; `frozen`: of those that do not and never did; `start`: steps before the stage.
    """

    def __init__(self, resolved: Resolved, view: StageView, trained: Sequence[str], frozen: Sequence[str], *, start: int) -> None:
        self.resolved, self.view, self.trained, self.frozen = resolved, view, trained, frozen
        self.patience = max(FEWEST_ROWS, min(PATIENCE, PATIENCE_STEPS // view.config.track.every_steps))
        self.counts: dict[tuple[str, str], int] = {}
        self.told: set[tuple[str, str]] = set()
        self.first_scales: dict[str, float] = {}
        self.losses: deque[float] = deque(maxlen=self.patience)
        self.held_out: list[float] = []
        self.start = start

    def __call__(self, row: Row) -> list[str]:
        """Return warnings after this row."""
        if row.get("stage") != self.view.index:
            return []
        if isinstance(row.get("eval/loss"), float):
            return self._held_out(row)
        if not any(name.startswith("lr/") for name in row) or row.get("skipped"):
            return []
        self.losses.append(float(row["loss"]))
        warnings: list[str] = []
        looked = any(name.startswith("update/") for name in row)
        for rule in (*_OF_ROWS, *(_OF_LOOKS if looked else ())):
            for component in self.trained:
                message = rule(self, component, row)
                if message is None:
                    self.counts.pop((rule.__name__, component), None)
                else:
                    warnings += self._sustained(rule.__name__, component, message, row)
        if not self.told and self.frozen and not self.resolved.config.from_:
            warnings += self._frozen(row)
        return warnings

    def peak(self, component: str) -> float:
        """Return the peak learning rate of a component."""
        optim = self.view.config.optim
        own = optim.components.get(component, Component()).lr
        return optim.lr if own is None else own

    def rate(self, component: str, value: float) -> str:
        """Return the override that gives a component another rate."""
        return override(self.resolved, self.view, f"optim.components.{component}.lr", float(f"{value:.2g}"))

    def connectors(self) -> list[str]:
        """Return the connectors that train."""
        return [name for name in self.trained if name in CONNECTORS]

    def _sustained(self, rule: str, component: str, message: str, row: Row) -> Iterator[str]:
        """Yield the message where the fault has lasted, once."""
        place = (rule, component)
        self.counts[place] = self.counts.get(place, 0) + 1
        patience = FEWEST_ROWS if rule == _grown.__name__ else self.patience  # what has added up is no matter of one step
        if self.counts[place] >= patience and row["step"] - self.start >= SETTLED_STEP and place not in self.told:
            self.told.add(place)
            yield f"step {row['step']}: {message}"

    def _frozen(self, row: Row) -> Iterator[str]:
        """Yield a warning of a connector that stays as it was drawn at random, while what it feeds, or is fed by, trains."""
        for component in self.frozen:
            if component in CONNECTORS and ("frozen", component) not in self.told:
                self.told.add(("frozen", component))
                cure = override(self.resolved, self.view, "trainable", [component, *self.trained])
                yield f"step {row['step']}: {component} is frozen as it was drawn at random, and no stage before has trained it; {cure}"

    def _held_out(self, row: Row) -> list[str]:
        """Return a warning where the held-out loss rises and the training loss is far below it."""
        self.held_out.append(row["eval/loss"])
        best, train = min(self.held_out), statistics.fmean(self.losses) if self.losses else math.nan
        limit = best if train < WIDE_GAP * self.held_out[-1] else WORSE * best
        worse = len(self.held_out) > 2 and all(value > limit for value in self.held_out[-2:])
        if not (worse and train < GAP * self.held_out[-1]) or ("memorised", "") in self.told:
            return []
        self.told.add(("memorised", ""))
        return [
            f"step {row['step']}: the model learns its samples by heart: their loss is {train:.3g}, and that of held-out ones "
            f"{self.held_out[-1]:.3g}, which was {best:.3g}; more data, fewer passes (train.epochs), or "
            + override(self.resolved, self.view, "checkpoint.best", "loss")
        ]


def _still(rules: Rules, component: str, row: Row) -> str | None:
    update, rate, peak = row.get(f"update/{component}"), row.get(f"lr/{component}", 0.0), rules.peak(component)
    if update is None or rate < _PEAK * peak or update * peak / rate >= STILL:
        return None
    others = max((rules.peak(name) for name in rules.trained if name != component), default=peak)
    better = others if others > 10 * peak else 10 * peak
    text = f"{component} does not learn: an update moves it by {update:.1e} of its size, at a rate of {rate:.2g}"
    return f"{text}; {rules.rate(component, better)}"


def _jumping(rules: Rules, component: str, row: Row) -> str | None:
    update = row.get(f"update/{component}")
    if update is None or update <= JUMP:
        return None
    return (
        f"{component} is torn about: each update moves it by {update:.0%} of its size; {rules.rate(component, rules.peak(component) / 10)}"
    )


def _drifting(rules: Rules, component: str, row: Row) -> str | None:
    update = row.get(f"update/{component}", 0.0)
    connectors = [(row[f"update/{name}"], name) for name in rules.connectors() if f"update/{name}" in row]
    if component in CONNECTORS or not connectors or update <= DRIFT * max(connectors)[0] or max(connectors)[0] < STILL:
        return None
    slow, name = max(connectors)
    ratio = rules.peak(component) / rules.peak(name)
    if ratio < DRIFT_RATE:
        return None
    times = f"{update / slow:.0f} times as fast as {name}, which leads to it"
    text = f"{component} moves {times} ({update:.1e} and {slow:.1e} of their sizes), and has {ratio:.3g} times its rate"
    return f"{text}; {rules.rate(component, rules.peak(component) * slow / update)}"


def _without_gradient(rules: Rules, component: str, row: Row) -> str | None:
    norm, total = row.get(f"grad_norm/{component}"), row.get("grad_norm", 0.0)
    if norm is None or not total > 0 or norm > NO_GRADIENT * total:
        return None
    return (
        f"{component} gets no gradient: its norm is {norm:.1e} of {total:.3g}; nothing of the loss depends on it: does its input reach the "
        "answers (plait data inspect), and is anything in between detached or 0?"
    )


def _dead(rules: Rules, component: str, row: Row) -> str | None:
    dead = row.get(f"dead/{component}", 0.0)
    if dead < DEAD:
        return None
    return (
        f"{dead:.0%} of the units that {component} puts out are constant, whatever its input; "
        f"{rules.rate(component, rules.peak(component) / 10)} from an earlier checkpoint (plait fork), or begin again"
    )


def _idle(rules: Rules, component: str, row: Row) -> str | None:
    share = row.get(f"idle/{component}", 0.0)
    if share < DEAD:
        return None
    return (
        f"{share:.0%} of the units of {row.get(f'idle_layer/{component}', 'a layer')} get no gradient from any sample: they are dead or "
        f"saturated, whatever their input; {rules.rate(component, rules.peak(component) / 10)} from an earlier checkpoint (plait fork), "
        "smaller inputs or weights, or begin again"
    )


def _grown(rules: Rules, component: str, row: Row) -> str | None:
    scale = row.get(f"activation/{component}")
    if scale is None:
        return None
    first = rules.first_scales.get(component, 0.0)
    if not first and (component not in rules.first_scales or row["step"] - rules.start >= SETTLED_STEP):
        first = rules.first_scales[component] = scale  # a layer whose weights begin at zero has a scale once it has moved
    if scale <= GROWN * first or not first:
        return None
    text = f"what {component} puts out has grown to {scale:.3g}, and was {first:.3g} at first: what reads it saturates"
    return f"{text}; {rules.rate(component, rules.peak(component) / 10)}"


def _clipped(rules: Rules, component: str, row: Row) -> str | None:
    limit, norm = rules.view.config.train.grad_clip, row.get("grad_norm", 0.0)
    if limit is None or component != rules.trained[0] or not norm > CLIPPED * limit:
        return None
    text = f"the gradient's norm is {norm:.3g}, of which train.grad_clip leaves {limit / norm:.1%}: is the loss of the right scale?"
    return f"{text} {override(rules.resolved, rules.view, 'optim.lr', float(f'{rules.view.config.optim.lr / 3:.2g}'))}"


Rule = Callable[[Rules, str, Row], str | None]

_OF_ROWS: Sequence[Rule] = (_without_gradient, _clipped)
_OF_LOOKS: Sequence[Rule] = (_still, _jumping, _drifting, _dead, _idle, _grown)
"""Judge figures that only rows of steps have which were looked at: another row neither confirms a fault nor ends it."""
