"""Set the model up for a stage (part of a run): dtypes, recomputation, compilation, device, replication or sharding over ranks.

A plan says what the stage trains, on which data, for how many steps; a bundle is the model with its family (kind of model). To recompute
activations in the backward pass is activation checkpointing.
"""

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import nn

from plait.assembly.model import ModelBundle
from plait.config.resolved import folder
from plait.data.formats.index import cache_folder
from plait.engine import blocks
from plait.engine.blocks import Compilations
from plait.engine.flops import Meter
from plait.engine.parallel import memory_estimate, strategy
from plait.engine.parallel.distributed import Ranks
from plait.engine.parallel.sharding import Sharding
from plait.engine.precision import TYPES, caution, set_precision, types_of
from plait.engine.state import State
from plait.training.moments import kept
from plait.training.stage_plan import StagePlan

log = logging.getLogger(__name__)


class Counters(NamedTuple):
    """Counters of a stage: `meter` of floating point operations, `compilations` of recompilations (None if nothing is compiled)."""

    meter: Meter
    compilations: Compilations | None


@contextlib.contextmanager
def lay_out(plan: StagePlan, bundle: ModelBundle, state: State, ranks: Ranks, micro_batch: int) -> Iterator[Counters]:
    """Set the model's dtypes, device, sharding, activation checkpointing and compilation for a stage, in place; a context manager.

    Yields the stage's counters. At the end of the block checkpointing and compilation are undone; the rest stays until the next call.
    `micro_batch`: samples per forward pass. Raises PlaitError if `distributed.shard_size` does not fit the number of ranks.
    """
    config, units, names = plan.config, bundle.blocks, plan.trained_names
    if bundle.sharding is not None:
        bundle.sharding.unwrap()
    meter = Meter(ranks.device, config.train.precision)
    how, cache, rest = config.distributed, config.data.cache, bundle.family.recomputed
    changed = how.compile or how.activation_checkpointing != "none"
    stream, halved = config.train.residual_dtype, config.train.residual_dtype != "float32"
    with (
        blocks.residual_stream(units, stream) if halved else contextlib.nullcontext(),
        blocks.changed(units, how, meter, cache_folder(folder(cache)), rest(bundle.model))
        if changed
        else contextlib.nullcontext() as count,
    ):
        for line in bundle.adapters.begin(state.ever_trained, names) if bundle.adapters is not None else ():
            log.info(line)
        if warning := caution(config.train.precision, ranks.device):
            log.info(warning)
        if bundle.sharding is None:
            set_precision(bundle.model, state.ever_trained | names, config.train.precision, ranks.device)
            if ranks.device.type != "cpu":  # where it is built
                bundle.model.to(ranks.device)
            if config.distributed.ddp_comm_hook != "none":
                log.info("distributed.ddp_comm_hook changes nothing: one rank sends no gradients")
        else:
            log.info(_divide(bundle.sharding, plan, state, ranks, units, micro_batch))
        yield Counters(meter, count)


def _divide(sharding: Sharding, plan: StagePlan, state: State, ranks: Ranks, units: Sequence[nn.Module], micro_batch: int) -> str:
    """Replicate or shard the model over several ranks by `distributed.strategy`; returns a log line. `units`: modules gathered at once."""
    config, names = plan.config, plan.trained_names
    counts = memory_estimate.count_parameters(sharding.model, names, state.ever_trained, units)
    storage = kept.storage(config, plan.trained_parameters(sharding.model), units)
    accumulating = config.data.pack_tokens is not None or math.ceil(config.train.global_batch / (micro_batch * ranks.size)) > 1
    layout, reason = strategy.choose(config.distributed, counts, storage, ranks, accumulating=accumulating)
    types = types_of(sharding.model, state.ever_trained | names, config.train.precision)
    sharding.wrap(units, names, layout, ranks, types=types, products=TYPES[config.train.precision].products)
    return reason
