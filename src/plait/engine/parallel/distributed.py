"""Ranks: who we are, and the few collectives the loop needs. With one process every collective is the identity.

Not here: what is communicated and why (`loop.py`). Host values travel over gloo, so that no collective forces a device to wait.
"""

import contextlib
import datetime
import gc
import inspect
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

from plait.errors import PlaitError, Stopped

_LOST = ("closed by peer", "reset by peer", "Broken pipe", "Connection refused", "Timed out waiting", "timed out")
"""What gloo and NCCL say when a rank no longer answers."""

_SYNCHRONISES = ("forward_sync_buffers", "broadcast_buffers")
"""DDP's option to send rank 0's buffers around before every forward pass, by its name in torch 2.13 and before. Ours never change."""


@dataclass(frozen=True)
class Ranks:
    """This process among `size` ranks, and the device it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum of a host tensor over all ranks (float64 stays float64)."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is raised on any rank; every rank gets the same answer."""
        return bool(self.sum(torch.tensor(float(flag))).item()) if self.size > 1 else flag

    def gather(self, value: Any) -> list[Any]:
        """One value from every rank, in rank order, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def agree(self, value: Any) -> Any:
        """Rank 0's value on every rank."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier()


@contextlib.contextmanager
def join(device: str = "auto", timeout_s: float | None = None) -> Iterator[Ranks]:
    """Join the process group that torchrun describes in the environment, or stand alone; leave it at the end.

    `device` is auto (CUDA when there is one), cpu or cuda; `timeout_s`: how long a collective may wait.
    Raises PlaitError when cuda is asked for and absent.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise PlaitError("distributed.device is 'cuda' but torch sees no CUDA device; set --distributed.device=cpu or auto")
    on_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    size = int(os.environ.get("WORLD_SIZE", "1"))
    place = torch.device("cpu")
    if on_cuda:
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    if size == 1:
        yield Ranks(0, 1, place)
        return
    backend = "cpu:gloo,cuda:nccl" if on_cuda else "gloo"
    timeout = None if timeout_s is None else datetime.timedelta(seconds=timeout_s)
    dist.init_process_group(backend, timeout=timeout, store=_store(), rank=int(os.environ["RANK"]), world_size=size)
    try:
        yield Ranks(dist.get_rank(), size, place)
        dist.barrier()  # ranks leave together: none closes its connections while another still reads
    except RuntimeError as error:
        if not any(words in str(error) for words in _LOST):
            raise
        reason = str(error).splitlines()[0]
        raise Stopped(f"another rank ended or hangs ({reason}); its own last words say why, and the same command continues") from error
    finally:
        gc.collect()  # a replica kept by a cycle would outlive the process group, which aborts the process at its exit
        dist.destroy_process_group()


def _store() -> dist.Store | None:
    """Where ranks meet when torchrun offers a store of its own; None: as torch does by itself.

    torchrun keeps that store over its restarts, and in it the addresses of dead ranks, which gloo would wait for (pytorch#135712): each
    attempt gets names of its own. Over several nodes attempts are counted differently. Raises PlaitError there, saying how to start.
    """
    told = os.environ
    if told.get("TORCHELASTIC_USE_AGENT_STORE") != str(True):
        return None
    if int(told["GROUP_WORLD_SIZE"]) > 1 and int(told["TORCHELASTIC_MAX_RESTARTS"]) > 0:
        raise PlaitError(
            f"torchrun --max-restarts on {told['GROUP_WORLD_SIZE']} nodes: a restart would hang in torchrun's shared store; "
            "start torchrun with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment, on every node"
        )
    store = dist.TCPStore(told["MASTER_ADDR"], int(told["MASTER_PORT"]), is_master=False)
    return dist.PrefixStore(f"attempt-{told['TORCHELASTIC_RESTART_COUNT']}", store)


def replicate(model: nn.Module, ranks: Ranks) -> nn.Module:
    """`model` for training on all ranks: gradients are averaged over ranks in its backward (DDP); alone or sharded, the model itself.

    Made anew at every stage start: DDP wrapped around a frozen module never learns of its unfreezing, and replicas then diverge.
    """
    if ranks.size == 1 or isinstance(model, FSDPModule):
        return model
    devices = [ranks.device.index] if ranks.device.type == "cuda" else None
    still: dict[str, Any] = {next(name for name in _SYNCHRONISES if name in inspect.signature(DistributedDataParallel).parameters): False}
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True, **still)


def is_sharded(net: nn.Module) -> bool:
    """Whether its weights are cut over ranks, so that every pass through it is a collective."""
    return isinstance(net, FSDPModule)


def accumulating(net: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
    """While not `last`, keep gradients local: ranks meet once per optimizer step."""
    if isinstance(net, FSDPModule):
        net.set_requires_gradient_sync(last)
        net.set_is_last_backward(last)
    if isinstance(net, DistributedDataParallel) and not last:
        return net.no_sync()
    return contextlib.nullcontext()


def reshard(net: nn.Module) -> None:
    """Let go of whole weights that a forward pass without a backward left on this rank; its parameters are shards again."""
    for module in net.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@dataclass(frozen=True)
class LazyShardedTensor:
    """A tensor in pieces along its first dimension, which lie in mapped files: what is not asked for is not read."""

    parts: tuple[Tensor, ...]

    @property
    def shape(self) -> torch.Size:
        """Of the whole."""
        return torch.Size((sum(len(part) for part in self.parts), *self.parts[0].shape[1:]))

    def rows(self, first: int, last: int) -> Tensor:
        """A copy of the rows from `first` up to `last`."""
        found, at = [self.parts[0][:0]], 0
        for part in self.parts:
            found.append(part[max(first - at, 0) : max(last - at, 0)])
            at += len(part)
        return torch.cat(found)


StoredTensor = Tensor | LazyShardedTensor


def local(value: Tensor) -> Tensor:
    """This rank's rows of a sharded tensor, in the same memory; any other tensor itself."""
    return value.to_local() if isinstance(value, DTensor) else value


def full_tensor(value: StoredTensor) -> Tensor:
    """All rows of a sharded tensor, from all ranks (which all must ask), or of one in pieces; any other tensor itself."""
    if isinstance(value, LazyShardedTensor):
        return torch.cat(value.parts)
    return value.full_tensor() if isinstance(value, DTensor) else value


def local_row_range(rows: int, mesh: DeviceMesh) -> tuple[int, int]:
    """The first row of this rank's, and the first that is the next one's, of a tensor with so many: as torch.chunk cuts."""
    parts, place = mesh.size(mesh.ndim - 1), mesh.get_local_rank(mesh.ndim - 1)
    each = -(-rows // parts)
    return min(each * place, rows), min(each * (place + 1), rows)


def reshard_like(value: StoredTensor, pattern: Tensor) -> Tensor:
    """`value` on the device of `pattern` and cut over ranks as that is, if it is. Rows move between ranks only where the cut is another."""
    if not isinstance(pattern, DTensor):
        return full_tensor(value).to(pattern.device)
    mesh, placements = pattern.device_mesh, pattern.placements
    if isinstance(value, DTensor) and (value.device_mesh, value.placements) == (mesh, placements):
        return value
    if not isinstance(value, LazyShardedTensor):
        value = LazyShardedTensor((full_tensor(value),))
    assert placements[-1] == Shard(0), f"cut along another dimension than rows: {placements}"
    part = value.rows(*local_row_range(value.shape[0], mesh)).to(pattern.device)
    stride = torch.empty(value.shape, device="meta").stride()
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=value.shape, stride=stride)


def norm_of_all(norm: Tensor, sharded: Tensor) -> Tensor:
    """The norm of tensors cut as `sharded` is, from the norm of this rank's rows; of whole ones, the norm itself."""
    if not isinstance(sharded, DTensor):
        return norm
    squares = norm.square()
    dist.all_reduce(squares, group=sharded.device_mesh.get_group(sharded.device_mesh.ndim - 1))
    return squares.sqrt()


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on `device`; the copy does not wait when the batch is pinned."""
    return {name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for name, value in batch.items()}
