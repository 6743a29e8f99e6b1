"""Connectors: modules that map one model's features into another model's embedding space, and functions for the scale of their output.

The models that they connect are built elsewhere, by a family (kind of model).
"""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Made = TypeVar("Made")


class Connector(nn.Module):
    """A projector (..., features) -> (..., hidden). `kind`: "linear", one linear layer, or "mlp", two with a GELU between.

    Scale its output with `match_rms` to that of the embeddings it joins, else the first gradients explode.
    """

    def __init__(self, features: int, hidden: int, kind: str) -> None:
        super().__init__()
        self.first = nn.Linear(features, hidden)
        self.second = nn.Linear(hidden, hidden) if kind == "mlp" else None

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (..., features), of any dtype, to (..., hidden) in the dtype of the weights."""
        projected: Tensor = self.first(x.to(self.first.weight.dtype))
        if self.second is not None:
            projected = self.second(F.gelu(projected))
        return projected


def match_rms(x: Tensor, rms: Tensor) -> Tensor:
    """Scale each vector of `x` (..., D) to root mean square `rms` (scalar). It is x * rms / sqrt(mean(x^2) + eps), float32 or wider."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return F.rms_norm(wide, (x.shape[-1],), eps=1e-6) * rms


def root_mean_square(x: Tensor) -> Tensor:
    """Return sqrt(mean(x^2)) over all elements as a scalar, in float32 or wider. Makes one wide copy of `x`, squared in place."""
    return x.to(torch.promote_types(x.dtype, torch.float32), copy=True).square_().mean().sqrt()


def seeded(seed: int, make: Callable[[], Made]) -> Made:
    """Return `make()`, run with torch's CPU generator seeded by `seed` and restored after: its weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
