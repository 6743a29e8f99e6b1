"""Generate samples by integrating the velocity from noise (t = 1) to data (t = 0). Guidance by text and image takes one batched pass.

Guidance is a linear combination of velocities under subsets of the conditions, so it is written as a table: subset -> coefficient.
Legend: B batch, z (B, C, H, W).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from plait.families.nanodit.flow import shifted, velocity
from plait.families.nanodit.network.conditions import Conditions, noise

if TYPE_CHECKING:
    from plait.families.nanodit.config import Sampling

Velocity = Callable[[Tensor, float], Tensor]
"""A function from (z, t) to dz/dt, of the shape of z."""

NEITHER, TEXT, IMAGE, BOTH = (False, False), (True, False), (False, True), (True, True)
"""The subsets of the conditions that a model may get, as (text, image)."""
Subset = tuple[bool, bool]
"""Which conditions the model gets: (text, image)."""
Table = dict[Subset, float]
"""{subset of the conditions: coefficient of the velocity under it}."""


class Packing(Protocol):
    """What packs conditions for a model, such as Inputs."""

    @property
    def prediction(self) -> str:
        """Return what the model gives: "v", a velocity, or "x", the clean sample."""

    def pack(self, rows: Sequence[Conditions], /) -> dict[str, Tensor]:
        """Return the conditions of B samples as the network takes them."""


@dataclass(frozen=True)
class Request:
    """One sample to generate. It has its conditions, its shape (C, H, W) as the model sees it, and the 64-bit seed `key` of its noise.

    The shape is that of the latent, or of the picture where the model works on pixels.
    """

    conditions: Conditions
    shape: tuple[int, int, int]
    key: int


def combination(sampling: "Sampling") -> Table:
    """Return {(text, image): coefficient of the velocity}, with bools for which conditions the model gets; coefficients sum to 1.

    two_scale: v = v_u + s_t (v_t - v_u) + s_d (v_d - v_u). joint: v = v_u + s_d (v_d - v_u) + s_t (v_b - v_d), with v_u, v_t, v_d, v_b
    under neither, text, image and both (InstructPix2Pix, arXiv:2211.09800, equation 3).
    """
    text, image = sampling.text_scale, sampling.image_scale
    if sampling.guidance == "joint":
        return {NEITHER: 1 - image, IMAGE: image - text, BOTH: text}
    return {NEITHER: 1 - text - image, TEXT: text, IMAGE: image}


def times(sampling: "Sampling") -> list[float]:
    """Return the `sampling.steps` + 1 times of the integration, falling from 1 (noise) to 0 (data).

    `sampling.grid`: evenly spaced, or "quadratic" (their squares, denser near the data). A `sampling.shift` above 1 then moves all times
    but the ends towards 1 (`shifted`, of flow.py).
    """
    uniform = [1 - i / sampling.steps for i in range(sampling.steps + 1)]
    grid = [t * t for t in uniform] if sampling.grid == "quadratic" else uniform
    return [shifted(t, sampling.shift) for t in grid]


def integrate(velocity: Velocity, z: Tensor, grid: Sequence[float], solver: str) -> Tensor:
    """Integrate dz/dt = velocity(z, t) from `z` at grid[0] along decreasing times, and return z at grid[-1].

    `solver`: "euler", or "heun", the trapezoid rule with an Euler step to t = 0 (Karras et al. 2022, algorithm 1).
    """
    for t, t_next in pairwise(grid):
        slope = velocity(z, t)
        z_next = z + (t_next - t) * slope
        if solver == "heun" and t_next > 0:
            z_next = z + (t_next - t) * (slope + velocity(z_next, t_next)) / 2
        z = z_next
    return z


@torch.no_grad()
def draw(model: nn.Module, inputs: Packing, requests: Sequence[Request], sampling: "Sampling") -> Tensor:
    """Generate a sample per request, all of one shape. Returns (B, C, H, W) float32 on the model's device, each independent of others.

    `inputs`: packs the conditions for the model; `sampling`: solver, steps and guidance.
    """
    device = next(model.parameters()).device
    z = torch.stack([noise(request.shape, request.key) for request in requests]).to(device)
    conditions = [request.conditions for request in requests]
    guided = _Guided(model, inputs, conditions, combination(sampling), device)
    plain = _Guided(model, inputs, conditions, {BOTH: 1.0}, device)
    low, high = sampling.interval

    def slope(z: Tensor, t: float) -> Tensor:
        return (guided if low <= t <= high else plain)(z, t)

    return integrate(slope, z, times(sampling), sampling.solver)


class _Guided:
    """The guided velocity: a weighted sum over subsets of the conditions.

    Subsets that are equal for every row are merged, and those with coefficient 0 are not computed.
    """

    def __init__(
        self, model: nn.Module, inputs: Packing, rows: Sequence[Conditions], table: Mapping[Subset, float], device: torch.device
    ) -> None:
        self.model, self.prediction = model, inputs.prediction
        any_text = any(row.text is not None for row in rows)
        any_image = any(row.image is not None for row in rows)
        merged: Table = {}
        for (text, image), coefficient in table.items():
            subset = (text and any_text, image and any_image)
            merged[subset] = merged.get(subset, 0.0) + coefficient
        self.table = {subset: coefficient for subset, coefficient in merged.items() if coefficient != 0.0}
        conditions = [row.only(text=text, image=image) for text, image in self.table for row in rows]
        self.batch = {name: value.to(device) for name, value in inputs.pack(conditions).items()}

    def __call__(self, z: Tensor, t: float) -> Tensor:
        repeated = z.repeat(len(self.table), 1, 1, 1)
        t_B = torch.full((len(repeated),), t, device=z.device)
        v = velocity(self.model({**self.batch, "z": repeated, "t": t_B}).float(), repeated, t_B, self.prediction)
        by_subset = torch.unflatten(v, 0, (len(self.table), len(z)))
        return torch.stack([coefficient * part for coefficient, part in zip(self.table.values(), by_subset, strict=True)]).sum(0)
