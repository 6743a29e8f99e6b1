"""The stage summary: what a stage says before its first step (what trains, on what, for how long, what looks odd) and after its last."""

import logging
import math
from collections.abc import Mapping, Sequence

from torch import nn

from plait.assembly.data import TrainingData
from plait.data.sources.bucketing import contents_of
from plait.engine import power_ema, source_shares
from plait.training.stage_plan import StagePlan

log = logging.getLogger(__name__)


def announce(plan: StagePlan, model: nn.Module) -> None:
    """Say what the stage trains, on what, and for how long."""
    view, data = plan.view, plan.data
    sizes = {name: value.numel() for name, value in model.named_parameters()}
    total = sum(sizes[name] for names in plan.components.values() for name in names)
    counts = {component: sum(sizes[name] for name in names) for component, names in plan.trained.items()}
    trained = ", ".join(f"{component} {count:,}" for component, count in counts.items())
    sources = ", ".join(f"{source.name} {len(source):,}" for source in data.sources)
    batch = view.config.train.global_batch
    log.info(f"stage {view.index} {view.name}: trains {trained} of {total:,} parameters ({sum(counts.values()) / total:.2%})")
    log.info(f"data: {sources} samples; {plan.steps:,} steps of {batch}")
    for name, text in contents_of(data.sources, batch):
        log.info(f"  {name:<18} {text}")
    for line in shares(data.names(), data.weights, plan.order.counts):
        log.info(f"  {line}")
    average = view.config.optim.ema
    if average is not None and (warning := power_ema.half_life_warning(average.decay, plan.steps)):
        log.info(f"warning: {warning}")


def shares(names: Sequence[str], weights: Sequence[float], slots: Sequence[int]) -> list[str]:
    """Return each source's share of the samples, as its weight asks and as the order's block of `slots` gives. One source: none."""
    if len(names) < 2:
        return []
    return [
        f"{name:<18} asked {weight / math.fsum(weights):.2%} of the samples, gets {count / sum(slots):.2%}"
        for name, weight, count in zip(names, weights, slots, strict=True)
    ]


def realised(data: TrainingData, totals: Mapping[str, float]) -> list[str]:
    """Return each source's share as its weight asks, and of all that the stage has drawn so far. One source: none."""
    drawn = source_shares.shares(totals)
    quantities = {name.rpartition("/")[2]: None for name in drawn}
    words = {quantity: "loss weight" if quantity == "loss" else quantity.replace("_", " ") for quantity in quantities}
    return [
        f"{name:<18} asked {weight / math.fsum(data.weights):.2%} of the samples; gave "
        + ", ".join(f"{drawn[f'share/{name}/{quantity}']:.2%} of {word}" for quantity, word in words.items())
        for name, weight in zip(data.names(), data.weights, strict=True)
        if drawn
    ]
