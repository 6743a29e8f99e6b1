"""Tensors of batches in memory that is used again (allocation.py)."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from plait.data.memory import allocation

_NUMPY = {torch.uint8: np.uint8, torch.float32: np.float32, torch.int64: np.int64}


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a dense tensor of any content."""
    size = math.prod(shape) * dtype.itemsize
    memory = None if allocation.place is None else allocation.place(size)
    if memory is None and allocation.lease is None:  # torch's own is aligned for it
        return torch.empty(*shape, dtype=dtype)
    memory = allocation.array((size,)) if memory is None else memory
    if (known := _NUMPY.get(dtype)) is not None:  # each call of torch lets go of Python's lock, and may wait for it
        return torch.from_numpy(memory.view(known).reshape(shape))
    return torch.from_numpy(memory).view(dtype).view(*shape)


def cat(parts: Sequence[Tensor]) -> Tensor:
    """Return `torch.cat(parts)`, of one dtype."""
    return torch.cat(list(parts), out=empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype))


def stack(parts: Sequence[Tensor]) -> Tensor:
    """Return `torch.stack(parts)`, of one dtype."""
    return torch.stack(list(parts), out=empty((len(parts), *parts[0].shape), parts[0].dtype))
