"""How often a stage (part of a run) goes through its data: log lines on a mixture before the first step, and where each step is in it."""

import functools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from plait.data.buckets import BucketOrder
from plait.data.order import Order, interleave
from plait.data.sources.contract import Source

log = logging.getLogger(__name__)


def samples_drawn(order: Order | BucketOrder, steps: int) -> list[int]:
    """Return how many samples the first `steps` steps of the order take from each source, exactly."""
    spans = [(order.samples(steps), 1)]  # slots of the order's blocks, and samples in a slot
    if isinstance(order, BucketOrder):  # a slot is a batch, and blocks begin anew where its size was changed
        ends = [*(part.step for part in order.segments[1:]), steps]
        spans = [(max(0, min(end, steps) - part.step), part.batch) for part, end in zip(order.segments, ends, strict=True)]
    drawn = np.zeros(len(order.counts), np.int64)
    for slots, unit in spans:
        blocks, rest = divmod(slots, sum(order.counts))
        in_rest = np.bincount(interleave(order.counts)[0][:rest], minlength=len(order.counts))
        drawn += unit * (blocks * np.asarray(order.counts) + in_rest)
    return [int(count) for count in drawn]


def place_of(order: Order | BucketOrder, sources: Sequence[Source], step: int) -> dict[str, Any]:
    """Return the metrics `epoch`, passes over all samples at the end of `step` (from 0), and `bucket`, the name of its bucket, if any.

    A pass over a mixture has as many samples as its sources hold together.
    """
    source, group = order.bucket(step) if isinstance(order, BucketOrder) else (0, 0)
    buckets = _buckets(sources[source]) if sources[source].groups else []
    return {"epoch": order.samples(step + 1) / sum(order.sizes), **({"bucket": buckets[group]} if buckets else {})}


@functools.lru_cache(maxsize=64)
def _buckets(source: Source) -> list[str]:
    return [str(row["bucket"]) for row in source.table(1)]


def announce(names: Sequence[str], order: Order | BucketOrder, steps: int, epochs: float | None) -> None:
    """Log the passes over each source of a mixture; warn of sources without a sample, or short of the whole passes that `epochs` asks."""
    if len(names) < 2:
        return
    for name, size, samples in zip(names, order.sizes, samples_drawn(order, steps), strict=True):
        passes = samples / size
        log.info(f"  {name:<18} {passes:,.2f} passes: {samples:,} samples drawn of {size:,}")
        if not samples:
            log.warning(f"{name} gives no sample in the {steps:,} steps of this stage: raise its weight, or train longer, or remove it")
        elif epochs is not None and epochs >= 1 > passes:
            cure = "an epoch of a mixture is as many samples as its sources hold together, drawn by weight"
            log.warning(f"train.epochs is {epochs:g}, but {name} is not gone through once ({passes:.2f} passes): {cure}")
