"""Compute the loss of given batches without gradients. They are held-out data, or a few fixed samples that show that a restart is exact."""

import functools
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from plait.engine.loop import own_loss_weights, sum_over_ranks
from plait.engine.loss import Batch, Loss, StepBatch, has_targets, sums_of
from plait.engine.parallel import distributed
from plait.engine.parallel.distributed import Ranks
from plait.engine.parallel.rank_failures import attempt, raise_on_all
from plait.engine.precision import autocast
from plait.errors import PlaitError


@torch.no_grad()
def held_out_loss(net: nn.Module, loss: Loss, batches: Iterable[StepBatch], ranks: Ranks, precision: str) -> dict[str, float]:
    """Return {"loss": total, "loss/TERM": ...} over all held-out samples: sum of numerators / sum of weights, over batches and ranks.

    `net`: the model or its DDP; `batches`: this rank's; `precision`: a `train.precision`, such as "bf16". Raises PlaitError when every
    weight is 0, and, on all ranks, when the loss breaks its contract on any.
    """
    numerators = dict.fromkeys(loss.coefficients, 0.0)
    loss_weights = dict.fromkeys(loss.coefficients, 0.0)
    no_sums: Mapping[str, Tensor] = {}

    def forward(batch: Batch) -> Mapping[str, Tensor]:
        with autocast(precision, ranks.device):
            return sums_of(loss, net, distributed.to_device(batch, ranks.device))

    try:
        for batch in batches:
            own, failure = attempt(functools.partial(own_loss_weights, loss, batch.micro), loss_weights)
            *of_batch, failed = sum_over_ranks([*(own[name] for name in loss_weights), float(failure is not None)], ranks)
            raise_on_all(ranks, failure, on_any=failed > 0)
            loss_weights = {name: value + more for (name, value), more in zip(loss_weights.items(), of_batch, strict=True)}
            for micro in batch.micro:
                sums, failure = attempt(functools.partial(forward, micro.batch), no_sums)
                raise_on_all(ranks, failure, on_any=ranks.any(failure is not None))
                for name, numerator in sums.items():
                    numerators[name] += 0.0 if micro.padding else float(numerator)
    finally:
        distributed.reshard(net)
    names = sorted(numerators)
    totals = ranks.sum(torch.tensor([numerators[name] for name in names], dtype=torch.float64)).tolist()
    terms = {name: value / loss_weights[name] for name, value in zip(names, totals, strict=True) if loss_weights[name] > 0}
    if not has_targets(loss, loss_weights):
        raise PlaitError("the held-out samples have nothing to predict: every loss weight is 0; look at them with `plait data inspect`")
    return {
        "loss": sum(loss.coefficients[name] * value for name, value in terms.items()),
        **{f"loss/{name}": value for name, value in terms.items()},
    }
