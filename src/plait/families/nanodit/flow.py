"""The mathematics of rectified flow: straight paths from data to noise, velocities, and the random draws of one training sample.

z_t = (1 - t) x0 + t z1 with data x0, noise z1 ~ N(0, 1): t = 1 is noise, and the velocity v = dz/dt = z1 - x0 points from data to noise
(Liu et al. 2022, arXiv:2209.03003; Esser et al. 2024, arXiv:2403.03206, equation 13). SiT (arXiv:2401.08740) has the same convention.
Every draw takes a NumPy generator made from the sample's key. Legend: z, x0, noise (B, C, H, W), t (B,).
"""

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from plait.families.nanodit.config import Dropout, Time

T_FLOOR = 0.05
"""Smallest t in the division of x-prediction's training loss, v = (z - x) / t, which is unbounded near the data (Li & He 2025,
arXiv:2511.13720). Sampling divides by t itself: its last step then ends at the predicted x exactly."""

BINS = {"t_low": (0.0, 0.3), "t_mid": (0.3, 0.6), "t_high": (0.6, 1.0)}
"""Ranges of t whose losses are logged separately: t_low is about detail, t_mid about shape, t_high about layout."""


class Kept(NamedTuple):
    """Which conditions a training sample keeps after condition dropout: its text, its reference image, both or none."""

    text: bool
    image: bool


def interpolate(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return the noisy sample z_t = (1 - t) x0 + t noise, the network's input. `x0` and `noise` are (B, C, H, W), `t` (B,)."""
    t = _per_sample(t, x0)
    return (1 - t) * x0 + t * noise


def target(x0: Tensor, noise: Tensor, t: Tensor, prediction: str) -> Tensor:
    """Return the regression target (B, C, H, W) of the velocity: v = noise - x0.

    With `prediction` "x" it is (z - x0) / max(t, T_FLOOR), z the noisy sample, as `velocity` computes it with that floor: less than v for
    t < T_FLOOR = 0.05. `x0`: clean sample.
    """
    v = noise - x0
    if prediction == "v":
        return v
    t = _per_sample(t, v)
    return v * (t / t.clamp(min=T_FLOOR))


def velocity(output: Tensor, z: Tensor, t: Tensor, prediction: str, floor: float = 0.0) -> Tensor:
    """Convert the network's output to a velocity. `prediction` "v": it is one already; "x": it is x0, and v = (z - x0) / max(t, floor).

    `output` and `z`, the noisy sample at time t, are (B, C, H, W). `t` (B,) or `floor` must be above 0.
    """
    if prediction == "v":
        return output
    return (z - output) / _per_sample(t, z).clamp(min=floor)


def shifted(t: float, shift: float) -> float:
    """Shift a time towards noise for large images. With s = `shift` it is t' = s t / (1 + (s - 1) t); 1 changes nothing.

    It keeps the signal-to-noise ratio when an image has s^2 times as many pixels (Esser et al. 2024, equation 23).
    """
    return shift * t / (1 + (shift - 1) * t)


def draw_time(time: "Time", random: np.random.Generator) -> float:
    """Draw the t in (0, 1) of one training sample by the settings `time`: uniform, or sigmoid(N(loc, scale)); then `shifted`."""
    if time.sampling == "uniform":
        return shifted(float(random.random()), time.shift)
    return shifted(1 / (1 + math.exp(-(time.loc + time.scale * float(random.standard_normal())))), time.shift)


def draw_kept(dropout: "Dropout", random: np.random.Generator) -> Kept:
    """Draw which conditions (text, reference image) a training sample keeps: one of four outcomes, by the probabilities in `dropout`.

    Two independent masks of .2 would give "neither" .04 and "both" .64 in place of .10 and .70.
    """
    draw = float(random.random())
    if draw < dropout.neither:
        return Kept(False, False)
    if draw < dropout.neither + dropout.text_only:
        return Kept(True, False)
    if draw < dropout.neither + dropout.text_only + dropout.image_only:
        return Kept(False, True)
    return Kept(True, True)


def _per_sample(t: Tensor, like: Tensor) -> Tensor:
    return t.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))
