"""Compute the loss of given batches without gradients. They are held-out data, or a few fixed samples that show that a restart is exact."""

from collections.abc import Iterable

import torch
from torch import nn

from plait.engine.loop import total_loss_weights
from plait.engine.loss import Loss, StepBatch, sums_of
from plait.engine.parallel import distributed
from plait.engine.parallel.distributed import Ranks
from plait.engine.precision import autocast
from plait.errors import PlaitError


@torch.no_grad()
def held_out_loss(net: nn.Module, loss: Loss, batches: Iterable[StepBatch], ranks: Ranks, precision: str) -> dict[str, float]:
    """Return {"loss": total, "loss/TERM": ...} over all held-out samples: sum of numerators / sum of weights, over batches and ranks.

    `net`: the model, or its DDP wrapper. `precision`: a `train.precision`, such as "bf16". Raises PlaitError when every weight is 0.
    """
    numerators = dict.fromkeys(loss.coefficients, 0.0)
    loss_weights = dict.fromkeys(loss.coefficients, 0.0)
    for batch in batches:
        of_batch = total_loss_weights(loss, batch.micro, ranks)
        loss_weights = {name: value + of_batch[name] for name, value in loss_weights.items()}
        for micro in batch.micro:
            with autocast(precision, ranks.device):
                sums = sums_of(loss, net, distributed.to_device(micro.batch, ranks.device))
            for name, numerator in sums.items():
                numerators[name] += 0.0 if micro.padding else float(numerator)
    distributed.reshard(net)
    names = sorted(numerators)
    totals = ranks.sum(torch.tensor([numerators[name] for name in names], dtype=torch.float64)).tolist()
    terms = {name: value / loss_weights[name] for name, value in zip(names, totals, strict=True) if loss_weights[name] > 0}
    if not terms:
        raise PlaitError("the held-out samples have nothing to predict: every loss weight is 0; look at them with `plait data inspect`")
    return {
        "loss": sum(loss.coefficients[name] * value for name, value in terms.items()),
        **{f"loss/{name}": value for name, value in terms.items()},
    }
