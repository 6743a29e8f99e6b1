"""The choice between replicating and sharding a stage's state over several ranks, from its size and the memory of a device."""

import dataclasses
import os
from typing import NamedTuple

import torch

from plait.config.schema import Distributed
from plait.engine.parallel.distributed import Ranks
from plait.engine.parallel.memory_estimate import Layout, ParameterCounts, Storage, memory
from plait.errors import PlaitError

_STATE_FRACTION = 0.7
"""Part of a device's memory that the state may take; the rest is for activations, whose size depends on the batch."""
_GB = 1e9


class Place(NamedTuple):
    """Where a stage runs: on so many `ranks`, of which `group` share one copy under hsdp, each with `memory` bytes."""

    ranks: int
    group: int
    memory: float


def choose(settings: Distributed, counts: ParameterCounts, storage: Storage, ranks: Ranks, *, accumulating: bool) -> tuple[Layout, str]:
    """Choose how the present ranks divide a stage's state, as `decide` does for the smallest device.

    The same on every rank. Raises PlaitError if `distributed.shard_size` does not fit.
    """
    group = shard_group(settings, ranks.size, int(os.environ.get("LOCAL_WORLD_SIZE", ranks.size)))
    place = Place(ranks.size, group, min(ranks.gather(memory_of(settings, ranks))))
    return decide(settings, counts, storage, place, accumulating=accumulating)


def decide(settings: Distributed, counts: ParameterCounts, storage: Storage, place: Place, *, accumulating: bool) -> tuple[Layout, str]:
    """Choose how ranks divide a stage's state, by `distributed.strategy`; returns that layout and a log line.

    `counts`, `storage`: how many values train or are frozen, and the bytes of each. `auto` replicates the state if the smallest device can
    hold it, or a part of it is whole on each rank; else shards it. `accumulating`: steps have several micro-batches.
    """
    free = place.memory * _STATE_FRACTION

    def total(layout: Layout) -> float:
        return memory(counts, layout, storage, accumulating=accumulating).total

    each = settings.gradient_sync == "micro_batch"
    replicated = Layout("ddp", place.ranks)
    fits = total(replicated) <= free
    if settings.strategy == "ddp" or (settings.strategy == "auto" and (fits or storage.whole)):
        reason = "as set" if settings.strategy == "ddp" else f"{'fits' if fits else 'is not cut to fit'} the {free / _GB:.3g} GB for it"
        sent = "; gradients are sent as bfloat16" if storage.compressed else ""
        return replicated, f"ddp: {total(replicated) / _GB:.3g} GB of state on each of {place.ranks} ranks, {reason}{sent}"
    if settings.strategy == "auto":
        grouped = Layout("hsdp", place.ranks, place.group, reduce_each=each)
        chosen = grouped if place.group < place.ranks and total(grouped) <= free else Layout("fsdp", place.ranks, reduce_each=each)
        reason = f"whole it would be {total(replicated) / _GB:.3g} GB, more than the {free / _GB:.3g} GB for it"
    else:
        chosen = Layout(settings.strategy, place.ranks, place.group if settings.strategy == "hsdp" else None, reduce_each=each)
        reason = "as set"
    if settings.frozen != "shard":
        with_full_frozen = dataclasses.replace(chosen, shard_frozen=False)
        if settings.frozen == "replicate" or total(with_full_frozen) <= free:
            chosen = with_full_frozen
    frozen = f", frozen blocks {'cut too' if chosen.shard_frozen else 'whole on every rank'}" if counts.frozen + counts.paused else ""
    size = f"{chosen.strategy}: {total(chosen) / _GB:.3g} GB of state on each of {place.ranks} ranks"
    unused = "; distributed.ddp_comm_hook changes nothing, as it is for ddp" if storage.compressed else ""
    return chosen, f"{size}, cut over {chosen.shards}{frozen}: {reason}{unused}"


def shard_group(settings: Distributed, ranks: int, per_node: int) -> int:
    """Return how many of `ranks` ranks hold one copy together under hsdp: as set, or those of one node (`per_node`).

    Raises PlaitError when that does not divide the number of ranks.
    """
    size = settings.shard_size or per_node
    if settings.strategy == "hsdp" and (ranks % size or size == 1):
        fitting = [str(n) for n in range(2, ranks + 1) if ranks % n == 0]
        raise PlaitError(f"distributed.shard_size is {size}, but {ranks} ranks make groups of {', '.join(fitting)}; set one of these")
    return size if ranks % size == 0 else ranks


def memory_of(settings: Distributed, ranks: Ranks) -> float:
    """Return the bytes of memory that one rank has: as set, the GPU's, or its equal part of the machine's."""
    if settings.memory_gb is not None:
        return settings.memory_gb * _GB
    if ranks.device.type == "cuda":
        return float(torch.cuda.get_device_properties(ranks.device).total_memory)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return machine / int(os.environ.get("LOCAL_WORLD_SIZE", ranks.size))
