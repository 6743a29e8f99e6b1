"""Memory of decoded pictures and of batches, used again once nothing refers to it.

Fresh memory costs a page fault for each 4 KiB, in threads up to half of the time of decoding and collating a batch: the C library returns
what they free to the system. A buffer is used again once the last array or tensor that shares it is gone.
"""

import threading
import weakref

import numpy as np
import torch
from torch import Tensor

_IDLE_BYTES = 64 << 20
"""What may lie unused in any case; beyond, as much as is in use."""


class Pool:
    """Buffers by size. What becomes free is appended to its list by whichever thread drops the last reference, without a lock."""

    def __init__(self) -> None:
        self._free: dict[int, list[Tensor]] = {}
        self._owned_bytes = 0
        self._lock = threading.Lock()

    def lease(self, size: int) -> np.ndarray:
        """Return an array (size,) of bytes, uint8, of any content."""
        whole = _rounded(size)
        with self._lock:
            free = self._free.setdefault(whole, [])
            if free:
                memory = free.pop()
            else:
                self._make_room(whole)
                memory = torch.empty(whole, dtype=torch.uint8)
                self._owned_bytes += whole
        lease: np.ndarray = memory.numpy()  # a new object: views of it, and tensors made from those, keep it alive
        weakref.finalize(lease, free.append, memory).atexit = False
        return lease[:size]

    def _make_room(self, size: int) -> None:
        """Give free buffers back to the system, the largest first, until those left are no more than what is in use, `size` included."""
        idle = sum(number * len(free) for number, free in self._free.items())
        for number in sorted(self._free, reverse=True):
            while self._free[number] and idle > max(_IDLE_BYTES, self._owned_bytes + size - idle):
                self._free[number].pop()
                self._owned_bytes, idle = self._owned_bytes - number, idle - number

    def clear(self) -> None:
        """Give all free buffers back to the system."""
        with self._lock:
            for size, free in self._free.items():
                while free:
                    free.pop()
                    self._owned_bytes -= size


def _rounded(size: int) -> int:
    """Return `size` rounded up to an eighth of a power of two, so that pictures of similar sizes share buffers."""
    step = 1 << max(0, size.bit_length() - 4)
    return -(-size // step) * step
