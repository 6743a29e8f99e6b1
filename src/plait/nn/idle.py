"""Zeros that keep unused parameters in the autograd graph, and the test for parts that must run on every rank.

When a batch has no input for a part of the model, ranks must still run the same collectives in the same order: a sharded part (FSDP2)
gathers its weights whenever it runs, so it must run on every rank or on none, and every trainable parameter needs a gradient on all ranks.
Otherwise training hangs.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


def is_sharded(part: nn.Module) -> bool:
    """Return whether running `part` gathers its weights (FSDP2): it must then run, on a blank input, where a batch has none for it."""
    return any(isinstance(module, FSDPModule) for module in part.modules())


def zero_from_parameters(parameters: Iterable[nn.Parameter], device: torch.device) -> Tensor:
    """Return a float32 zero on `device` that gives each trainable parameter a gradient of zeros."""
    trainable = [p.to_local() if isinstance(p, DTensor) else p for p in parameters if p.requires_grad]
    return torch.stack([p.flatten()[:0].sum().float() for p in trainable]).sum() if trainable else torch.zeros((), device=device)


def zero_from(value: Tensor) -> Tensor:
    """Return a zero that keeps `value` in the autograd graph: all it was computed from gets a gradient of zeros."""
    return value.flatten()[:0].sum()
