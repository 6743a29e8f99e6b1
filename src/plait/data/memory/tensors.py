"""Tensors of batches in memory that is used again (allocation.py)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from plait.data.memory import allocation


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a dense tensor of any content."""
    if allocation.lease is None:  # torch's own is aligned for it
        return torch.empty(*shape, dtype=dtype)
    return torch.from_numpy(allocation.array((math.prod(shape) * dtype.itemsize,))).view(dtype).view(*shape)


def cat(parts: Sequence[Tensor]) -> Tensor:
    """Return `torch.cat(parts)`, of one dtype."""
    return torch.cat(list(parts), out=empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype))


def stack(parts: Sequence[Tensor]) -> Tensor:
    """Return `torch.stack(parts)`, of one dtype."""
    return torch.stack(list(parts), out=empty((len(parts), *parts[0].shape), parts[0].dtype))
