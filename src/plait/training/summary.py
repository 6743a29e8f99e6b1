"""Log what a stage (part of a run) trains and on which data, and afterwards what share each dataset contributed."""

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from plait.assembly import passes
from plait.assembly.data import TrainingData
from plait.data.buckets import BucketOrder
from plait.data.loading.bucketing import contents_of
from plait.data.order import Order
from plait.data.sources.contract import Source
from plait.engine import averages, precision, source_shares
from plait.training.stage_plan import StagePlan

log = logging.getLogger(__name__)


def announce(plan: StagePlan, model: nn.Module) -> None:
    """Log what the stage of `plan` trains, on which data sets, for how many steps, and warnings about its settings."""
    view, data = plan.view, plan.data
    sizes = {name: precision.count(value) for name, value in model.named_parameters()}
    total = sum(sizes[name] for names in plan.components.values() for name in names)
    counts = {component: sum(sizes[name] for name in names) for component, names in plan.trained.items()}
    trained = ", ".join(f"{component} {count:,}" for component, count in counts.items())
    sources = ", ".join(f"{source.name} {len(source):,}" for source in data.sources)
    batch = view.config.train.global_batch
    log.info(f"stage {view.index} {view.name}: trains {trained} of {total:,} parameters ({sum(counts.values()) / total:.2%})")
    log.info(f"data: {sources} samples; {plan.steps:,} steps of {batch}")
    for name, text in contents_of(data.sources, batch):
        log.info(f"  {name:<18} {text}")
    for line in planned_shares(data.names(), data.sampling_weights, plan.order.counts):
        log.info(f"  {line}")
    if len(data.sources) > 1 or batch > sum(plan.order.sizes):
        passes.announce(data.names(), plan.order, plan.steps, view.config.train.epochs)
    average = view.config.optim.ema
    if average is not None and (warning := averages.half_life_warning(average.decay, plan.steps)):
        log.info(f"warning: {warning}")


def place_of(order: Order | BucketOrder, sources: Sequence[Source], step: int) -> dict[str, Any]:
    """Return {"epoch": passes over all samples of all sources after `step` (from 0), "bucket": name of its bucket, if there are any}."""
    source, group = order.bucket(step) if isinstance(order, BucketOrder) else (0, 0)
    buckets = _buckets(sources[source]) if sources[source].groups else []
    return {"epoch": order.samples(step + 1) / sum(order.sizes), **({"bucket": buckets[group]} if buckets else {})}


@functools.lru_cache(maxsize=64)
def _buckets(source: Source) -> list[str]:
    return [str(row["bucket"]) for row in source.table(1)]


def planned_shares(names: Sequence[str], sampling_weights: Sequence[float], slots: Sequence[int]) -> list[str]:
    """Return a line per source (dataset), "NAME asked 25.00% of the samples, gets 24.98%"; [] for one source.

    `sampling_weights`: as configured. `slots`: how many samples each source gives to one block of the order, which repeats.
    """
    if len(names) < 2:
        return []
    return [
        f"{name:<18} asked {weight / math.fsum(sampling_weights):.2%} of the samples, gets {count / sum(slots):.2%}"
        for name, weight, count in zip(names, sampling_weights, slots, strict=True)
    ]


def realised(data: TrainingData, totals: Mapping[str, float]) -> list[str]:
    """Return a line per source (dataset): its configured share of the samples, and its share of what was consumed. [] for one source.

    `totals`: running sums in the state, {"drawn/SOURCE/QUANTITY": amount}; a quantity is samples, tokens or the loss weight.
    """
    drawn = source_shares.shares(totals)
    quantities = {name.rpartition("/")[2]: None for name in drawn}
    words = {quantity: "loss weight" if quantity == "loss" else quantity.replace("_", " ") for quantity in quantities}
    return [
        f"{name:<18} asked {weight / math.fsum(data.sampling_weights):.2%} of the samples; gave "
        + ", ".join(f"{drawn[f'share/{name}/{quantity}']:.2%} of {word}" for quantity, word in words.items())
        for name, weight in zip(data.names(), data.sampling_weights, strict=True)
        if drawn
    ]
