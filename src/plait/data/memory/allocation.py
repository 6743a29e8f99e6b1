"""Memory for pixels: fresh, used again where threads build batches (reused.py), or that of the batch's buffer where processes do.

Nothing here imports torch: tensors.py does.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

_LEAST_BYTES = 128 << 10  # less comes from the C library, which keeps it

lease: Callable[[int], np.ndarray] | None = None
"""Returns so many bytes (uint8) that are used again once nothing refers to them. None: all memory is fresh."""

place: Callable[[int], np.ndarray | None] | None = None
"""Returns so many bytes (uint8) of the shared buffer in which a process collates (shared.py), None where it is full. None: it does not."""


def array(shape: Sequence[int]) -> np.ndarray:
    """Return a uint8 array of any content."""
    return np.empty(shape, np.uint8) if lease is None or math.prod(shape) < _LEAST_BYTES else lease(math.prod(shape)).reshape(shape)
