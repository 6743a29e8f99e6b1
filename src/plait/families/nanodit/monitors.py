"""Watch a training run: a monitor is called with every logged row, {metric: value}, in order, and returns warnings with advice.

Thresholds are at the top. A monitor warns once per fault, and again only if the fault had disappeared in between. A check is a function
from a row to a message, a sentence with advice, to False if all is well, or to None if the row lacks its metric.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from plait.families.nanodit.config import Config
from plait.families.nanodit.flow import BINS

Row = Mapping[str, Any]
"""One logged row of metrics, {name: value}."""
Monitor = Callable[[Row], list[str]]
"""A function from a logged row to warnings."""

PATIENCE = 10
"""Consecutive recorded rows with a fault before a monitor of training steps warns."""
SETTLED_STEP = 1000
"""Step before which large gradients are normal."""
RATIO_HIGH, RATIO_LOW = 1.5, 0.1  # RMS of the prediction over that of its target; the best prediction lies below 1
NORM_HIGH, NORM_LOW = 10.0, 1e-4
BIN_RISE = 1.5
"""A range's smoothed loss over the lowest it has been, above which a monitor warns."""
_SMOOTHING = 0.9
DIVERGENCE_LOW = 0.1
"""Relative distance of text-only and image-only samples: below, the conditions have no effect."""
DOMINANCE_HIGH = 0.9
"""Share of the way from text-only to image-only at which samples with both lie."""


@dataclass
class Sustained:
    """A monitor that warns when `check` returns a message for `patience` consecutive rows.

    Called with each logged row, it returns the warnings to print, one or none. Rows for which `check` returns None are ignored; False
    resets the count. It warns once, and again only after such a False.
    """

    check: Callable[[Row], str | bool | None]
    patience: int = PATIENCE
    _count: int = 0
    _warned: bool = False

    def __call__(self, row: Row) -> list[str]:
        """Return the warnings to print after this row: one or none."""
        message = self.check(row)
        if message is None:
            return []
        if not isinstance(message, str):
            self._count, self._warned = 0, False
            return []
        self._count += 1
        if self._count < self.patience or self._warned:
            return []
        self._warned = True
        return [message]


def prediction_rms(row: Row) -> str | bool | None:
    """Check that the prediction's RMS is at most 1.5 times that of its target, and after 1,000 steps at least 0.1 times.

    Returns a message if not, False if so, None for a row without these metrics.
    """
    if not {"loss/prediction_ms", "loss/target_ms", "step"} <= row.keys():
        return None
    prediction, target = math.sqrt(row["loss/prediction_ms"]), math.sqrt(row["loss/target_ms"])
    figures = f"step {row['step']}: the prediction's RMS is {prediction:.3f}, its target's {target:.3f}"
    if prediction > RATIO_HIGH * target:
        return f"{figures}: the model overshoots; lower optim.lr, and check that the latents are normalised"
    if prediction < RATIO_LOW * target and row["step"] > SETTLED_STEP:
        return f"{figures}: the model still says almost nothing; raise optim.lr, or check that its components train"
    return False


def gradient_norm(row: Row) -> str | bool | None:
    """Check that the gradient norm is at least 1e-4, and after 1,000 steps at most 10.

    Returns a message if not, False if so, None for a row without it and for those of the first 100 steps.
    """
    if "grad_norm" not in row or row.get("step", 0) <= SETTLED_STEP // 10:
        return None
    norm, figure = row["grad_norm"], f"step {row['step']}: the gradient norm is {row['grad_norm']:.3g}"
    if norm > NORM_HIGH and row["step"] > SETTLED_STEP:
        return f"{figure} and has stayed above {NORM_HIGH:g}: lower optim.lr, or look for broken samples with `plait data inspect`"
    if norm < NORM_LOW:
        return f"{figure}, nearly nothing: training has collapsed or is done; go back to an earlier checkpoint, or stop"
    return False


@dataclass
class BinRise:
    """A check that the loss in a range of t does not rise, which the average over all t would hide. `name`: t_low, t_mid or t_high.

    Called with each logged row, it returns a message if the smoothed loss is above 1.5 times its lowest, False if not, None for a row
    without that loss.
    """

    name: str
    _mean: float | None = None
    _lowest: float = math.inf
    _rows: int = 0

    def __call__(self, row: Row) -> str | bool | None:
        """Return a message if the smoothed loss exceeds BIN_RISE times its lowest, False if not, None for a row without it."""
        value = row.get(f"loss/{self.name}")
        if value is None:
            return None
        self._mean = value if self._mean is None else _SMOOTHING * self._mean + (1 - _SMOOTHING) * value
        self._rows += 1
        if self._rows >= PATIENCE:
            self._lowest = min(self._lowest, self._mean)
        if self._mean <= BIN_RISE * self._lowest:
            return False
        low, high = BINS[self.name]
        return (
            f"step {row.get('step')}: the loss for t from {low:g} to {high:g} is {self._mean:.3f}, {self._mean / self._lowest:.1f} times "
            "its lowest: training is unstable there; lower optim.lr"
        )


def divergence(row: Row) -> str | bool | None:
    """Check that samples generated by text alone and by image alone differ, by the evaluation result `eval/divergence`.

    Returns a message if it is under 0.1, else False; None for a row without it.
    """
    value = row.get("eval/divergence")
    if value is None:
        return None
    if value >= DIVERGENCE_LOW:
        return False
    return (
        f"step {row.get('step')}: samples by text alone and by image alone differ by {value:.3f} of their size (under {DIVERGENCE_LOW:g}): "
        "the conditions are not used; check captions and image features, and train longer"
    )


def dominance(row: Row) -> str | bool | None:
    """Check that samples generated by text and image do not equal those by one alone, by the result `eval/divergence/dominance`.

    Returns a message if it is under 0.1 or over 0.9 (the text or the image decides alone), else False; None for a row without it.
    """
    value = row.get("eval/divergence/dominance")
    if value is None:
        return None
    if 1 - DOMINANCE_HIGH <= value <= DOMINANCE_HIGH:
        return False
    strong, weak = ("image", "text") if value > DOMINANCE_HIGH else ("text", "image")
    return (
        f"step {row.get('step')}: the {strong} decides alone (dominance {value:.2f}; .5 is balance): raise sampling.{weak}_scale, "
        f"or give model.dropout.{weak}_only more"
    )


def monitors(section: Config) -> list[Monitor]:
    """Return new monitors for a run with this `model:` section; that of `dominance` only if the model takes reference images."""
    training = [Sustained(prediction_rms), Sustained(gradient_norm), *(Sustained(BinRise(name)) for name in BINS)]
    benches = [Sustained(divergence, patience=1)]
    return [*training, *benches, *([Sustained(dominance, patience=1)] if section.image_dim else [])]
