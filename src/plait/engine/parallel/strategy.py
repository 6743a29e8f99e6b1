"""Replicate or shard: decided at the start of each stage, from the bytes of its state and those of a device, and said in one line."""

import dataclasses
import os

import torch

from plait.config.schema import Distributed
from plait.engine.parallel.distributed import World
from plait.engine.parallel.memory_estimate import Layout, Storage, Weights, memory
from plait.errors import PlaitError

_FOR_STATE = 0.7
"""Share of a device's memory that the state may take; the rest is for activations, which the batch decides."""
_GB = 1e9


def choose(settings: Distributed, weights: Weights, storage: Storage, world: World, *, accumulating: bool) -> tuple[Layout, str]:
    """The layout of a stage, and why, in one line. Every rank gets the same: the smallest device counts.

    Raises PlaitError when ranks cannot be grouped as `distributed.shard_size` says.
    """
    if world.size == 1:
        return Layout(), "one rank: nothing to divide"
    near = _near(settings, world)
    free = min(world.gather(_memory(settings, world))) * _FOR_STATE

    def total(layout: Layout) -> float:
        return memory(weights, layout, storage, accumulating=accumulating).total

    whole = Layout("ddp", world.size)
    if settings.strategy == "ddp" or (settings.strategy == "auto" and total(whole) <= free):
        why = "as set" if settings.strategy == "ddp" else f"fits the {free / _GB:.3g} GB for it"
        return whole, f"ddp: {total(whole) / _GB:.3g} GB of state on each of {world.size} ranks, {why}"
    if settings.strategy == "auto":
        grouped = Layout("hsdp", world.size, near)
        chosen = grouped if near < world.size and total(grouped) <= free else Layout("fsdp", world.size)
        why = f"whole it would be {total(whole) / _GB:.3g} GB, more than the {free / _GB:.3g} GB for it"
    else:
        chosen = Layout(settings.strategy, world.size, near if settings.strategy == "hsdp" else None)
        why = "as set"
    if settings.frozen != "shard":
        beside = dataclasses.replace(chosen, cut_frozen=False)
        if settings.frozen == "replicate" or total(beside) <= free:
            chosen = beside
    frozen = "" if not weights.frozen + weights.paused else f", frozen blocks {'cut too' if chosen.cut_frozen else 'whole on every rank'}"
    size = f"{chosen.strategy}: {total(chosen) / _GB:.3g} GB of state on each of {world.size} ranks"
    return chosen, f"{size}, cut over {chosen.parts}{frozen}: {why}"


def _near(settings: Distributed, world: World) -> int:
    """Ranks that share one copy under hsdp: as set, or those of one node."""
    size = settings.shard_size or int(os.environ.get("LOCAL_WORLD_SIZE", world.size))
    if settings.strategy == "hsdp" and (world.size % size or size == 1):
        fitting = [str(n) for n in range(2, world.size + 1) if world.size % n == 0]
        raise PlaitError(f"distributed.shard_size is {size}, but {world.size} ranks make groups of {', '.join(fitting)}; set one of these")
    return size if world.size % size == 0 else world.size


def _memory(settings: Distributed, world: World) -> float:
    """Bytes that one rank has: as set, the GPU's, or its share of the machine's."""
    if settings.memory_gb is not None:
        return settings.memory_gb * _GB
    if world.device.type == "cuda":
        return float(torch.cuda.get_device_properties(world.device).total_memory)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return machine / int(os.environ.get("LOCAL_WORLD_SIZE", world.size))
