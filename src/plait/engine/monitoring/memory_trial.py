"""Try before the first step whether the largest micro-batch of a stage (part of a run) fits in memory (`guard.memory_probe`)."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from plait.engine.loop import Loop
from plait.engine.loss import StepBatch
from plait.engine.parallel.distributed import local

_SAMPLES = 64  # at least a step's


def probed_steps(stage_step: int, steps: int, global_batch: int) -> tuple[int, int]:
    """Return (first, end): the next steps of a stage of `steps`, of about 64 samples, whose largest micro-batch is to be tried."""
    return stage_step, min(stage_step + max(1, _SAMPLES // global_batch), steps)


def probe_memory(loop: Loop, batches: Iterable[StepBatch]) -> None:
    """Run forward and backward on the largest micro-batch; gradients stay. Raises Exceeded or ExceededAlone out of memory."""
    micros = [micro for batch in batches for micro in batch.micro]
    state = loop.state
    assert state.optimizer is not None
    state.model.train()
    with reserved(state.trained().values(), state.optimizer):
        largest = max(micros, key=lambda micro: size(micro.batch))
        loop.accumulate(state.model, [largest], dict.fromkeys(loop.loss.coefficients, 1.0))


@contextlib.contextmanager
def reserved(trained: Iterable[Tensor], optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Allocate, inside the block, as much memory as AdamW's first step will for the moments of `trained`, for a realistic trial pass."""
    missing = sum(2 * local(value).nbytes for value in trained if value not in optimizer.state)
    device = next(iter(optimizer.param_groups))["params"][0].device
    held = torch.empty(missing, dtype=torch.uint8, device=device)
    yield
    del held


def size(batch: Mapping[str, Any]) -> int:
    """Count the values in all tensors of a micro-batch, to find the largest of several for a trial of memory."""
    return sum(value.numel() for value in batch.values() if isinstance(value, Tensor))
