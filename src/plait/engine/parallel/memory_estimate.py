"""Bytes that each rank holds and sends for a stage, by strategy: what `distributed.strategy: auto` decides by, and docs/scaling.md shows.

Counted is the state (weights, gradients, moments, averages) and what sharding gathers for a moment, to the byte but for AdamW's counts of
updates (4 bytes per tensor) and the padding of shards. Not counted: activations, which depend on the batch and not on the strategy.

Memory: ZeRO (Rajbhandari et al. 2020, section 5: P_os, P_g, P_p). Messages: a ring of N ranks sends (N - 1) / N of the data per rank to
reduce-scatter or all-gather it, twice that to all-reduce it (Patarasuk and Yuan 2009); so DDP sends 2 bytes per byte of gradient, and full
sharding 3 (ZeRO, section 7).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import nn

Strategy = Literal["ddp", "fsdp", "shard_grad_op", "hsdp"]

_MOMENTS = 2  # AdamW's
_FLOAT32 = 4
_UNITS_AT_ONCE = 2  # FSDP2 gathers the next unit while one computes


@dataclass(frozen=True)
class Weights:
    """How many values of a model train in a stage, trained only before it, and never did so far."""

    trained: int
    paused: int = 0
    frozen: int = 0
    trained_unit: int = 0
    """Trained values of the largest unit of sharding: a block, or all that is in none."""
    frozen_unit: int = 0
    """Values of the largest block that does not train at all."""
    whole_paused: int = 0
    """Of `paused` and `frozen`, what is in no unit: outside of blocks, or in a block that trains in part. It is never cut."""
    whole_frozen: int = 0


@dataclass(frozen=True)
class Storage:
    """Bytes per value. `bf16`, `fp16`: frozen weights in 2 bytes, trained ones and gradients in 4; `pure_bf16`: all in 2 but averages.

    `averages`: how many `optim.ema` keeps of each trained weight.
    """

    trained: int = _FLOAT32
    frozen: int = _FLOAT32
    averages: int = 0

    @classmethod
    def of(cls, precision: str, averages: int = 0) -> "Storage":
        """The bytes that `train.precision` means."""
        half = precision != "fp32"
        return cls(2 if precision == "pure_bf16" else _FLOAT32, 2 if half else _FLOAT32, averages)


@dataclass(frozen=True)
class Layout:
    """Ranks and how they divide the state. `shard`: ranks among which one copy is cut (None: all; 1 under ddp).

    `cut_frozen`: whether frozen weights are cut as well, or whole on every rank.
    """

    strategy: Strategy = "ddp"
    ranks: int = 1
    shard: int | None = None
    cut_frozen: bool = True

    @property
    def parts(self) -> int:
        """How many ranks hold one copy of what trains."""
        return 1 if self.strategy == "ddp" else self.shard or self.ranks


class Memory(NamedTuple):
    """Bytes on one rank. `gathered`: whole weights and gradients that exist for a moment, at their peak."""

    weights: int
    gradients: int
    moments: int
    averages: int
    gathered: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


class Traffic(NamedTuple):
    """Bytes that one rank sends in one optimizer step: within its shard group, and to the same shard of other groups."""

    within: int
    between: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.within + self.between


def weigh(model: nn.Module, trained: Collection[str], ever: Collection[str], blocks: Sequence[nn.Module]) -> Weights:
    """Count a model's values: `trained` and `ever` name parameters that train now and did so far; `blocks` are the units of sharding."""
    sizes = {id(value): (name, value.numel()) for name, value in model.named_parameters()}  # a tied weight once
    units = [{id(value) for value in block.parameters()} for block in blocks]
    now, before = set(trained), set(ever) - set(trained)
    still = set().union(*(unit for unit in units if not any(sizes[one][0] in now for one in unit)))
    rest = set(sizes).difference(*units)

    def values(among: Collection[str], of: Collection[int]) -> int:
        return sum(sizes[one][1] for one in of if sizes[one][0] in among)

    never = {name for name, _ in sizes.values()} - now - before
    return Weights(
        trained=values(now, sizes),
        paused=values(before, sizes),
        frozen=values(never, sizes),
        trained_unit=max(values(now, unit) for unit in (*units, rest)),
        frozen_unit=max((values(before | never, unit) for unit in units if unit <= still), default=0),
        whole_paused=values(before, sizes.keys() - still),
        whole_frozen=values(never, sizes.keys() - still),
    )


def memory(weights: Weights, layout: Layout, storage: Storage, *, accumulating: bool = False) -> Memory:
    """Bytes of a stage's state on one rank. `accumulating`: several micro-batches per step, whose gradients wait whole for the last one.

    Weights that trained in an earlier stage stay in float32, with their moments and averages, for a stage that may return to them.
    """
    parts = layout.parts
    trained = _share(weights.trained, parts)
    paused, frozen = (whole + _share(cut, parts) for whole, cut in _divided(weights, layout))
    gathered_gradients = accumulating and layout.strategy != "ddp" and parts > 1
    return Memory(
        weights=trained * storage.trained + paused * _FLOAT32 + frozen * storage.frozen,
        gradients=(weights.trained if gathered_gradients else trained) * storage.trained,
        moments=_MOMENTS * (trained * storage.trained + _share(weights.paused, parts) * _FLOAT32),
        averages=(trained + paused) * _FLOAT32 * storage.averages,
        gathered=_gathered(weights, layout, storage, gathered_gradients) if parts > 1 else 0,
    )


def _divided(weights: Weights, layout: Layout) -> tuple[tuple[int, int], tuple[int, int]]:
    """Values that stay whole and values that are cut, of those that are paused and of those that never trained."""
    whole = (weights.whole_paused, weights.whole_frozen) if layout.cut_frozen else (weights.paused, weights.frozen)
    return (whole[0], weights.paused - whole[0]), (whole[1], weights.frozen - whole[1])


def _gathered(weights: Weights, layout: Layout, storage: Storage, whole: bool) -> int:
    """Full sharding holds two units' weights at a time, gradient sharding all weights until the backward pass has been there."""
    unit = weights.trained_unit * storage.trained
    (_, paused), (_, frozen) = _divided(weights, layout)
    if layout.strategy == "shard_grad_op":
        held = weights.trained * storage.trained + paused * _FLOAT32 + frozen * storage.frozen
    else:
        held = _UNITS_AT_ONCE * (unit + (weights.frozen_unit * (_FLOAT32 if paused else storage.frozen) if paused + frozen else 0))
    return held + (0 if whole else _UNITS_AT_ONCE * unit)


def _share(values: int, parts: int) -> int:
    return -(-values // parts)


def traffic(weights: Weights, layout: Layout, storage: Storage, *, micro_batches: int = 1) -> Traffic:
    """Bytes that one rank sends per optimizer step of `micro_batches` forward and backward passes each.

    Gradients travel once per step. Sharded weights are gathered for every forward pass, and under full sharding again for every backward.
    """
    parts, groups = layout.parts, layout.ranks // layout.parts
    gradients = weights.trained * storage.trained
    if parts == 1:
        return Traffic(0, _ring(2 * gradients, groups))
    (_, paused), (_, frozen) = _divided(weights, layout)
    cut = weights.trained * storage.trained + paused * _FLOAT32 + frozen * storage.frozen
    gathers = micro_batches * (1 if layout.strategy == "shard_grad_op" else 2)
    within = _ring(gathers * cut + gradients, parts)
    return Traffic(within, _ring(2 * gradients // parts, groups))


def _ring(data: int, ranks: int) -> int:
    """What a rank sends of `data` bytes around a ring."""
    return data * (ranks - 1) // ranks
