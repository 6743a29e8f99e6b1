"""Estimates of the bytes that each rank holds and sends for a stage, by strategy; `distributed.strategy: auto` decides by them.

Counted is the state (weights, gradients, moments, averages) and what sharding gathers temporarily, to the byte but for AdamW's counts of
updates (4 bytes per tensor) and the padding of shards. Not counted: activations, which depend on the batch and not on the strategy.
docs/scaling.md has tables of them. A unit of sharding (what FSDP gathers at once) is a block, or everything outside of blocks.

Memory: ZeRO (Rajbhandari et al. 2020, section 5: P_os, P_g, P_p). Messages: a ring of N ranks sends (N - 1) / N of the data per rank to
reduce-scatter or all-gather it, twice that to all-reduce it (Patarasuk and Yuan 2009); so DDP sends 2 bytes per byte of gradient, and full
sharding 3 (ZeRO, section 7).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import nn

from plait.engine.parallel import gathering, hosted

Strategy = Literal["ddp", "fsdp", "shard_grad_op", "hsdp"]
"""A way to divide the state over ranks, as `distributed.strategy` names it; see Layout."""

_MOMENTS = 2  # AdamW's, of what trained before too
_FLOAT32 = 4
_UNITS_AT_ONCE = 2  # FSDP2 gathers the next unit while one computes


@dataclass(frozen=True)
class ParameterCounts:
    """How many values of a model train in a stage (`trained`), trained only before it (`paused`), and never did so far (`frozen`).

    A unit is what FSDP gathers at once: a block (layer), or everything outside of blocks.
    """

    trained: int
    paused: int = 0
    frozen: int = 0
    trained_unit: int = 0
    """Trained values of the largest unit."""
    frozen_unit: int = 0
    """Values of the largest block that does not train at all."""
    unsharded_paused: int = 0
    """Those of `paused` outside of blocks, or in a block that trains in part: never sharded, full on every rank."""
    unsharded_frozen: int = 0
    """Those of `frozen` that are never sharded either."""
    matrices: int = 0
    """Those of `trained` that are gathered in the dtype of products (`gathering.py`), where that is smaller than the weights'."""
    unit_matrices: int = 0
    """Those of `trained_unit`, the largest unit."""
    paused_matrices: int = 0
    """Those of `paused` in blocks that do not train."""


@dataclass(frozen=True)
class Storage:
    """Bytes per value: `trained` for a weight that trains, and again for its gradient, `frozen` for one that does not.

    fp32: trained 4, frozen 4; bf16, fp16: 4 and 2; pure_bf16: 2 and 2. `averages`: how many each trained weight has, 4 bytes a value.
    `compressed`: whether replicas send their gradients in 2 bytes a value (`distributed.ddp_comm_hook`). `moments`: of all moments of one
    that trains, on the average; `whole`: whether each rank keeps all of them (`optim.name: adamw8bit`); `offloaded`: whether they lie in
    the host's memory (`optim.offload`).
    """

    trained: int
    frozen: int
    averages: int
    moments: float
    compressed: bool = False
    whole: bool = False
    offloaded: bool = False

    @classmethod
    def of(cls, precision: str, averages: int = 0, *, comm_hook: str = "none", moments: float | None = None) -> "Storage":
        """Return the storage for a `train.precision`, such as "bf16", and a `distributed.ddp_comm_hook`.

        `averages`: how many are kept of each trained weight; `moments`: bytes of a value's moments, None: AdamW's, in the weight's dtype.
        """
        trained = 2 if precision == "pure_bf16" else _FLOAT32
        kept = _MOMENTS * trained if moments is None else moments
        return cls(trained, 2 if precision != "fp32" else _FLOAT32, averages, kept, comm_hook != "none")

    @property
    def saved(self) -> int:
        """Bytes by which a matrix that trains is smaller per value where it is gathered in the dtype of products."""
        return self.trained - self.frozen


@dataclass(frozen=True)
class Layout:
    """How ranks divide the state (weights, gradients, moments). `shard_size`: ranks over which one copy is sharded (None: all).

    ddp: full on every rank; fsdp: sharded; shard_grad_op: as fsdp, but weights stay gathered from forward to backward; hsdp: several
    sharded copies. `shard_frozen`: whether frozen weights are sharded as well, or full on every rank.
    """

    strategy: Strategy = "ddp"
    ranks: int = 1
    shard_size: int | None = None
    shard_frozen: bool = True
    reduce_each: bool = False
    """Whether gradients are reduced, and so sharded, after each micro-batch in place of once a step."""

    @property
    def shards(self) -> int:
        """How many ranks one copy of the trained weights is divided over; 1 under ddp."""
        return 1 if self.strategy == "ddp" else self.shard_size or self.ranks


class Memory(NamedTuple):
    """Bytes of a stage's state on one rank. `gathered`: the most that FSDP's gathered weights and gradients take at a time."""

    weights: int
    gradients: int
    moments: int
    averages: int
    gathered: int

    @property
    def total(self) -> int:
        """Sum of all five, in bytes."""
        return sum(self)


class Traffic(NamedTuple):
    """Bytes that one rank sends per optimizer step: `within` the ranks that share a copy, and `between` copies of its shard."""

    within: int
    between: int

    @property
    def total(self) -> int:
        """Sum of both, in bytes."""
        return self.within + self.between


def count_parameters(model: nn.Module, trained: Collection[str], ever: Collection[str], blocks: Sequence[nn.Module]) -> ParameterCounts:
    """Count a model's values, without those that stay on the host.

    `trained`, `ever`: names of parameters that train now, and that ever did; `blocks`: the units of sharding.
    """
    held = hosted.names(model)
    sizes = {id(value): (name, value.numel()) for name, value in model.named_parameters() if name not in held}  # a tied weight once
    units = [{id(value) for value in block.parameters()} for block in blocks]
    plain = set().union(*(gathering.plain(block) for block in blocks))
    now, before = set(trained), set(ever) - set(trained)
    in_frozen_blocks = set().union(*(unit for unit in units if not any(sizes[parameter][0] in now for parameter in unit)))
    rest = set(sizes).difference(*units)

    def values(names: Collection[str], parameters: Collection[int]) -> int:
        return sum(sizes[parameter][1] for parameter in parameters if sizes[parameter][0] in names)

    never = {name for name, _ in sizes.values()} - now - before
    largest = max((*units, rest), key=lambda unit: values(now, unit))
    return ParameterCounts(
        trained=values(now, sizes),
        paused=values(before, sizes),
        frozen=values(never, sizes),
        trained_unit=values(now, largest),
        frozen_unit=max((values(before | never, unit) for unit in units if unit <= in_frozen_blocks), default=0),
        unsharded_paused=values(before, sizes.keys() - in_frozen_blocks),
        unsharded_frozen=values(never, sizes.keys() - in_frozen_blocks),
        matrices=values(now, plain),
        unit_matrices=values(now, largest & plain),
        paused_matrices=values(before, in_frozen_blocks & plain),
    )


def memory(counts: ParameterCounts, layout: Layout, storage: Storage, *, accumulating: bool = False) -> Memory:
    """Estimate the bytes of a stage's state on one rank.

    `accumulating`: several micro-batches per step, so that full gradients are kept until the last one. Weights that trained in an earlier
    stage stay in float32, with their moments and averages, for a stage that may train them again.
    """
    shards = layout.shards
    trained = _per_rank(counts.trained, shards)
    paused, frozen = (full + _per_rank(sharded, shards) for full, sharded in _split(counts, layout))
    full_gradients = accumulating and layout.strategy != "ddp" and shards > 1 and not layout.reduce_each
    return Memory(
        weights=trained * storage.trained + paused * _FLOAT32 + frozen * storage.frozen,
        gradients=(counts.trained if full_gradients else trained) * storage.trained,
        moments=0 if storage.offloaded else moments(counts, layout, storage),
        averages=(trained + paused) * _FLOAT32 * storage.averages,
        gathered=_gathered(counts, layout, storage, full_gradients=full_gradients) if shards > 1 else 0,
    )


def moments(counts: ParameterCounts, layout: Layout, storage: Storage) -> int:
    """Return the bytes of a rank's moments, wherever they lie, with those kept of weights that trained before."""
    shards = layout.shards
    return round(_per_rank(counts.trained, shards) * storage.moments) + _MOMENTS * _per_rank(counts.paused, shards) * _FLOAT32


def _split(counts: ParameterCounts, layout: Layout) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (values full on every rank, values sharded) of the paused and of the frozen ones."""
    full = (counts.unsharded_paused, counts.unsharded_frozen) if layout.shard_frozen else (counts.paused, counts.frozen)
    return (full[0], counts.paused - full[0]), (full[1], counts.frozen - full[1])


def _gathered(counts: ParameterCounts, layout: Layout, storage: Storage, *, full_gradients: bool) -> int:
    """Return the bytes of gathered weights and gradients at their peak.

    Full sharding holds two units' weights at a time, gradient sharding all weights until the backward pass has used them.
    """
    unit = counts.trained_unit * storage.trained - storage.saved * counts.unit_matrices
    (_, paused), (_, frozen) = _split(counts, layout)
    if layout.strategy == "shard_grad_op":
        weights = _sharded(counts, layout, storage)
    else:
        weights = _UNITS_AT_ONCE * (unit + (counts.frozen_unit * (_FLOAT32 if paused else storage.frozen) if paused + frozen else 0))
    return weights + (0 if full_gradients else _UNITS_AT_ONCE * counts.trained_unit * storage.trained)


def _sharded(counts: ParameterCounts, layout: Layout, storage: Storage) -> int:
    """Return the bytes of all sharded weights as they are gathered."""
    (_, paused), (_, frozen) = _split(counts, layout)
    rounded = counts.matrices + (counts.paused_matrices if layout.shard_frozen else 0)
    return counts.trained * storage.trained + paused * _FLOAT32 + frozen * storage.frozen - rounded * storage.saved


def _per_rank(values: int, shards: int) -> int:
    return -(-values // shards)


def traffic(counts: ParameterCounts, layout: Layout, storage: Storage, *, micro_batches: int = 1) -> Traffic:
    """Estimate the bytes that one rank sends per optimizer step of `micro_batches` forward and backward passes each.

    Gradients are reduced once per step, or as `layout` says for each micro-batch. Sharded weights are gathered for every forward pass,
    under full sharding again for every backward.
    """
    shards, groups = layout.shards, layout.ranks // layout.shards
    gradients = counts.trained * storage.trained
    if shards == 1:
        return Traffic(0, _ring(2 * (2 * counts.trained if storage.compressed else gradients), groups))
    gathers = micro_batches * (1 if layout.strategy == "shard_grad_op" else 2)
    gradients *= micro_batches if layout.reduce_each else 1
    within = _ring(gathers * _sharded(counts, layout, storage) + gradients, shards)
    return Traffic(within, _ring(2 * gradients // shards, groups))


def _ring(data: int, ranks: int) -> int:
    """Return the bytes that a rank sends when `data` bytes go around a ring of ranks."""
    return data * (ranks - 1) // ranks
