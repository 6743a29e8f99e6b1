"""Time the forward passes of a model whose weights are sharded (FSDP2) without the waits for other ranks.

Before a unit's forward pass its weights are gathered from all ranks, so each rank's pass ends when the slowest one's does. What a rank
computes itself is what is left without those waits. Hooks are there only in the steps that are recorded.
"""

from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.hooks import RemovableHandle

from plait.training.monitor.modules import moment


class GatherWaits:
    """Hooks on the units of a sharded model, there only while a step is watched: `begin`, one or more forward passes, `end`."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model, self.device = model, device
        self.units = [module for module in model.modules() if isinstance(module, FSDPModule)]
        self._hooks: list[RemovableHandle] = []
        self._passes: list[list[Any]] = []
        self._waits: list[list[Any]] = []

    def begin(self) -> None:
        """Watch the forward passes from now on."""
        self.end()
        self._passes, self._waits = [], []
        for unit in self.units:
            assert isinstance(unit, nn.Module)
            self._hooks.append(unit.register_forward_pre_hook(lambda module, _: self._before_gathering(module), prepend=True))
            self._hooks.append(unit.register_forward_pre_hook(lambda _, __: self._end_of(self._waits)))
        self._hooks.append(self.model.register_forward_hook(lambda _, __, ___: self._end_of(self._passes)))

    def end(self) -> None:
        """Remove all hooks; a second call does nothing."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def seconds(self) -> float:
        """Return the seconds that this rank computed in the forward passes since `begin`. On a GPU it waits for them to be done."""
        return sum(self._between(*moments) for moments in self._passes) - sum(self._between(*moments) for moments in self._waits)

    def _before_gathering(self, module: nn.Module) -> None:
        if torch._C._current_graph_task_id() != -1:  # activation checkpointing runs it again in the backward pass
            return
        now = moment(self.device)
        self._waits.append([now])
        if module is self.model:
            self._passes.append([now])

    def _end_of(self, spans: list[list[Any]]) -> None:
        if torch._C._current_graph_task_id() == -1 and spans and len(spans[-1]) == 1:
            spans[-1].append(moment(self.device))

    def _between(self, began: Any, ended: Any = None) -> float:
        if ended is None:
            return 0.0
        if self.device.type != "cuda":
            return float(ended - began)
        ended.synchronize()
        return float(began.elapsed_time(ended) / 1e3)
