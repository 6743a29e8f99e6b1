"""Buffers of shared memory that a worker process collates its batches in, used again and again.

Fresh memory for every batch would cost a page fault for each 4 KiB on both sides: up to half of the time of decoding and collating it.
A buffer is used again once the last tensor in it is gone, so the consumer may keep a batch as long as it likes.
Tensors that are made in other memory are copied into it.
"""

import ctypes
import itertools
import math
import platform
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from plait.data.memory import allocation

_ALIGN_BYTES = 64  # a cache line, and more than any dtype needs
_SPARE = 1.25  # a new buffer is so many times larger than the batch it is made for: batches of text differ in length

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next batch; by default it returns blocks over 32 MB to the system. For worker processes only.

    Does nothing with another C library, where workers are only slower.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGN_BYTES) * _ALIGN_BYTES


class _TensorLayout(NamedTuple):
    """Where one tensor is in a buffer."""

    start: int  # bytes
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    bytes: int

    def view(self, memory: Tensor) -> Tensor:
        """Return the tensor that is at this offset of `memory` (uint8)."""
        return memory[self.start : self.start + self.bytes].view(self.dtype).as_strided(self.shape, self.stride)


@dataclass
class PackedBatch:
    """A batch to send to another process, with its place in a shared buffer in place of each tensor.

    `buffer`: the number of that buffer (None: the batch has no tensors). `new_memory`: the buffer itself, when it is first used.
    """

    batch: Any
    buffer: int | None = None
    new_memory: Tensor | None = None


class BufferWriter:
    """The worker's side: has batches collated in shared buffers, and replaces a buffer that is too small."""

    def __init__(self) -> None:
        self._buffers: dict[int, Tensor] = {}
        self._numbers = itertools.count()
        self._leases: dict[int, weakref.ref[np.ndarray]] = {}  # of each buffer: alive while this process keeps a tensor that lies there
        self._end = 0  # bytes taken by what is collated, as if the buffer were large enough

    @contextmanager
    def collating(self, offered: int | None) -> Iterator[None]:
        """Context in which the memory of a batch (tensors.py) lies in buffer number `offered`, as far as that goes; `pack` follows.

        A buffer in which this process keeps a tensor of an earlier batch is dropped: it would be overwritten.
        """
        self._end, kept = 0, self._leases.pop(offered, None) if offered is not None else None
        if offered is not None and kept is not None and kept() is not None:
            del self._buffers[offered]
        memory = self._buffers.get(offered) if offered is not None else None
        lease: np.ndarray = np.empty(0, np.uint8) if memory is None else memory.numpy()  # views of it keep it alive
        if offered is not None and memory is not None:
            self._leases[offered] = weakref.ref(lease)

        def place(size: int) -> np.ndarray | None:
            start = _aligned(self._end)
            self._end = start + size
            return lease[start : self._end] if self._end <= len(lease) else None

        allocation.place = place
        try:
            yield
        finally:
            allocation.place = None

    def pack(self, batch: Any, offered: int | None) -> PackedBatch:
        """Place the tensors in nested dicts, lists and tuples in buffer number `offered`; if None or too small, in a new one.

        Those that were collated there stay where they are; others are copied.
        """
        memory, collated_end = self._buffers.get(offered) if offered is not None else None, self._end
        fitted = memory is not None and collated_end <= len(memory)
        here = range(memory.data_ptr(), memory.data_ptr() + len(memory)) if memory is not None and fitted else range(0)
        end, tensors = collated_end if fitted else 0, []  # type: int, list[tuple[_TensorLayout, Tensor, bool]]

        def place(tensor: Tensor) -> _TensorLayout:
            nonlocal end
            stride = torch.empty_like(tensor, device="meta").stride()  # its own when it is dense, as every batch's is
            stays, size = tensor.data_ptr() in here and tensor.stride() == stride, tensor.numel() * tensor.element_size()
            start = tensor.data_ptr() - here.start if stays else _aligned(end)
            end = end if stays else start + size
            layout = _TensorLayout(start, tensor.dtype, tuple(tensor.shape), stride, size)
            tensors.append((layout, tensor, stays))
            return layout

        packed, self._end = PackedBatch(_map_leaves(batch, _is_sharable, place)), 0
        if not tensors:
            return packed
        if memory is None or end > len(memory):
            self._buffers.pop(offered, None) if offered is not None else None
            offered = next(self._numbers)
            memory = torch.empty(math.ceil(max(end, collated_end) * _SPARE), dtype=torch.uint8).share_memory_()
            packed.new_memory = self._buffers[offered] = memory
        for layout, tensor, stays in tensors:
            if not stays or packed.new_memory is not None:
                layout.view(memory).copy_(tensor)
        packed.buffer = offered
        return packed


class BufferPool:
    """The consumer's side: the buffers of one worker, and which of them are free to be written again."""

    def __init__(self) -> None:
        self._buffers: dict[int, Tensor] = {}
        self._free: list[int] = []

    def take(self) -> int | None:
        """Return the number of a buffer for the worker to write, None if all are in use. One is free once no tensor in it is left."""
        return self._free.pop() if self._free else None

    def unpack(self, packed: PackedBatch, offered: int | None) -> Any:
        """Return the batch with its tensors as views of the buffer. `offered`: what `take` returned when the batch was requested."""
        if packed.buffer is None:
            if offered is not None:
                self._free.append(offered)
            return packed.batch
        if packed.new_memory is not None:
            if offered is not None:
                del self._buffers[offered]
            self._buffers[packed.buffer] = packed.new_memory
        lease = self._buffers[packed.buffer].numpy()  # a new object, which lives as long as any tensor made from it
        weakref.finalize(lease, self._free.append, packed.buffer).atexit = False
        memory = torch.from_numpy(lease)
        return _map_leaves(packed.batch, lambda leaf: type(leaf) is _TensorLayout, lambda layout: layout.view(memory))


def _is_sharable(leaf: object) -> bool:
    return type(leaf) is Tensor and leaf.layout == torch.strided and leaf.device.type == "cpu" and not leaf.requires_grad


def _map_leaves(value: Any, chosen: Callable[[Any], bool], change: Callable[[Any], Any]) -> Any:
    """Return `value` with every chosen leaf of its dicts, lists and tuples changed."""
    if chosen(value):
        return change(value)
    if type(value) is dict:
        return {name: _map_leaves(item, chosen, change) for name, item in value.items()}
    return type(value)(_map_leaves(item, chosen, change) for item in value) if type(value) in (list, tuple) else value
