"""Gather sharded matrices (FSDP2) in the 16 bits in which they are multiplied.

Under `train.precision` bf16 and fp16 autocast rounds a float32 weight for each product. Rounded before it is sent, it is the same number at
half the traffic and memory, and autocast leaves it as it is. That holds for what plain linear and convolution layers alone read: norms,
embeddings and other parameters stay float32, as they do in one process. The shards, their gradients and reductions stay float32.

fsdp_pre_all_gather and fsdp_post_all_gather are FSDP2's own extension of a shard (torch.distributed.fsdp, as torchao uses it for float8).
"""

import functools
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

_PLAIN = (nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)
"""What reads a weight and its bias for one product, in the dtype that autocast chooses."""


def plain(block: nn.Module) -> set[int]:
    """Return the ids of the parameters of `block` that plain linear and convolution layers alone hold.

    Not for what lies outside of blocks, where a weight may be read past its layer: a head by the loss, an embedding's by its neighbours.
    """
    layers: set[int] = set()
    others: set[int] = set()
    for module in block.modules():
        held = {id(value) for value in module._parameters.values() if value is not None}
        (layers if type(module).forward in _PLAIN else others).update(held)
    return layers - others


def matrices(block: nn.Module, names: Collection[str]) -> list[str]:
    """Return those of the parameters of `block` called `names` that are gathered in 16 bits: float32 ones of plain layers."""
    candidates, named = plain(block), {name: block.get_parameter(name) for name in sorted(names)}
    return [name for name, value in named.items() if value.dtype == torch.float32 and id(value) in candidates]


def gather_rounded(unit: nn.Module, names: Collection[str], dtype: torch.dtype) -> None:
    """Gather the sharded parameters of `unit` called `names` in `dtype`; their gradients are float32. Before its first forward pass."""
    for name in names:
        owner, _, own = name.rpartition(".")
        value = unit.get_submodule(owner)._parameters[own]
        assert isinstance(value, DTensor)
        shard: Any = value._local_tensor
        shard.fsdp_pre_all_gather = _rounding(own, dtype)
        shard.fsdp_post_all_gather = _as_gathered
    unit.register_forward_pre_hook(functools.partial(_float32_gradients, frozenset(names)))


def _rounding(name: str, dtype: torch.dtype) -> Callable[..., tuple[tuple[Tensor], None]]:
    """Return what gives this rank's rows of the parameter `name` of a module, rounded, and padded to as many as each rank sends."""

    def rounded(
        mesh: DeviceMesh, size: torch.Size, stride: tuple[int, ...], module: nn.Module, policy: object
    ) -> tuple[tuple[Tensor], None]:
        value = module._parameters[name]
        assert isinstance(value, DTensor)
        rows = value.detach()._local_tensor
        sent = rows.new_zeros((-(-size[0] // mesh.size()), *size[1:]), dtype=dtype)
        sent[: len(rows)] = rows
        return (sent,), None

    return rounded


def _as_gathered(gathered: tuple[Tensor], metadata: object, dtype: torch.dtype, *, out: Tensor | None = None) -> Any:
    """Use what was gathered as the parameter, without a copy. `out`: the parameter, which has the gathered tensor's memory."""
    return None if out is not None else (gathered[0], ())


def _float32_gradients(names: frozenset[str], unit: nn.Module, inputs: object) -> None:
    """Accumulate the gradients of the gathered parameters in float32, as those of float32 parameters are."""
    for name in names:
        value = unit.get_parameter(name)
        if value.requires_grad and value.grad_dtype != torch.float32:
            value.grad_dtype = torch.float32
