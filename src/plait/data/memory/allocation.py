"""Memory for pixels and batches: fresh, or used again where threads build batches (reused.py)."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

_LEAST_BYTES = 128 << 10  # less comes from the C library, which keeps it

lease: Callable[[int], np.ndarray] | None = None
"""Returns so many bytes (uint8) that are used again once nothing refers to them. None: all memory is fresh."""


def array(shape: Sequence[int]) -> np.ndarray:
    """Return a uint8 array of any content."""
    return np.empty(shape, np.uint8) if lease is None or math.prod(shape) < _LEAST_BYTES else lease(math.prod(shape)).reshape(shape)


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a dense tensor of any content."""
    return torch.from_numpy(array((math.prod(shape) * dtype.itemsize,))).view(dtype).view(*shape)


def cat(parts: Sequence[Tensor]) -> Tensor:
    """Return `torch.cat(parts)`, of one dtype."""
    return torch.cat(list(parts), out=empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype))


def stack(parts: Sequence[Tensor]) -> Tensor:
    """Return `torch.stack(parts)`, of one dtype."""
    return torch.stack(list(parts), out=empty((len(parts), *parts[0].shape), parts[0].dtype))
