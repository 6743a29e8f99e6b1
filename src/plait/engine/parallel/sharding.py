"""Sharding of weights, gradients, moments and averages over ranks (FSDP2): applied at the start of a stage, removed at its end.

A unit is what is gathered at once: each block, and all that trains outside of blocks. A unit either trains or is frozen, never both:
in a block that trains in part, and outside of blocks, what is frozen stays full on every rank. Not here: when to shard (`strategy.py`),
and what the loop does then (`distributed.py`).
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._composable_state import _module_state_mapping
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from plait.engine.parallel import distributed, gathering, hosted, prefetching
from plait.engine.parallel.distributed import Ranks
from plait.engine.parallel.memory_estimate import Layout


@dataclass
class Sharding:
    """The sharding of one model, which `wrap` applies at the start of a stage and `unwrap` removes."""

    model: nn.Module
    reshards: bool = True
    """Whether a block's gathered weights are freed after its forward pass, and gathered again for its backward pass."""
    meshes: dict[int, DeviceMesh] = field(default_factory=dict, repr=False)
    """The meshes of ranks made so far, by the number of ranks that share one copy of the weights."""
    unwrapped: list[tuple[nn.Module, type[nn.Module], dict[str, Any], set[str]]] = field(default_factory=list, repr=False)
    """What `unwrap` restores: each module, its class, its hooks, and the attributes that sharding added to it."""

    def wrap(
        self,
        blocks: Sequence[nn.Module],
        trained: Collection[str],
        layout: Layout,
        ranks: Ranks,
        *,
        types: Mapping[str, torch.dtype],
        products: torch.dtype = torch.float32,
    ) -> None:
        """Move the model to this rank's device and shard it over ranks as `layout` says; parameters keep their names.

        `blocks`: the modules (layers) that are sharded one by one; what trains outside of them is one more unit. `trained`: names of the
        parameters that train in this stage. `types`: the dtypes that parameters get, by name, on the device. One unit at a time is full
        and of its dtypes, so the model need not fit on one device. `products`: the dtype that autocast multiplies in, in which the
        matrices of blocks are gathered.
        """
        self.unwrap()
        for name, value in self.model.named_parameters():
            if isinstance(value, DTensor):
                distributed.place(value, types.get(name, value.dtype), ranks.device)
        if layout.shards == 1:
            gather(self.model, set())
            place(self.model, self.model, types, ranks.device)
            self.model.to(ranks.device)
            return
        self.reshards = layout.strategy != "shard_grad_op"
        before = [(module, type(module), _hooks(module), set(module.__dict__)) for module in self.model.modules()]
        mesh = self._mesh(ranks, layout.shards)
        self.model.register_forward_hook(_unshare)
        done: set[int] = set()
        units = _units(self.model, blocks, trained, layout.shard_frozen)
        for module, names in units:
            gather(module, done)
            ignored = {value for name, value in module.named_parameters() if name not in names and not isinstance(value, DTensor)}
            place(self.model, module, types, ranks.device)
            matrices = gathering.matrices(module, names) if module is not self.model and products != torch.float32 else []
            fully_shard(module, mesh=mesh, reshard_after_forward=self.reshards and module is not self.model, ignored_params=ignored)
            if matrices:
                gathering.gather_rounded(module, matrices, products)
            done.update(id(part) for part in module.modules())
        prefetching.gather_ahead(self.model, [module for module, _ in units[:-1]])
        self.unwrapped = [(module, kind, hooks, set(module.__dict__) - names) for module, kind, hooks, names in before]

    def _mesh(self, ranks: Ranks, shards: int) -> DeviceMesh:
        """Return the mesh of all ranks, in one dimension or in groups of `shards` neighbours with one copy each. Made once per size."""
        if shards not in self.meshes:
            shape, names = ((shards,), ("shard",)) if shards == ranks.size else ((ranks.size // shards, shards), ("replicate", "shard"))
            self.meshes[shards] = init_device_mesh(ranks.device.type, shape, mesh_dim_names=names)
        return self.meshes[shards]

    def unwrap(self) -> None:
        """Remove FSDP's classes and hooks at a stage's end; parameters stay sharded until the next `wrap` gathers them unit by unit."""
        distributed.reshard(self.model)
        for module, kind, hooks, added in self.unwrapped:
            module.__class__ = kind
            for name in added:
                del module.__dict__[name]
            for name, content in hooks.items():
                module.__dict__[name].clear()  # the same object: a handle that removes a hook holds on to it
                module.__dict__[name].update(content)
            _module_state_mapping.pop(module, None)
        self.unwrapped = []

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Keep all weights gathered on every rank while the block lasts, so that ranks may run different numbers of forward passes."""
        units = [module for module in self.model.modules() if isinstance(module, FSDPModule)]
        for module in units:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield
        finally:
            for module in units:
                module.reshard()
                module.set_reshard_after_forward(self.reshards and module is not self.model, recurse=False)


def _unshare(module: nn.Module, inputs: object, output: object) -> object:
    """Copy a model's output if it is a view. FSDP2 puts a hook on it, which an in-place change of a view would silently drop."""
    return output.clone() if isinstance(output, Tensor) and output.requires_grad and output._is_view() else output


def _units(
    model: nn.Module, blocks: Sequence[nn.Module], trained: Collection[str], shard_frozen: bool
) -> list[tuple[nn.Module, frozenset[str]]]:
    """Return the units: each a module and the names, within it, of the parameters that are sharded together.

    The last is the model, with what trains in no block.
    """
    training = {id(value) for name, value in model.named_parameters() if name in trained}
    units = []
    for block in blocks:
        named = {name: id(value) for name, value in block.named_parameters()}
        chosen = {name for name, value in named.items() if value in training} or (set(named) if shard_frozen else set())
        if chosen:
            units.append((block, frozenset(chosen)))
            training.difference_update(named.values())
    return [*units, (model, frozenset(name for name, value in model.named_parameters() if id(value) in training))]


def gather(module: nn.Module, done: Collection[int]) -> None:
    """Replace a module's sharded parameters by full ones, in place, except in submodules whose id is in `done`; tied ones stay tied."""
    full: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, value in part._parameters.items() if id(part) not in done else ():
            if isinstance(value, DTensor):
                if id(value) not in full:
                    full[id(value)] = nn.Parameter(value.detach().full_tensor(), value.requires_grad)
                part._parameters[name] = full[id(value)]


def place(model: nn.Module, part: nn.Module, types: Mapping[str, torch.dtype], device: torch.device) -> None:
    """Move the full parameters of `part`, a module of `model`, to the device. There they get their dtypes, `types` by name.

    What nothing computes with stays on the host (`hosted.py`).
    """
    own, held = {id(value) for value in part.parameters() if not isinstance(value, DTensor)}, hosted.names(model)
    for name, value in model.named_parameters():
        if id(value) in own:
            distributed.place(value, types.get(name, value.dtype), value.device if name in held else device)


def _hooks(module: nn.Module) -> dict[str, Any]:
    return {name: dict(value) for name, value in module.__dict__.items() if "_hooks" in name}
