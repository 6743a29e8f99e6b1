"""Memory of decoded pictures and of batches, used again once nothing refers to it.

Fresh memory costs a page fault for each 4 KiB, in threads up to half of the time of decoding and collating a batch: the C library returns
what they free to the system. A buffer is used again once the last array or tensor that shares it is gone.
"""

import threading
import weakref

import numpy as np
import torch
from torch import Tensor

from plait.data.memory import allocation

_IDLE_BYTES = 64 << 20
"""What may lie unused in any case; beyond, as much as is in use."""


class Pool:
    """Buffers by size, for all threads. `kept`: whether what becomes free stays, to be used again."""

    def __init__(self) -> None:
        self.kept = True
        self._free: dict[int, list[Tensor]] = {}
        self._owned_bytes = 0
        self._lock = threading.RLock()  # the last reference may be dropped while this thread has it

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
        weakref.finalize(lease, self._take_back, memory).atexit = False
        return lease[:size]

    def _take_back(self, memory: Tensor) -> None:
        with self._lock:
            if self.kept:
                self._free[len(memory)].append(memory)
            else:
                self._owned_bytes -= len(memory)

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


_pool = Pool()
_users: set[int] = set()
_changing = threading.Lock()


def begin(user: object) -> None:
    """Have all memory of this process's pixels and batches come from one pool, until every `user` has ended."""
    with _changing:
        _users.add(id(user))
        allocation.lease, _pool.kept = _pool.lease, True


def end(user: object) -> None:
    """Take note that `user` needs the pool no more. What lies unused is given back; after the last one memory is fresh again."""
    with _changing:
        _users.discard(id(user))
        if not _users:
            allocation.lease, _pool.kept = None, False
    _pool.clear()


def _rounded(size: int) -> int:
    """Return `size` rounded up to an eighth of a power of two, so that pictures of similar sizes share buffers."""
    step = 1 << max(0, size.bit_length() - 4)
    return -(-size // step) * step
