"""Give transformers' Trainer the data of a stage: plait's own loader, a rank's part of each step.

accelerate neither shuffles nor shards them: which samples a step holds, and which of them a rank, is decided by plait's order.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from plait.assembly.model import ModelBundle
from plait.data.loading.loader import Loader, StepBatch
from plait.data.loading.token_budget import TokenBudget
from plait.engine.loss import MicroBatch
from plait.engine.parallel.distributed import Ranks
from plait.training.stage_plan import StagePlan


@dataclass(frozen=True)
class HostRanks(Ranks):
    """The ranks that accelerate has joined. `group`: of gloo, for values on the host, as accelerate's own may know of GPUs alone."""

    group: dist.ProcessGroup | None

    @classmethod
    def of(cls, rank: int, size: int, device: torch.device) -> "HostRanks":
        """Return the ranks of this process group; all ranks call this."""
        return cls(rank, size, device, dist.new_group(backend="gloo") if size > 1 else None)

    def sum(self, values: Tensor) -> Tensor:
        """Sum a host tensor over all ranks, element-wise and in place."""
        if self.size > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in rank order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def agree(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        return self.gather(value)[0]

    def barrier(self) -> None:
        """Wait until every rank has called this."""
        if self.size > 1:
            dist.barrier(group=self.group)


@dataclass(frozen=True)
class Part:
    """A micro-batch, number `index` of a step, with the global `loss_weights` of the step by term. `last`: of the step on this rank."""

    micro: MicroBatch
    loss_weights: Mapping[str, float]
    index: int
    last: bool


class Samples:
    """What the trainer calls its training data: as many as the sources of a stage hold together."""

    def __init__(self, plan: StagePlan) -> None:
        self.sizes = plan.order.sizes

    def __len__(self) -> int:
        return sum(self.sizes)


class StepBatches:
    """Iterates over this rank's part of each step, a StepBatch, from the step that `step()` returns on to the stage's end.

    Its length is that of the stage in batches of the trainer, `accumulation` for each step.
    """

    def __init__(self, plan: StagePlan, bundle: ModelBundle, ranks: Ranks, step: Callable[[], int], accumulation: int) -> None:
        self.plan, self.bundle, self.ranks, self.step, self.accumulation = plan, bundle, ranks, step, accumulation
        self.dataset = Samples(plan)

    def __len__(self) -> int:
        return self.plan.steps * self.accumulation

    def __iter__(self) -> Iterator[StepBatch]:
        config, ranks = self.plan.config, self.ranks
        if isinstance(self.plan.slicing, TokenBudget):
            self.plan.slicing.ahead(self.plan.order, range(self.step(), self.plan.steps))
        loader = Loader(
            self.plan.data.sources,
            self.plan.order,
            self.bundle.inputs(config, train=True),
            seed=self.plan.data_seed,
            rank=ranks.rank,
            world_size=ranks.size,
            micro_batch=self.plan.micro_batch(ranks.size),
            workers=config.data.workers,
            kind=config.data.worker_kind,
            prefetch=config.data.prefetch,
            pin=ranks.device.type == "cuda",
            start_step=self.step(),
            stop_step=self.plan.steps,
            slicing=self.plan.slicing,
        )
        with contextlib.closing(loader):
            yield from loader
