"""The process group, the few collectives that the loop needs, DDP, and tensors sharded over ranks.

With one process every collective is the identity. Values on the host travel over gloo, so that no collective waits for a device.
"""

import contextlib
import datetime
import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils import swap_tensors

from plait.engine.parallel import agent_store, leaving, replication
from plait.errors import PlaitError


@dataclass(frozen=True)
class Ranks:
    """One process among the `size` ranks (processes that train together), and the device that it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes the run's files and logs."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum a host tensor over all ranks, element-wise and in place; float64 stays float64."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Return whether the flag is true on any rank; all ranks call this and get the same answer."""
        return bool(self.sum(torch.tensor(float(flag))).item()) if self.size > 1 else flag

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in rank order, on every rank; all ranks call this, with any picklable value."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def agree(self, value: Any) -> Any:
        """Return rank 0's value on every rank (a broadcast); all ranks call this, with any picklable value."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        """Wait until every rank has called this."""
        if self.size > 1:
            dist.barrier()


@contextlib.contextmanager
def join(device: str = "auto", timeout_s: float | None = None) -> Iterator[Ranks]:
    """Join the process group that torchrun describes in the environment, while the block lasts; without torchrun, one rank alone.

    `device` is auto (CUDA when there is one), cpu or cuda; `timeout_s`: how long a collective may wait.
    Raises PlaitError when cuda is asked for and absent, and Stopped, a PlaitError too, when another rank is lost inside the block.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise PlaitError("distributed.device is 'cuda' but torch sees no CUDA device; set --distributed.device=cpu or auto")
    on_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = torch.device("cpu")
    if on_cuda:
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(chosen)
    if size == 1:
        yield Ranks(0, 1, chosen)
        return
    backend = "cpu:gloo,cuda:nccl" if on_cuda else "gloo"
    timeout = None if timeout_s is None else datetime.timedelta(seconds=timeout_s)
    dist.init_process_group(backend, timeout=timeout, store=agent_store.open_store(), rank=int(os.environ["RANK"]), world_size=size)
    try:
        yield Ranks(dist.get_rank(), size, chosen)
        dist.barrier()  # ranks leave together: none closes its connections while another still reads
    except BaseException as error:
        leaving.leave(error)
        raise
    gc.collect()  # a replica kept by a cycle would outlive the process group, which aborts the process at its exit
    dist.destroy_process_group()


def replicate(model: nn.Module, ranks: Ranks, comm_hook: str) -> nn.Module:
    """Wrap the model in DDP, which averages gradients over ranks in backward. One rank's or a sharded model is returned as it is.

    Called for each stage (part of a run): DDP ignores gradients of parameters that were frozen when it was made: replicas would diverge.
    """
    alone = ranks.size == 1 or isinstance(model, FSDPModule)
    return model if alone else replication.wrap(model, ranks.device, comm_hook)


def is_sharded(net: nn.Module) -> bool:
    """Return whether the model's weights are sharded over ranks (FSDP2), so that every pass through it communicates."""
    return isinstance(net, FSDPModule)


def accumulating(net: nn.Module, last: bool, sync: str = "step") -> contextlib.AbstractContextManager[None]:
    """Return a context for a micro-batch's backward: gradients are reduced for the `last`, or as `distributed.gradient_sync` says."""
    if isinstance(net, FSDPModule):
        net.set_requires_gradient_sync(last or sync == "micro_batch")
    if isinstance(net, DistributedDataParallel) and not last:
        return net.no_sync()
    return contextlib.nullcontext()


def reshard(net: nn.Module) -> None:
    """Free the gathered weights that a forward pass without a backward left behind (FSDP2); parameters are shards again."""
    for module in net.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@dataclass(frozen=True)
class LazyShardedTensor:
    """A saved tensor whose rows several ranks wrote: `parts`, in memory-mapped files. Only rows that are asked for are read."""

    parts: tuple[Tensor, ...]

    @property
    def shape(self) -> torch.Size:
        """Shape of the full tensor, all parts together."""
        return torch.Size((sum(len(part) for part in self.parts), *self.parts[0].shape[1:]))

    def rows(self, first: int, last: int) -> Tensor:
        """Return a copy of the rows from `first` up to, not including, `last`."""
        slices, start = [self.parts[0][:0]], 0
        for part in self.parts:
            slices.append(part[max(first - start, 0) : max(last - start, 0)])
            start += len(part)
        return torch.cat(slices)


StoredTensor = Tensor | LazyShardedTensor
"""A tensor read from a checkpoint: from one file, or still in the files of several ranks."""


def local(value: Tensor) -> Tensor:
    """Return this rank's rows of a sharded tensor, sharing its memory; any other tensor itself."""
    return value.to_local() if isinstance(value, DTensor) else value


def full_tensor(value: StoredTensor) -> Tensor:
    """Return all rows of a tensor sharded over ranks or files, any other itself. Of a DTensor it is a collective: all ranks call it."""
    if isinstance(value, LazyShardedTensor):
        return torch.cat(value.parts)
    return value.full_tensor() if isinstance(value, DTensor) else value


def local_row_range(rows: int, mesh: DeviceMesh) -> tuple[int, int]:
    """Return (first, end) of this rank's rows of `rows` sharded over the mesh's last dimension as by torch.chunk; `end` is excluded."""
    shards, i = mesh.size(mesh.ndim - 1), mesh.get_local_rank(mesh.ndim - 1)
    size = -(-rows // shards)
    return min(size * i, rows), min(size * (i + 1), rows)


def reshard_like(value: StoredTensor, pattern: Tensor) -> Tensor:
    """Return `value` on the device of `pattern`, sharded over ranks as `pattern` is, or full where that is full."""
    if not isinstance(pattern, DTensor):
        return full_tensor(value).to(pattern.device)
    mesh, placements = pattern.device_mesh, pattern.placements
    if isinstance(value, DTensor) and (value.device_mesh, value.placements) == (mesh, placements):
        return value
    if not isinstance(value, LazyShardedTensor):
        value = LazyShardedTensor((full_tensor(value),))
    assert placements[-1] == Shard(0), f"sharded along another dimension than rows: {placements}"
    part = value.rows(*local_row_range(value.shape[0], mesh)).to(pattern.device)
    stride = torch.empty(value.shape, device="meta").stride()
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=value.shape, stride=stride)


def norms_of_all(norms: Sequence[Tensor], sharded: Tensor) -> Sequence[Tensor]:
    """Combine norms of this rank's rows of tensors over the ranks that share the tensors: sqrt of the sum of squares.

    `norms`: scalars, as are those it returns. `sharded`: one of the tensors; where it is not sharded, `norms` is returned.
    """
    if not isinstance(sharded, DTensor):
        return norms
    squares = torch.stack([*norms]).square()
    dist.all_reduce(squares, group=sharded.device_mesh.get_group(sharded.device_mesh.ndim - 1))
    return squares.sqrt().unbind()


def place(parameter: nn.Parameter, dtype: torch.dtype, device: torch.device) -> None:
    """Move a parameter to the device and there to the dtype, in place: the host holds no copy of another type."""
    if not isinstance(parameter, DTensor):
        parameter.data = parameter.data.to(device).to(dtype)
    elif parameter.dtype != dtype:  # its `data` cannot change type
        swap_tensors(parameter, nn.Parameter(parameter.detach().to(dtype), parameter.requires_grad))


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the batch with its tensors, and those of dicts in it, on `device`; pinned ones are copied asynchronously."""
    moved = {name: to_device(value, device) if isinstance(value, dict) else value for name, value in batch.items()}
    if device.type == "cpu":  # a batch is made there
        return moved
    return {name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for name, value in moved.items()}
