"""Shared memory that a worker process writes its batches into, the same again and again.

Fresh memory for every batch would cost a page fault for each 4 KiB on both sides: up to half of the time of decoding and preparing it.
A slot is used again once the last tensor that lies in it is gone, so the consumer may keep a batch as long as it likes.
"""

import ctypes
import itertools
import math
import platform
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

_ALIGN = 64  # bytes: a cache line, and more than any dtype asks for
_SPARE = 1.25  # a new slot is so much larger than the batch it is made for: batches of text differ in length

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc


def keep_freed_memory() -> None:
    """Let this process use the memory of one batch for the next: glibc gives blocks over 32 MB back at every free. For workers only.

    Elsewhere than on glibc nothing is done, which costs time alone.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


class _Place(NamedTuple):
    """Where one tensor lies in a slot."""

    start: int  # bytes
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    bytes: int

    def within(self, memory: Tensor) -> Tensor:
        """The tensor that lies here in `memory` (uint8)."""
        return memory[self.start : self.start + self.bytes].view(self.dtype).as_strided(self.shape, self.stride)


@dataclass
class Parcel:
    """A batch on its way: a place where each tensor was, and the number of the slot that holds them (None: it has no tensors)."""

    batch: Any
    slot: int | None = None
    made: Tensor | None = None  # the slot itself, the first time


class Writer:
    """The worker's side: every slot that it has made and not outgrown stays mapped."""

    def __init__(self) -> None:
        self._slots: dict[int, Tensor] = {}
        self._numbers = itertools.count()

    def pack(self, batch: Any, offered: int | None) -> Parcel:
        """Write the tensors of `batch` into the slot offered, or into a new one when that is None or too small (it is then forgotten)."""
        end, tensors = 0, []  # type: int, list[tuple[_Place, Tensor]]

        def put(tensor: Tensor) -> _Place:
            nonlocal end
            stride = torch.empty_like(tensor, device="meta").stride()  # its own when it is dense, as every batch's is
            place = _Place(-(-end // _ALIGN) * _ALIGN, tensor.dtype, tuple(tensor.shape), stride, tensor.numel() * tensor.element_size())
            tensors.append((place, tensor))
            end = place.start + place.bytes
            return place

        parcel = Parcel(_each(batch, _movable, put))
        if not tensors:
            return parcel
        if offered is None or len(self._slots[offered]) < end:
            if offered is not None:
                del self._slots[offered]
            offered = next(self._numbers)
            parcel.made = self._slots[offered] = torch.empty(math.ceil(end * _SPARE), dtype=torch.uint8).share_memory_()
        for place, tensor in tensors:
            place.within(self._slots[offered]).copy_(tensor)
        parcel.slot = offered
        return parcel


class Reader:
    """The consumer's side of one worker: which of its slots are free."""

    def __init__(self) -> None:
        self._slots: dict[int, Tensor] = {}
        self._free: list[int] = []

    def offer(self) -> int | None:
        """A free slot, which is nobody else's until its parcel comes back."""
        return self._free.pop() if self._free else None

    def unpack(self, parcel: Parcel, offered: int | None) -> Any:
        """The batch, with its tensors lying in the slot."""
        if parcel.slot is None:
            self.keep(offered)
            return parcel.batch
        if parcel.made is not None:
            if offered is not None:
                del self._slots[offered]
            self._slots[parcel.slot] = parcel.made
        lease = self._slots[parcel.slot].numpy()  # a new object, which lives as long as any tensor made from it
        weakref.finalize(lease, self._free.append, parcel.slot).atexit = False
        memory = torch.from_numpy(lease)
        return _each(parcel.batch, lambda leaf: type(leaf) is _Place, lambda place: place.within(memory))

    def keep(self, offered: int | None) -> None:
        """Take back a slot that was offered and not used."""
        if offered is not None:
            self._free.append(offered)


def _movable(leaf: Any) -> bool:
    return type(leaf) is Tensor and leaf.layout == torch.strided and leaf.device.type == "cpu" and not leaf.requires_grad


def _each(value: Any, chosen: Callable[[Any], bool], change: Callable[[Any], Any]) -> Any:
    """`value` with every chosen leaf of its dicts, lists and tuples changed."""
    if chosen(value):
        return change(value)
    if type(value) is dict:
        return {name: _each(item, chosen, change) for name, item in value.items()}
    return type(value)(_each(item, chosen, change) for item in value) if type(value) in (list, tuple) else value
