"""Watch the forward pass of a model by component: how long each takes, and what it puts out.

Hooks are there only in the steps that are recorded.
A component is a named part of the model that trains or stays frozen as a whole. Its modules are the largest that belong to it alone.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from plait.config.sections.adapters import component_of

Watch = Callable[[str, Tensor], None]
"""Called with the name of a component and what the last of its modules put out, a floating-point tensor, once per pass."""


def modules_of(model: nn.Module, components: Mapping[str, Sequence[str]]) -> dict[str, list[nn.Module]]:
    """Return the largest modules with a forward pass of their own that hold parameters of one component alone, by component, in order.

    Adapters count to the component whose layers they are in, as they have no forward pass apart from it.
    `components`: names of all parameters, by component. A list of blocks has no forward pass: its blocks are returned.
    """
    of_name = {name: component_of(component) for component, names in components.items() for name in names}
    found: dict[str, list[nn.Module]] = {}

    def visit(module: nn.Module, prefix: str) -> None:
        owners = {of_name.get(f"{prefix}{name}", "") for name, _ in module.named_parameters()}
        container = isinstance(module, nn.ModuleList | nn.ModuleDict)
        if len(owners) == 1 and owners != {""} and not container and prefix:
            found.setdefault(owners.pop(), []).append(module)
        elif owners:
            for name, child in module.named_children():
                visit(child, f"{prefix}{name}.")

    visit(model, "")
    return {component: found[component] for component in components if component in found}


class ForwardWatch:
    """Hooks on the modules of each component, there only while a step is watched: `begin`, one or more forward passes, `end`."""

    def __init__(self, modules: Mapping[str, Sequence[nn.Module]], device: torch.device) -> None:
        self.modules, self.device = modules, device
        self._hooks: list[RemovableHandle] = []
        self._began: list[Any] = []
        self._took: list[tuple[str, Any, Any]] = []

    def begin(self, watch: Watch | None = None) -> None:
        """Watch the forward passes from now on; `watch` is given what the last module of each component puts out."""
        self.end()
        self._began, self._took = [], []
        for component, modules in self.modules.items():
            for module in modules:
                self._hooks.append(module.register_forward_pre_hook(lambda _, __: self._begin()))
                self._hooks.append(module.register_forward_hook(self._hook(component, watch if module is modules[-1] else None)))

    def end(self) -> None:
        """Remove all hooks; a second call does nothing."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def seconds(self) -> dict[str, float]:
        """Return the seconds that the forward passes since `begin` took, by component. On a GPU it waits for them to be done."""
        took: dict[str, float] = {}
        for component, began, ended in self._took:
            if self.device.type == "cuda":
                ended.synchronize()
                passed = began.elapsed_time(ended) / 1e3
            else:
                passed = ended - began
            took[component] = took.get(component, 0.0) + passed
        return took

    def _hook(self, component: str, watch: Watch | None) -> Callable[[nn.Module, Any, Any], None]:
        def ended(module: nn.Module, inputs: Any, output: Any) -> None:
            if not self._began:
                return
            self._took.append((component, self._began.pop(), moment(self.device)))
            value = next((one for one in _tensors(output) if one.is_floating_point()), None) if watch is not None else None
            if watch is not None and value is not None:
                watch(component, value.detach())

        return ended

    def _begin(self) -> None:
        if torch._C._current_graph_task_id() == -1:  # activation checkpointing runs it again in the backward pass
            self._began.append(moment(self.device))


def moment(device: torch.device) -> Any:
    """Return the time now, in seconds; on a GPU an event, which is recorded once the kernels so far are done."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _tensors(value: Any) -> Iterable[Tensor]:
    """Yield the tensors of what a module returned, the first ones first; of a mapping or an object with fields, too."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
