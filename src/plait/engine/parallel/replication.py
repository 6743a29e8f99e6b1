"""Data-parallel replicas of a model (DDP): each rank has all weights, and gradients are averaged during the backward pass.

Not here: sharding (`sharding.py`), and the comparison of replicas (`replicas.py`).
"""

import inspect
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

from plait.engine.parallel import hosted

_BROADCASTS_BUFFERS = ("forward_sync_buffers", "broadcast_buffers")
"""DDP's option to broadcast rank 0's buffers before every forward pass, by its name in torch 2.13 and before. Ours never change."""


def wrap(model: nn.Module, device: torch.device, comm_hook: str) -> DistributedDataParallel:
    """Wrap the model in DDP. `comm_hook`: "none", or "bf16" to send gradients as bfloat16 (`distributed.ddp_comm_hook`)."""
    devices = [device.index] if device.type == "cuda" else None
    known = inspect.signature(DistributedDataParallel).parameters
    no_broadcast: dict[str, Any] = {next(name for name in _BROADCASTS_BUFFERS if name in known): False}
    hosted.leave_out(model)
    replica = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True, **no_broadcast)
    if comm_hook == "bf16":
        replica.register_comm_hook(None, _as_bfloat16)
    return replica


def _as_bfloat16(_: object, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """Average a bucket of gradients over ranks in bfloat16: divided before the sum, and stored in the bucket's own dtype again.

    What torch's `bf16_compress_hook` does, which torch refuses by its name where it was built without CUDA.
    """
    gradients = bucket.buffer()
    sent = gradients.to(torch.bfloat16).div_(dist.get_world_size())
    reduced: torch.futures.Future[list[Tensor]] = dist.all_reduce(sent, async_op=True).get_future()
    return reduced.then(lambda future: gradients.copy_(future.value()[0]))
