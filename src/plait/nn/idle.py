"""Zeros that keep unused parameters in the autograd graph, and the test for submodules that must run on every rank.

When a batch has no input for a part of the model, ranks must still run the same collectives in the same order, or training hangs: a sharded
part (FSDP2) gathers its weights when it runs, so it runs on all ranks or on none, and trainable parameters need gradients on all.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


def contains_sharded(part: nn.Module) -> bool:
    """Return whether `part` is sharded by FSDP2. It must then also run, on a blank input, for a batch that has no input for it."""
    return any(isinstance(module, FSDPModule) for module in part.modules())


def zero_from_parameters(parameters: Iterable[nn.Parameter], device: torch.device) -> Tensor:
    """Return a float32 zero to add to a loss: each trainable parameter gets a gradient of zeros. `device`: its place if none trains."""
    trainable = [p.to_local() if isinstance(p, DTensor) else p for p in parameters if p.requires_grad]
    return torch.stack([p.flatten()[:0].sum().float() for p in trainable]).sum() if trainable else torch.zeros((), device=device)


def zero_from(value: Tensor) -> Tensor:
    """Return a scalar zero, to be added to a loss, that keeps `value` in the autograd graph, with a gradient of zeros."""
    return value.flatten()[:0].sum()
