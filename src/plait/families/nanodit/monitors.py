"""What is watched while training: each monitor reads the recorded rows in order and answers with advice when something has gone wrong.

Thresholds stand at the top. A monitor speaks once, and again only after things were well in between.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from plait.families.nanodit.config import Config
from plait.families.nanodit.flow import BINS

Row = Mapping[str, Any]
Monitor = Callable[[Row], list[str]]

PATIENCE = 10  # recorded rows in a row before a monitor of training steps speaks
SETTLED_STEP = 1000  # before it, large gradients are no news
RATIO_HIGH, RATIO_LOW = 1.5, 0.1  # RMS of the prediction over that of its target; the best prediction lies below 1
NORM_HIGH, NORM_LOW = 10.0, 1e-4
BIN_RISE = 1.5  # a range's smoothed loss over the lowest it has been
_SMOOTHING = 0.9
DIVERGENCE_LOW = 0.1  # relative distance of text-only and image-only samples: below, the conditions say nothing
DOMINANCE_HIGH = 0.9  # share of the way from text-only to image-only at which samples with both lie


@dataclass
class Sustained:
    """Speaks when `wrong(row)` gives a text for `patience` rows in a row; rows for which it gives None do not count."""

    wrong: Callable[[Row], str | bool | None]
    patience: int = PATIENCE
    _count: int = 0
    _spoke: bool = False

    def __call__(self, row: Row) -> list[str]:
        found = self.wrong(row)
        if found is None:
            return []
        if not isinstance(found, str):
            self._count, self._spoke = 0, False
            return []
        self._count += 1
        if self._count < self.patience or self._spoke:
            return []
        self._spoke = True
        return [found]


def prediction_rms(row: Row) -> str | bool | None:
    """The prediction's RMS against its target's. On unit data the target's is 1.414, not 1."""
    if not {"loss/prediction_ms", "loss/target_ms", "step"} <= row.keys():
        return None
    ours, theirs = math.sqrt(row["loss/prediction_ms"]), math.sqrt(row["loss/target_ms"])
    said = f"step {row['step']}: the prediction's RMS is {ours:.3f}, its target's {theirs:.3f}"
    if ours > RATIO_HIGH * theirs:
        return f"{said}: the model overshoots; lower optim.lr, and check that the latents are normalised"
    if ours < RATIO_LOW * theirs and row["step"] > SETTLED_STEP:
        return f"{said}: the model still says almost nothing; raise optim.lr, or check that its components train"
    return False


def gradient_norm(row: Row) -> str | bool | None:
    """Sustained large norms after the first thousand steps, or none at all."""
    if "grad_norm" not in row or row.get("step", 0) <= SETTLED_STEP // 10:
        return None
    norm, said = row["grad_norm"], f"step {row['step']}: the gradient norm is {row['grad_norm']:.3g}"
    if norm > NORM_HIGH and row["step"] > SETTLED_STEP:
        return f"{said} and has stayed above {NORM_HIGH:g}: lower optim.lr, or look for broken samples with `plait data inspect`"
    if norm < NORM_LOW:
        return f"{said}, nearly nothing: training has collapsed or is done; go back to an earlier checkpoint, or stop"
    return False


@dataclass
class BinRise:
    """A range of t whose loss climbs while others fall: averaged losses hide it."""

    name: str
    _mean: float | None = None
    _lowest: float = math.inf
    _rows: deque[None] = field(default_factory=lambda: deque(maxlen=PATIENCE))

    def __call__(self, row: Row) -> str | bool | None:
        value = row.get(f"loss/{self.name}")
        if value is None:
            return None
        self._mean = value if self._mean is None else _SMOOTHING * self._mean + (1 - _SMOOTHING) * value
        self._rows.append(None)
        if len(self._rows) == PATIENCE:
            self._lowest = min(self._lowest, self._mean)
        if self._mean <= BIN_RISE * self._lowest:
            return False
        low, high = BINS[self.name]
        return (
            f"step {row.get('step')}: the loss for t from {low:g} to {high:g} is {self._mean:.3f}, {self._mean / self._lowest:.1f} times "
            "its lowest: training is unstable there; lower optim.lr"
        )


def divergence(row: Row) -> str | bool | None:
    """Samples by text alone and by image alone, from the same noise, must differ."""
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
    """Samples with both conditions must not lie where one of them alone puts them."""
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
    """Fresh monitors of a run."""
    trained = [Sustained(prediction_rms), Sustained(gradient_norm), *(Sustained(BinRise(name)) for name in BINS)]
    judged = [Sustained(divergence, patience=1)]
    return [*trained, *judged, *([Sustained(dominance, patience=1)] if section.image_dim else [])]
