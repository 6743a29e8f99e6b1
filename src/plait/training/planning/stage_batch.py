"""A micro-batch of a stage to plan with: the largest of its first steps, or one of usual shapes without data."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plait.assembly.model import ModelBundle
from plait.config.schema import RunConfig
from plait.data.loading.loader import Loader
from plait.data.order import SampleId, Slices
from plait.engine.loss import Loss, weights_of
from plait.engine.monitoring.memory_trial import probed_steps, size
from plait.engine.schedule import TOKENS
from plait.errors import BadSample, PlaitError
from plait.families.planning import planner
from plait.training.planning.entries import training_entries
from plait.training.planning.meta_model import without_downloads
from plait.training.stage_plan import StagePlan

Batch = Mapping[str, Any]
_TYPICAL = 4
"""Micro-batches, evenly spaced among all by size, of which the FLOPs are counted."""
_ROWS = 64
"""Samples of the largest micro-batch that is made: of one with more, the memory follows from this many and from half as many."""
_READ = 256
"""Samples of a step that are read, at most."""


class Unusable(PlaitError):
    """Raised where the samples of a stage cannot be read or encoded, though all that encoding takes is there."""


@dataclass(frozen=True)
class StageBatch:
    """`largest`: the micro-batch that takes the most memory; `typical`: some whose mean is about that of all, with their samples.

    `samples`, `tokens`: of all that were looked at; tokens None where the family counts none. `part`: None, or where the run's micro-batch
    is larger than is made here: (half of `largest`, its share of the samples between that half and `largest`, above 1). `assumed`: there
    was no data to look at, and why; None for the run's own samples.
    """

    largest: Batch
    typical: Sequence[tuple[Batch, int]]
    samples: int
    tokens: float | None
    part: tuple[Batch, float] | None = None
    assumed: str | None = None

    @property
    def tokens_per_sample(self) -> float | None:
        """Return the mean number of tokens of a sample, or None where the family counts none."""
        return None if self.tokens is None else self.tokens / self.samples


def of_data(plan: StagePlan, bundle: ModelBundle, ranks: int, *, micro_batch_size: int | None = None) -> StageBatch:
    """Read the samples of the stage's first steps, about 64, as one of `ranks` ranks that has any.

    Raises Unusable, a PlaitError, if they cannot be used, and PlaitError if the run's own way to encode them is not there.
    """
    with without_downloads():
        inputs = bundle.inputs(plan.config, train=True)
    ranks = min(ranks, plan.config.train.global_batch)  # of more, the first has none
    wanted = micro_batch_size or plan.micro_batch(ranks)
    packed = plan.config.data.pack_tokens is not None
    rows = wanted if packed else min(wanted, _ROWS)
    try:
        batches = _read(plan, inputs, ranks, rows)
        part = None if rows == wanted else (_read(plan, inputs, ranks, rows // 2)[-1][0], _share(wanted, rows))
    except PlaitError as error:
        raise Unusable(str(error)) from error
    count = min(_TYPICAL, len(batches))
    typical = [batches[(2 * i + 1) * len(batches) // (2 * count)] for i in range(count)]
    tokens = _tokens(plan.loss, [batch for batch, _ in batches])
    return StageBatch(batches[-1][0], typical, sum(samples for _, samples in batches), tokens, part)


def _share(wanted: int, rows: int) -> float:
    """Return where `wanted` rows are on the line from half of `rows` (0) to `rows` (1)."""
    return (wanted - rows // 2) / (rows - rows // 2)


def _read(plan: StagePlan, inputs: Any, ranks: int, rows: int) -> list[tuple[Batch, int]]:
    """Read micro-batches of `rows` samples; return them with their numbers of samples, the largest last."""

    def first(ids: Sequence[SampleId], rank: int, world_size: int, micro_batch: int | None) -> Slices:
        slices = plan.slicing(ids, rank, world_size, micro_batch)
        before = itertools.accumulate((len(one) for one, _ in slices), initial=0)
        return [one for one, read in zip(slices, before, strict=False) if read < _READ]

    loader = Loader(
        plan.data.sources,
        plan.order,
        inputs,
        seed=plan.data_seed,
        slicing=first,
        world_size=ranks,
        micro_batch=rows,
        workers=0,
        stop_step=probed_steps(0, plan.steps, plan.config.train.global_batch)[1],
    )
    with loader:
        micros = [micro for step in loader for micro in step.micro if not micro.padding]
    if not micros:
        raise PlaitError("the stage's first steps have no samples for this rank")
    return sorted(((micro.batch, len(micro.ids)) for micro in micros), key=lambda pair: size(pair[0]))


def assumed(config: RunConfig, bundle: ModelBundle, loss: Loss, micro_batch_size: int, reason: str) -> StageBatch:
    """Return a batch of the family's usual shapes. Raises PlaitError if the family tells none, or none fits `data.max_tokens`."""
    family = planner(config.family)
    if family is None:
        raise PlaitError(f"family {config.family!r} has no module planning, which would tell its usual shapes")
    rows = min(micro_batch_size, _ROWS)
    tokens, picture = config.data.max_tokens, _largest_bucket(config)
    try:
        batch = family.assumed_batch(bundle.section, samples=rows, tokens=tokens, picture=picture)
        half = None if rows == micro_batch_size else family.assumed_batch(bundle.section, samples=rows // 2, tokens=tokens, picture=picture)
    except BadSample as error:
        raise PlaitError(f"no sample of the usual shapes fits: {error}") from error
    part = None if half is None else (half, _share(micro_batch_size, rows))
    return StageBatch(batch, [(batch, rows)], rows, _tokens(loss, [batch]), part, reason)


def _largest_bucket(config: RunConfig) -> tuple[int, int] | None:
    """Return width and height in pixels of the largest bucket that the training sources name, as "832x1216"; None: they name none."""
    named = [name for entry in training_entries(config) for name in entry.options.get("buckets") or ()]
    sizes = [(int(size[1]), int(size[2])) for name in named if (size := re.fullmatch(r"(\d+)x(\d+)", str(name)))]
    return max(sizes, key=lambda size: size[0] * size[1], default=None)


def _tokens(loss: Loss, batches: Sequence[Batch]) -> float | None:
    return sum(float(weights_of(loss, batch)[TOKENS]) for batch in batches) if TOKENS in loss.counts else None
