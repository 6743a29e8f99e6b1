"""Copy a checkpoint's tensors to host memory in the thread that writes them, beside the next forward and backward pass.

These read the weights only: what changes the tensors in place (the update, the averages, a swap) waits for the copy first. Tensors of a
GPU are copied on a stream of their own, into pinned memory.
"""

import contextlib
import ctypes
import itertools
import logging
import mmap
import os
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor

from plait.errors import PlaitError

log = logging.getLogger(__name__)

_ALIGNED = 64  # bytes, of each tensor in the memory of its group
_NICENESS = 15
"""How much lower the priority of the thread is once training no longer waits for it: of a core that both want it gets 3 % (36 / 1060)."""

Groups = Mapping[str, Mapping[str, Tensor]]
"""Tensors by group (weights, ema, moments, ...) and name."""
Layout = Mapping[str, tuple[torch.Size, torch.dtype]]


class Copying:
    """Host copies of the tensors of one checkpoint after another, in memory that is kept from one to the next."""

    def __init__(self) -> None:
        self._memory: dict[str, tuple[Layout, dict[str, Tensor]]] = {}
        """By group: what its memory is laid out for, and the tensors in it."""
        self._pinned: dict[str, Tensor] = {}

    def begin(self, groups: Groups) -> tuple[Callable[[], Groups], Callable[[], None]]:
        """Return (`copy`, `wait`): `copy` is called once, by the thread that writes, and returns the copies of `groups`.

        `wait` waits until the tensors may be changed, on the host and on the current CUDA stream; it raises what `copy` raised.
        """
        rows = {group: {name: value.detach() for name, value in tensors.items()} for group, tensors in groups.items() if tensors}
        devices = {value.device for tensors in rows.values() for value in tensors.values() if value.is_cuda}
        ready = {device: torch.cuda.current_stream(device).record_event() for device in devices}
        done: Future[list[Any]] = Future()

        def copy() -> Groups:
            try:
                with torch.cuda.device(next(iter(devices))) if devices else contextlib.nullcontext():  # a new thread is at the first GPU
                    copies = {group: self._room(group, tensors, pinned=bool(devices)) for group, tensors in rows.items()}
                events = _fill(copies, rows, ready)
            except BaseException as error:
                done.set_exception(error)
                raise
            done.set_result(events)
            for event in events:
                event.synchronize()
            rows.clear()
            return copies

        def wait() -> None:
            for event in done.result():
                event.wait()

        return copy, wait

    def _room(self, group: str, tensors: Mapping[str, Tensor], *, pinned: bool) -> dict[str, Tensor]:
        """Return host tensors of the shapes and types of `tensors`: those of the last copy, where they fit."""
        layout = {name: (value.shape, value.dtype) for name, value in tensors.items()}
        if group not in self._memory or self._memory[group][0] != layout:
            self._release(group)  # first: there may not be room for both
            begins = list(itertools.accumulate((-value.nbytes // _ALIGNED * -_ALIGNED for value in tensors.values()), initial=0))
            memory = _allocate(begins[-1])
            if pinned and _pin(memory):
                self._pinned[group] = memory
            parts = [memory[begin : begin + value.nbytes] for begin, value in zip(begins, tensors.values(), strict=False)]
            shaped = [part.view(value.dtype).view(value.shape) for part, value in zip(parts, tensors.values(), strict=True)]
            self._memory[group] = layout, dict(zip(tensors, shaped, strict=True))
        return self._memory[group][1]

    def release(self) -> None:
        """Free the memory of the copies; the next copy has other."""
        for group in [*self._memory]:
            self._release(group)

    def _release(self, group: str) -> None:
        self._memory.pop(group, None)
        if group in self._pinned:
            torch.cuda.cudart().cudaHostUnregister(self._pinned.pop(group).data_ptr())


def _allocate(size: int) -> Tensor:
    """Return `size` bytes of host memory, not yet touched. Raises PlaitError where there is no room."""
    try:
        memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise PlaitError(
            f"no host memory for a copy of {size / 1e9:.1f} GB of the state ({error.strerror}): free some, or set "
            "checkpoint.async_save=false: checkpoints are then written without a copy, while training waits"
        ) from error
    if hasattr(mmap, "MADV_DONTFORK"):  # Linux: what loader workers share with their parent, it writes to a new page
        memory.madvise(mmap.MADV_DONTFORK)
    return torch.frombuffer(memory, dtype=torch.uint8)


def _pin(memory: Tensor) -> bool:
    """Pin host memory, so that a GPU copies to it while it computes; exactly its size, where torch's allocator takes powers of two.

    Returns whether it could be done; where not, the copies hold training up, which is logged.
    """
    status = torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)
    if int(status) != 0:
        log.warning(f"{memory.nbytes / 1e9:.1f} GB for copies of the state could not be pinned ({status}): saves hold training up")
    return int(status) == 0


def _fill(copies: Groups, rows: Groups, ready: Mapping[torch.device, Any]) -> list[Any]:
    """Copy `rows` into `copies`. Returns an event for each device from which copies are still under way.

    `ready`: by device, the event after which its tensors hold what is to be saved.
    """
    pairs = [(copies[group][name], value) for group, tensors in rows.items() for name, value in tensors.items()]
    events = []
    for device, event in ready.items():
        stream = torch.cuda.Stream(device)
        stream.wait_event(event)
        with torch.cuda.stream(stream):
            for copy, value in pairs:
                if value.device == device:
                    copy.copy_(value, non_blocking=True)
        events.append(stream.record_event())
    for copy, value in pairs:
        if value.device.type == "cpu":
            _copy_on_host(copy, value)
    return events


def _copy_on_host(copy: Tensor, value: Tensor) -> None:
    if type(value) is Tensor and value.is_contiguous():  # by this thread alone: `copy_` takes as many as training does
        ctypes.memmove(copy.data_ptr(), value.data_ptr(), value.nbytes)
    else:
        copy.copy_(value)


def give_way() -> None:
    """Lower the priority of the calling thread (Linux): cores that training wants are training's."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS)


def hurry(thread: threading.Thread) -> None:
    """Give `thread` the priority of the calling one, which waits for it, as at a stop.

    On Linux, and only where the user may raise a priority.
    """
    if sys.platform == "linux" and thread.is_alive() and thread.native_id is not None:
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, thread.native_id, os.getpriority(os.PRIO_PROCESS, 0))
