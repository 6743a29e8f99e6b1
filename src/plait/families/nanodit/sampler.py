"""From noise to samples: the velocity integrated from t = 1 to 0, with guidance by text and by image in one batched pass.

Guidance is a linear combination of the velocities under parts of the conditions, so it is written as a table: part -> coefficient.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from plait.families.nanodit import flow
from plait.families.nanodit.config import Sampling
from plait.families.nanodit.inputs import Conditions, Inputs, noise

Velocity = Callable[[Tensor, float], Tensor]
"""(z (B, C, H, W), t) -> dz/dt."""

NEITHER, TEXT, IMAGE, BOTH = (False, False), (True, False), (False, True), (True, True)
Table = dict[tuple[bool, bool], float]


@dataclass(frozen=True)
class Request:
    """One picture to draw: its conditions, its (C, H, W), and the key of its noise."""

    conditions: Conditions
    shape: tuple[int, int, int]
    key: int


def combination(sampling: Sampling) -> Table:
    """Coefficients of the velocities under (text?, image?), which sum to 1.

    two_scale: v = v_u + s_t (v_t - v_u) + s_d (v_d - v_u). joint: v = v_u + s_d (v_d - v_u) + s_t (v_b - v_d), where v_b has both
    (InstructPix2Pix, arXiv:2211.09800, equation 3).
    """
    text, image = sampling.text_scale, sampling.image_scale
    if sampling.guidance == "joint":
        return {NEITHER: 1 - image, IMAGE: image - text, BOTH: text}
    return {NEITHER: 1 - text - image, TEXT: text, IMAGE: image}


def times(sampling: Sampling) -> list[float]:
    """The grid of t from 1 to 0: uniform, or quadratic (finer towards the data); then shifted."""
    even = [1 - i / sampling.steps for i in range(sampling.steps + 1)]
    placed = [t * t for t in even] if sampling.grid == "quadratic" else even
    return [flow.shifted(t, sampling.shift) for t in placed]


def integrate(velocity: Velocity, z: Tensor, grid: Sequence[float], solver: str) -> Tensor:
    """z at the grid's end. Euler, or Heun (the trapezoid rule, whose last step is Euler's: Karras et al. 2022, algorithm 1)."""
    for t, following in pairwise(grid):
        slope = velocity(z, t)
        ahead = z + (following - t) * slope
        if solver == "heun" and following > 0:
            ahead = z + (following - t) * (slope + velocity(ahead, following)) / 2
        z = ahead
    return z


@torch.no_grad()
def draw(model: nn.Module, inputs: Inputs, requests: Sequence[Request], sampling: Sampling) -> Tensor:
    """Samples (B, C, H, W) float32 on the model's device, all of one shape. Each depends on its own request only."""
    device = next(model.parameters()).device
    z = torch.stack([noise(one.shape, one.key) for one in requests]).to(device)
    rows = [one.conditions for one in requests]
    guided = _Guided(model, inputs, rows, combination(sampling), device)
    plain = _Guided(model, inputs, rows, {BOTH: 1.0}, device)
    low, high = sampling.interval

    def velocity(z: Tensor, t: float) -> Tensor:
        return (guided if low <= t <= high else plain)(z, t)

    return integrate(velocity, z, times(sampling), sampling.solver)


class _Guided:
    """The combined velocity. Parts that show the same to every row, or weigh nothing, are computed once or not at all."""

    def __init__(
        self, model: nn.Module, inputs: Inputs, rows: Sequence[Conditions], table: Mapping[tuple[bool, bool], float], device: torch.device
    ):
        self.model, self.prediction = model, inputs.config.prediction
        any_text = any(row.text is not None for row in rows)
        any_image = any(row.image is not None for row in rows)
        merged: Table = {}
        for (text, image), coefficient in table.items():
            part = (text and any_text, image and any_image)
            merged[part] = merged.get(part, 0.0) + coefficient
        self.table = {part: coefficient for part, coefficient in merged.items() if coefficient != 0.0}
        shown = [row.only(text=text, image=image) for text, image in self.table for row in rows]
        self.batch = {name: value.to(device) for name, value in inputs.pack(shown).items()}

    def __call__(self, z: Tensor, t: float) -> Tensor:
        many = z.repeat(len(self.table), 1, 1, 1)
        at = torch.full((len(many),), t, device=z.device)
        v = flow.velocity(self.model({**self.batch, "z": many, "t": at}).float(), many, at, self.prediction)
        parts = v.unflatten(0, (len(self.table), len(z)))
        return torch.stack([coefficient * part for coefficient, part in zip(self.table.values(), parts, strict=True)]).sum(0)
