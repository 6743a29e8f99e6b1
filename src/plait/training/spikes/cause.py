"""Say what made a step stand out: one of its samples, the weights, a module of the model, or nothing by itself.

Compared are figures of the step's samples with those of the step before, both with the weights before the update.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_GAP = 2.0
"""A sample stands out where its figure is so many times that of the next one."""
_NAMED = 0.25
"""Share of a step's samples that may stand out, at most; more of them are no exceptions."""
_WORSE = 2.0
"""The weights are at fault where the samples of the step before have so many times the figure that they had."""
_RISES = 4.0
"""A module is at fault where its gradient has risen so many times as much as that of a typical module."""

Rows = Sequence[Mapping[str, Any]]


class Before(NamedTuple):
    """The step before: `rows` of its samples now, and its `then` and `now` figures (loss, grad_norm) by name; `modules`: gradient norms."""

    rows: Rows
    then: Mapping[str, float]
    now: Mapping[str, float]
    modules: Mapping[str, float]


def cause_of(rows: Rows, modules: Mapping[str, float], before: Before | None) -> str:
    """Return what is at fault, such as "sample captions:4711 (loss 38.2, the others 1.1 to 2.0; gradient norm ...)".

    `rows`: a dict per sample, with `sample` (its name), `loss`, and `gradient_norm` if it was computed. `modules`: gradient norms.
    """
    named = outstanding(rows, before.rows if before is not None else ())
    if named:
        others = [row for row in rows if row not in named] or (before.rows if before is not None else ())
        figures = [f"{word} {_values(named, name)}{_others(others, name)}" for name, word in _FIGURES.items() if name in named[0]]
        names = ", ".join(str(row["sample"]) for row in named)
        return f"sample{'s' if len(named) > 1 else ''} {names} ({'; '.join(figures)})"
    if before is not None:
        for name, now in before.now.items():
            then = before.then.get(name, 0.0)
            if then > 0 and now > _WORSE * then:
                return (
                    f"the weights: the samples of the step before now have a {_WORDS[name]} of {now:.4g}, and had {then:.4g} before the "
                    "last update (lower optim.lr or train.grad_clip)"
                )
        if rises := _rises(modules, before.modules):
            module, rise = max(rises.items(), key=lambda item: item[1])
            typical = statistics.median(rises.values())
            if len(rises) > 1 and rise > _RISES * typical:
                norms = f"gradient norm {modules[module]:.4g}, of the samples of the step before {before.modules[module]:.4g}"
                return f"module {module} ({norms}: {rise:.3g} times, a typical module {typical:.3g} times)"
    range_before = f"; those of the step before {_range(before.rows, 'loss')}" if before is not None else ""
    return f"no sample and no module by itself (losses {_range(rows, 'loss')}{range_before})"


_FIGURES = {"loss": "loss", "gradient_norm": "gradient norm"}
_WORDS = {"loss": "loss", "grad_norm": "gradient norm"}


def outstanding(rows: Rows, before: Rows) -> list[Mapping[str, Any]]:
    """Return the samples of `rows`, at most a quarter, whose loss or gradient norm is twice all others', those `before` included.

    Samples whose figures are not finite come first, all of them.
    """
    best, ratio = list[Mapping[str, Any]](), _GAP
    broken = [row for row in rows if not all(math.isfinite(row[name]) for name in _FIGURES if name in row)]
    if broken:
        return broken
    for name in _FIGURES:
        if not all(name in row for row in rows):
            continue
        ordered = sorted(rows, key=lambda row: -row[name])
        largest_before = max((row[name] for row in before), default=0.0)
        for count in range(1, max(1, int(_NAMED * len(rows))) + 1):
            following = max(ordered[count][name] if count < len(ordered) else 0.0, largest_before)
            gap = ordered[count - 1][name] / following if following > 0 else 0.0
            if gap >= ratio:
                best, ratio = ordered[:count], gap
    return best


def _rises(modules: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    return {name: norm / before[name] for name, norm in modules.items() if before.get(name)}


def _values(rows: Rows, name: str) -> str:
    return " and ".join(f"{row[name]:.4g}" for row in rows)


def _others(rows: Rows, name: str) -> str:
    return f", the others {_range(rows, name)}" if rows else ""


def _range(rows: Rows, name: str) -> str:
    values = [row[name] for row in rows]
    return f"{min(values):.4g} to {max(values):.4g}" if values else "unknown"
