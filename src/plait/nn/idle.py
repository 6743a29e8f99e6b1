"""Parts of a model that a batch has no input for. Ranks must do the same things in the same order, whatever their rows are.

What is gathered from all ranks when it runs (FSDP2) must run on all of them; every trainable parameter must get a gradient on all of them.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


def gathered(part: nn.Module) -> bool:
    """Whether running this part gathers weights from other ranks: without an input of its own it must be run on a blank one."""
    return any(isinstance(module, FSDPModule) for module in part.modules())


def zero_of(parameters: Iterable[nn.Parameter], device: torch.device) -> Tensor:
    """Zero (float32), with a zero gradient for each of the parameters that train."""
    own = [p.to_local() if isinstance(p, DTensor) else p for p in parameters if p.requires_grad]
    return torch.stack([p.flatten()[:0].sum().float() for p in own]).sum() if own else torch.zeros((), device=device)


def nothing_of(value: Tensor) -> Tensor:
    """Zero, with a zero gradient for all that `value` came from."""
    return value.flatten()[:0].sum()
