"""Replicate or shard: decided at the start of each stage, from the bytes of its state and those of a device, and said in one line."""

import dataclasses
import os

import torch

from plait.config.schema import Distributed
from plait.engine.parallel.distributed import Ranks
from plait.engine.parallel.memory_estimate import Layout, Storage, Weights, memory
from plait.errors import PlaitError

_FOR_STATE = 0.7
"""Share of a device's memory that the state may take; the rest is for activations, which the batch decides."""
_GB = 1e9


def choose(settings: Distributed, weights: Weights, storage: Storage, ranks: Ranks, *, accumulating: bool) -> tuple[Layout, str]:
    """The layout of a stage, and why, in one line. Every rank gets the same: the smallest device counts.

    Raises PlaitError when ranks cannot be grouped as `distributed.shard_size` says.
    """
    if ranks.size == 1:
        return Layout(), "one rank: nothing to divide"
    near = _near(settings, ranks)
    free = min(ranks.gather(_memory(settings, ranks))) * _FOR_STATE

    def total(layout: Layout) -> float:
        return memory(weights, layout, storage, accumulating=accumulating).total

    whole = Layout("ddp", ranks.size)
    if settings.strategy == "ddp" or (settings.strategy == "auto" and total(whole) <= free):
        why = "as set" if settings.strategy == "ddp" else f"fits the {free / _GB:.3g} GB for it"
        return whole, f"ddp: {total(whole) / _GB:.3g} GB of state on each of {ranks.size} ranks, {why}"
    if settings.strategy == "auto":
        grouped = Layout("hsdp", ranks.size, near)
        chosen = grouped if near < ranks.size and total(grouped) <= free else Layout("fsdp", ranks.size)
        why = f"whole it would be {total(whole) / _GB:.3g} GB, more than the {free / _GB:.3g} GB for it"
    else:
        chosen = Layout(settings.strategy, ranks.size, near if settings.strategy == "hsdp" else None)
        why = "as set"
    if settings.frozen != "shard":
        beside = dataclasses.replace(chosen, cut_frozen=False)
        if settings.frozen == "replicate" or total(beside) <= free:
            chosen = beside
    frozen = "" if not weights.frozen + weights.paused else f", frozen blocks {'cut too' if chosen.cut_frozen else 'whole on every rank'}"
    size = f"{chosen.strategy}: {total(chosen) / _GB:.3g} GB of state on each of {ranks.size} ranks"
    return chosen, f"{size}, cut over {chosen.parts}{frozen}: {why}"


def _near(settings: Distributed, ranks: Ranks) -> int:
    """Ranks that share one copy under hsdp: as set, or those of one node."""
    size = settings.shard_size or int(os.environ.get("LOCAL_WORLD_SIZE", ranks.size))
    if settings.strategy == "hsdp" and (ranks.size % size or size == 1):
        fitting = [str(n) for n in range(2, ranks.size + 1) if ranks.size % n == 0]
        raise PlaitError(f"distributed.shard_size is {size}, but {ranks.size} ranks make groups of {', '.join(fitting)}; set one of these")
    return size if ranks.size % size == 0 else ranks.size


def _memory(settings: Distributed, ranks: Ranks) -> float:
    """Bytes that one rank has: as set, the GPU's, or its share of the machine's."""
    if settings.memory_gb is not None:
        return settings.memory_gb * _GB
    if ranks.device.type == "cuda":
        return float(torch.cuda.get_device_properties(ranks.device).total_memory)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return machine / int(os.environ.get("LOCAL_WORLD_SIZE", ranks.size))
