"""Weights, gradients, moments and averages cut over ranks (FSDP2): put on a model at the start of a stage, taken off at its end.

A unit is what is gathered at once: each block, and all that trains outside of blocks. A unit either trains or is frozen, never both:
in a block that trains in part, and outside of blocks, what is frozen stays whole on every rank. Not here: when to shard (`strategy.py`),
and what the loop does then (`distributed.py`).
"""

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.distributed._composable_state import _module_state_mapping
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from plait.engine.parallel import distributed
from plait.engine.parallel.distributed import Ranks
from plait.engine.parallel.memory_estimate import Layout


@dataclass
class Sharding:
    """What lies over a model: nothing, until `wrap`."""

    model: nn.Module
    reshards: bool = True
    """Whether a block's whole weights go after its forward pass, and are gathered again for its backward pass."""
    meshes: dict[int, DeviceMesh] = field(default_factory=dict, repr=False)
    before: list[tuple[nn.Module, type[nn.Module], dict[str, Any], set[str]]] = field(default_factory=list, repr=False)
    """Each module, its class, its hooks, and the names that sharding added to it."""

    def wrap(self, blocks: Sequence[nn.Module], trained: Collection[str], layout: Layout, ranks: Ranks) -> None:
        """Move the model to the world's device and cut it over its ranks as `layout` says; parameters keep names and bits.

        `trained` names what trains in this stage. One unit at a time is whole, so the model never has to fit on one device.
        """
        self.unwrap()
        if layout.parts == 1:
            gather(self.model, set())
            self.model.to(ranks.device)
            return
        self.reshards = layout.strategy != "shard_grad_op"
        found = [(module, type(module), _hooks(module), set(module.__dict__)) for module in self.model.modules()]
        mesh = self._mesh(ranks, layout.parts)
        self.model.register_forward_hook(_own)
        done: set[int] = set()
        for module, names in _units(self.model, blocks, trained, layout.cut_frozen):
            gather(module, done)
            ignored = {value for name, value in module.named_parameters() if name not in names and not isinstance(value, DTensor)}
            for value in ignored:
                value.data = value.data.to(ranks.device)
            fully_shard(module, mesh=mesh, reshard_after_forward=self.reshards and module is not self.model, ignored_params=ignored)
            done.update(id(part) for part in module.modules())
        self.before = [(module, kind, hooks, set(module.__dict__) - had) for module, kind, hooks, had in found]

    def _mesh(self, ranks: Ranks, parts: int) -> DeviceMesh:
        """All ranks in a line, or in rows of `parts` neighbours, each of which holds one copy. Its groups are made once."""
        if parts not in self.meshes:
            shape, names = ((parts,), ("shard",)) if parts == ranks.size else ((ranks.size // parts, parts), ("replicate", "shard"))
            self.meshes[parts] = init_device_mesh(ranks.device.type, shape, mesh_dim_names=names)
        return self.meshes[parts]

    def unwrap(self) -> None:
        """Take the hooks off; the parameters stay cut until the next `wrap`, which gathers them unit by unit."""
        distributed.reshard(self.model)
        for module, kind, hooks, added in self.before:
            module.__class__ = kind
            for name in added:
                del module.__dict__[name]
            for name, content in hooks.items():
                module.__dict__[name].clear()  # the same object: a handle that removes a hook holds on to it
                module.__dict__[name].update(content)
            _module_state_mapping.pop(module, None)
        self.before = []

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """All weights whole on every rank while the block lasts, whatever is called of the model and however often."""
        parts = [module for module in self.model.modules() if isinstance(module, FSDPModule)]
        for module in parts:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield
        finally:
            for module in parts:
                module.reshard()
                module.set_reshard_after_forward(self.reshards and module is not self.model, recurse=False)


def _own(module: nn.Module, inputs: Any, output: Any) -> Any:
    """A model's output as a tensor of its own: FSDP2 hangs a hook on it, which a change in place of a view would lose without a word."""
    return output.clone() if isinstance(output, Tensor) and output.requires_grad and output._is_view() else output


def _units(
    model: nn.Module, blocks: Sequence[nn.Module], trained: Collection[str], cut_frozen: bool
) -> list[tuple[nn.Module, frozenset[str]]]:
    """Modules, each with those of its parameters, by its own names, that make one unit; the model last, for what is in no block."""
    moving = {id(value) for name, value in model.named_parameters() if name in trained}
    units = []
    for block in blocks:
        named = {name: id(value) for name, value in block.named_parameters()}
        chosen = {name for name, value in named.items() if value in moving} or (set(named) if cut_frozen else set())
        if chosen:
            units.append((block, frozenset(chosen)))
            moving.difference_update(named.values())
    return [*units, (model, frozenset(name for name, value in model.named_parameters() if id(value) in moving))]


def gather(module: nn.Module, done: Collection[int]) -> None:
    """Make the sharded parameters of a module whole, except those of the submodules in `done`; a tied one stays one."""
    made: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, value in part._parameters.items() if id(part) not in done else ():
            if isinstance(value, DTensor):
                if id(value) not in made:
                    made[id(value)] = nn.Parameter(value.detach().full_tensor(), value.requires_grad)
                part._parameters[name] = made[id(value)]


def _hooks(module: nn.Module) -> dict[str, Any]:
    return {name: dict(value) for name, value in module.__dict__.items() if "_hooks" in name}
