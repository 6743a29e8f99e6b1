"""Count passes of a stage (part of a run) over each source of its mixture. A source is one dataset, a mixture several."""

import logging
from collections.abc import Sequence

import numpy as np

from plait.data.buckets import BucketOrder
from plait.data.order import Order, interleave

log = logging.getLogger(__name__)


def samples_drawn(order: Order | BucketOrder, steps: int) -> list[int]:
    """Return the exact number of samples that the first `steps` steps of the order take from each source, in the sources' sequence."""
    spans = [(order.samples(steps), 1)]  # slots of the order's blocks, and samples in a slot
    if isinstance(order, BucketOrder):  # a slot is a batch, and blocks begin anew where its size was changed
        ends = [*(part.step for part in order.segments[1:]), steps]
        spans = [(max(0, min(end, steps) - part.step), part.batch) for part, end in zip(order.segments, ends, strict=True)]
    drawn = np.zeros(len(order.counts), np.int64)
    for slots, unit in spans:
        blocks, rest = divmod(slots, sum(order.counts))
        drawn += unit * (blocks * np.asarray(order.counts) + np.bincount(interleave(order.counts)[0][:rest], minlength=len(order.counts)))
    return [int(count) for count in drawn]


def announce(names: Sequence[str], order: Order | BucketOrder, steps: int, epochs: float | None) -> None:
    """Log how often `steps` steps go through each source of a mixture, and the warnings of `warnings`."""
    rows = zip(names, order.sizes, samples_drawn(order, steps), strict=True) if len(names) > 1 else ()
    for name, size, samples in rows:
        log.info(f"  {name:<18} {samples / size:,.2f} passes: {samples:,} samples drawn of {size:,}")
    for line in warnings(names, order, steps, epochs):
        log.warning(line)


def warnings(names: Sequence[str], order: Order | BucketOrder, steps: int, epochs: float | None) -> list[str]:
    """Return a warning for each source of a mixture that is never drawn, or whose passes are far from `epochs` >= 1.

    And one of steps that take more samples than there are.
    """
    total, batch, lines = sum(order.sizes), order.segments[-1].batch, []
    if batch > total:
        lines.append(f"a step takes {batch:,} samples and there are {total:,}, so each is in it more than once: lower train.global_batch")
    rows = zip(names, order.sizes, samples_drawn(order, steps), strict=True) if len(names) > 1 else ()
    for name, size, samples in rows:
        passes = samples / size
        if not samples:
            lines.append(f"{name} gives no sample in the {steps:,} steps of this stage: raise its weight, or train longer, or remove it")
        elif epochs is not None and epochs >= 1 > passes:
            cure = "an epoch of a mixture is as many samples as its sources hold together, drawn by weight"
            lines.append(f"train.epochs is {epochs:g}, but {name} is not gone through once ({passes:.2f} passes): {cure}")
        elif epochs is not None and passes > 4 * max(1, epochs):  # up to four, repeated data is nearly as good as new (arXiv 2305.16264)
            lines.append(f"train.epochs is {epochs:g}, but {name} is gone through {passes:.2f} times: lower its weight, or add samples")
    return lines
