"""Copy micro-batches to a GPU on a stream of its own, one ahead of the one that computes. Nothing of this is used on a CPU."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from plait.engine.parallel.distributed import to_device


class OnHost(Protocol):
    """A micro-batch, whose tensors are in page-locked memory."""

    @property
    def batch(self) -> Mapping[str, Any]:
        """Return its tensors by name, also of dicts in it."""


class Copies:
    """Micro-batches on their way to `device`. The host waits for none; the stream that computes waits for the one that it takes."""

    def __init__(self, device: torch.device) -> None:
        self.device, self._stream = device, torch.cuda.Stream(device)
        self._ahead: tuple[OnHost, dict[str, Any]] | None = None

    def begin(self, micro: OnHost | None) -> None:
        """Begin to copy a micro-batch, if there is one. Where memory does not have room for it yet, it is copied when it is taken."""
        self._ahead = None
        if micro is None:
            return
        try:
            with torch.cuda.stream(self._stream):
                self._ahead = micro, to_device(micro.batch, self.device)
        except torch.OutOfMemoryError:
            self._ahead = None

    def take(self, micro: OnHost, following: OnHost | None = None) -> dict[str, Any]:
        """Return a micro-batch on the device, and begin to copy the one that follows it."""
        if self._ahead is None or self._ahead[0] is not micro:
            self.begin(micro)
        if self._ahead is None:
            return to_device(micro.batch, self.device)
        _, copy = self._ahead
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self._stream)
        for value in tree_leaves(copy):
            if isinstance(value, Tensor) and value.device.type == self.device.type:
                value.record_stream(computing)  # its memory is not given away before what computes with it has ended
        self.begin(following)
        return copy
