"""Compute the loss of given batches without gradients. They are held-out data, or a few fixed samples that show that a restart is exact."""

import functools
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from plait.engine.loop import own_loss_weights, sum_over_ranks
from plait.engine.loss import Batch, Loss, StepBatch, has_targets, sums_of
from plait.engine.parallel import distributed
from plait.engine.parallel.distributed import Ranks
from plait.engine.parallel.rank_failures import attempt, raise_on_all
from plait.engine.precision import autocast
from plait.errors import PlaitError, counted_reasons


class NoUsableSample(PlaitError):
    """Raised where no sample of a bench can be used, so that there is nothing to compute figures from."""


def none_usable(reasons: Counter[str]) -> NoUsableSample:
    """Return the error of a bench with no usable sample. `reasons`: why each held-out sample cannot be used; none where there is none."""
    why = counted_reasons(reasons) if len(reasons) > 1 else next(iter(reasons), "")
    return NoUsableSample(f"none of {reasons.total()} held-out samples can be used: {why}" if reasons else "there are no held-out samples")


@torch.no_grad()
def held_out_loss(net: nn.Module, loss: Loss, batches: Iterable[StepBatch], ranks: Ranks, precision: str) -> dict[str, float]:
    """Return {"loss": total, "loss/TERM": ...} over all held-out samples: sum of numerators / sum of weights, over batches and ranks.

    With them `bad_samples`, the number of those that cannot be used, where there are any. `net`: the model or its DDP; `batches`: this
    rank's; `precision`: a `train.precision`, such as "bf16". Raises NoUsableSample when no sample can be used, PlaitError when every weight
    is 0, and, on all ranks, when the loss breaks its contract on any.
    """
    numerators = dict.fromkeys(loss.coefficients, 0.0)
    loss_weights = dict.fromkeys(loss.coefficients, 0.0)
    no_sums: Mapping[str, Tensor] = {}
    bad, used, reasons = 0, 0, Counter[str]()

    def forward(batch: Batch) -> Mapping[str, Tensor]:
        with autocast(precision, ranks.device):
            return sums_of(loss, net, distributed.to_device(batch, ranks.device))

    try:
        for batch in batches:
            own, failure = attempt(functools.partial(own_loss_weights, loss, batch.micro), loss_weights)
            reasons.update(lost := [sample.reason for sample in batch.bad if sample.attempt == 0])
            usable = sum(len(micro.ids) for micro in batch.micro if not micro.padding)
            own_sums = [*(own[name] for name in loss_weights), failure is not None, len(lost), usable]
            *of_batch, failed, bad_here, used_here = sum_over_ranks(own_sums, ranks)
            raise_on_all(ranks, failure, on_any=failed > 0)
            bad, used = bad + int(bad_here), used + int(used_here)
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
    if bad and not used:
        raise none_usable(sum(ranks.gather(reasons), Counter()))
    if not has_targets(loss, loss_weights):
        raise PlaitError("the held-out samples have nothing to predict: every loss weight is 0; look at them with `plait data inspect`")
    return {
        "loss": sum(loss.coefficients[name] * value for name, value in terms.items()),
        **{f"loss/{name}": value for name, value in terms.items()},
        **({"bad_samples": float(bad)} if bad else {}),
    }
