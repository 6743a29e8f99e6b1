"""Muon's update of matrices whose rows are sharded over ranks: each rank orthogonalises some of them whole.

As many matrices as there are ranks make a round. Every rank sends its rows of each to the rank whose turn it is, in bfloat16, in which
`torch.optim.Muon` computes anyway, and gets its rows of the change back in float32. So a matrix is orthogonalised once, not by every rank.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from plait.engine.parallel.distributed import local

_SETTINGS = ("lr", "ns_coefficients", "ns_steps", "adjust_lr_fn", "eps")


def step(groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, dict[str, Any]]) -> None:
    """Apply Muon's update in place to all parameters of `groups`, DTensors sharded by rows, that have a gradient; all ranks call it.

    `groups`: as `torch.optim.Muon` has them; `state`: {parameter: {"momentum_buffer": DTensor}}, to which missing ones are added.
    """
    for group in groups:
        sharded = (value for value in group["params"] if isinstance(value, DTensor) and value.grad is not None)
        waiting = sorted(sharded, key=Tensor.numel, reverse=True)
        ranks = waiting[0].device_mesh.size(waiting[0].device_mesh.ndim - 1) if waiting else 1
        for first in range(0, len(waiting), ranks):
            _round(waiting[first : first + ranks], group, state)


def _round(matrices: Sequence[DTensor], group: Mapping[str, Any], state: Mapping[Tensor, dict[str, Any]]) -> None:
    """Update at most as many matrices as there are ranks that share them."""
    mesh = matrices[0].device_mesh
    ranks, rank = mesh.get_group(mesh.ndim - 1), mesh.get_local_rank(mesh.ndim - 1)
    count = dist.get_world_size(ranks)
    updates = [_momentum(value, group, state[value]).bfloat16().flatten() for value in matrices]
    idle = [0] * (count - len(matrices))
    rows = [value.numel() for value in updates] + idle
    parts = _parts(matrices[rank].shape, count) if rank < len(matrices) else [0] * count
    received = torch.empty(sum(parts), dtype=torch.bfloat16, device=updates[0].device)
    dist.all_to_all_single(received, torch.cat(updates), parts, rows, group=ranks)
    change = torch.empty(0, device=received.device)
    if rank < len(matrices):
        change = _change(received.view(matrices[rank].shape), group).flatten()
    mine = torch.empty(sum(rows), device=received.device)
    dist.all_to_all_single(mine, change, rows, parts, group=ranks)
    for value, part in zip(matrices, mine.split(rows), strict=False):
        weight = local(value.detach())
        weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(part.view(weight.shape))


def _momentum(parameter: DTensor, group: Mapping[str, Any], state: dict[str, Any]) -> Tensor:
    """Advance the moment of a matrix by its gradient, and return this rank's rows of what is to be orthogonalised."""
    assert parameter.grad is not None
    if "momentum_buffer" not in state:
        state["momentum_buffer"] = torch.zeros_like(parameter.grad)
    gradient, moment = local(parameter.grad), local(state["momentum_buffer"])
    moment.lerp_(gradient, 1 - group["momentum"])
    return gradient.lerp(moment, group["momentum"]) if group["nesterov"] else moment


def _parts(shape: torch.Size, ranks: int) -> list[int]:
    """Return how many values of a matrix each rank holds, by rows as of torch.chunk."""
    each = -(-shape[0] // ranks)
    return [(min(each * (i + 1), shape[0]) - min(each * i, shape[0])) * shape[1] for i in range(ranks)]


def _change(update: Tensor, group: Mapping[str, Any]) -> Tensor:
    """Return what Muon adds to a matrix for an update, without weight decay: a step of it from zero, with a moment that forgets at once."""
    change = torch.zeros(update.shape, device=update.device)
    change.grad = update.float()
    settings = {name: group[name] for name in _SETTINGS}
    torch.optim.Muon([change], weight_decay=0.0, momentum=0.0, nesterov=False, **settings).step()
    return change
