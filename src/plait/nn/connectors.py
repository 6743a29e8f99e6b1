"""Connectors from one model's features into another's embedding space."""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Made = TypeVar("Made")


class Connector(nn.Module):
    """features -> hidden, by one matrix ("linear") or two with a GELU between ("mlp"); no activation at the end.

    Its output is not at the embeddings' scale: without `match_rms` after it, first gradients explode.
    """

    def __init__(self, features: int, hidden: int, kind: str):
        super().__init__()
        self.first = nn.Linear(features, hidden)
        self.second = nn.Linear(hidden, hidden) if kind == "mlp" else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.to(self.first.weight.dtype))
        return x if self.second is None else self.second(F.gelu(x))


def match_rms(x: Tensor, rms: Tensor) -> Tensor:
    """Every vector of `x` brought to root mean square `rms` (a scalar): x * rms / sqrt(mean(x^2) + eps), in float32 or wider."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return F.rms_norm(wide, (x.shape[-1],), eps=1e-6) * rms


def root_mean_square(x: Tensor) -> Tensor:
    """sqrt(mean(x^2)) over all elements, in float32 or wider. One wide copy of `x` is made, which is squared in place."""
    return x.to(torch.promote_types(x.dtype, torch.float32), copy=True).square_().mean().sqrt()


def seeded(seed: int, make: Callable[[], Made]) -> Made:
    """`make()` with torch's CPU generator set to `seed` and put back after: initialisation that depends on nothing else."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
