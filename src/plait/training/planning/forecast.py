"""Forecast each stage (part of a run): parameters, memory by strategy, steps, FLOPs, hours and checkpoints, before anything is loaded.

Every figure comes from the function that the run itself uses: its plan (stage_plan.py), its strategy, its count of FLOPs, its model and
loss on tensors without memory (fake_step.py).
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from plait.assembly.model import ModelBundle
from plait.config.resolved import Resolved, StageView
from plait.config.schema import Distributed, RunConfig, Train
from plait.data.link_lists.refusal import refuse_known
from plait.engine import blocks, optim
from plait.engine.parallel import memory_estimate, strategy
from plait.engine.parallel.memory_estimate import Layout, Memory, ParameterCounts, Storage
from plait.errors import PlaitError
from plait.training.moments import kept
from plait.training.moments.kept import Orthogonalised
from plait.training.planning import checkpoint_size, fake_step, host_memory, stage_batch
from plait.training.planning.checkpoint_size import StageCheckpoints
from plait.training.planning.entries import on_hub, training_entries
from plait.training.planning.fake_step import StepMemory
from plait.training.planning.hardware import Hardware
from plait.training.planning.host_memory import HostMemory
from plait.training.planning.stage_batch import StageBatch
from plait.training.stage_plan import StagePlan, plan_stage


@dataclass(frozen=True)
class Size:
    """Values of a component: all of them, and those that train in the stage."""

    total: int
    trained: int


@dataclass(frozen=True)
class StrategyMemory:
    """Bytes on each rank under one layout and activation checkpointing. `step`: of forward and backward; None: not known."""

    layout: Layout
    checkpointing: str
    state: Memory
    step: StepMemory | None
    accumulating: bool

    @property
    def peak(self) -> int | None:
        """Return the most bytes at a time; None where the step's are not known.

        Gradients that are sharded, or there from an earlier micro-batch, are held beside the activations; else they come as those go.
        """
        if self.step is None:
            return None
        if self.layout.shards == 1 and not self.accumulating:
            return self.state.total - self.state.gradients + self.step.peak + self.step.batch
        return self.state.total + self.passes

    @property
    def passes(self) -> int:
        """Return the bytes that the passes of a micro-batch take at a time, besides a state whose gradients are held."""
        assert self.step is not None
        return (self.step.transient if self.layout.shards == 1 else self.step.sharded) + self.step.batch


@dataclass(frozen=True)
class StageForecast:
    """All that is known of a stage before it runs. Figures that could not be had are None, and `findings` of the run say why."""

    view: StageView
    sizes: Mapping[str, Size]
    plan: StagePlan | None
    steps: int | None
    micro_batch: int
    micro_batches: int
    """Of one rank, in each step."""
    chosen: StrategyMemory
    reason: str
    """Why that strategy."""
    others: Sequence[StrategyMemory]
    """Other strategies and other activation checkpointing."""
    batch: StageBatch | None
    flops: float | None
    """Of one step, on all ranks."""
    orthogonalised: Orthogonalised | None
    """What Muon adds to them; None for another optimizer."""
    checkpoints: StageCheckpoints | None
    host: HostMemory
    """What it takes of the host's memory."""
    counts: ParameterCounts
    storage: Storage
    faults: Mapping[str, str]
    """{what could not be had: why}: `data`, `samples`, `batch`, `checkpoints`."""

    @property
    def samples(self) -> int | None:
        """Return how many samples the stage takes."""
        return None if self.steps is None else self.steps * self.view.config.train.global_batch

    @property
    def trained(self) -> int:
        """Return how many values train."""
        return sum(size.trained for size in self.sizes.values())


def forecast(resolved: Resolved, bundle: ModelBundle, hardware: Hardware, *, only: str | None = None) -> Iterator[StageForecast]:
    """Yield the forecast of each stage, or of stage `only`. `bundle`: the model on the meta device, which gets fake weights.

    Raises PlaitError for settings that do not fit the model or the ranks.
    """
    checkpoints: list[StageCheckpoints] | str
    try:
        checkpoints = checkpoint_size.of_stages(resolved, bundle)
    except PlaitError as error:
        checkpoints = str(error)
    ever: set[str] = set()
    for view in resolved.stages:
        trained = optim.select(bundle.components(), view.config.trainable, bundle.family.never_trained)
        ever |= {name for part in trained.values() for name in part}
        if only is None or view.name == only:
            yield _Stage(view, bundle, hardware, {name: set(part) for name, part in trained.items()}, frozenset(ever)).forecast(checkpoints)


def open_plan(view: StageView, bundle: ModelBundle) -> StagePlan:
    """Open the stage's data and return its plan, the run's own. Raises PlaitError where that cannot be, or would download a data set."""
    remote = [str(entry.name) for entry in training_entries(view.config) if on_hub(entry)]
    for entry in training_entries(view.config):
        refuse_known(entry)
    if remote:
        raise PlaitError(f"{', '.join(remote)} on the Hub: not opened, which would download {'them' if len(remote) > 1 else 'it'}")
    return plan_stage(view, bundle)


def steps_without_data(config: RunConfig) -> int | None:
    """Return a stage's steps where they do not depend on how much data there is, else None."""
    train = config.train
    return train.steps or (None if train.samples is None else math.ceil(train.samples / train.global_batch))


@dataclass(frozen=True)
class _Stage:
    view: StageView
    bundle: ModelBundle
    hardware: Hardware
    trained: Mapping[str, set[str]]
    ever: frozenset[str]

    @property
    def names(self) -> set[str]:
        return {name for part in self.trained.values() for name in part}

    @property
    def parameters(self) -> dict[str, dict[str, nn.Parameter]]:
        now = dict(self.bundle.model.named_parameters())
        return {component: {name: now[name] for name in names} for component, names in self.trained.items()}

    def forecast(self, checkpoints: list[StageCheckpoints] | str) -> StageForecast:
        view, bundle, config = self.view, self.bundle, self.view.config
        faults = {"checkpoints": checkpoints} if isinstance(checkpoints, str) else {}
        plan = batch = flops = None
        try:
            plan = open_plan(view, bundle)
        except PlaitError as error:
            faults["data"] = str(error)
        ranks = self.hardware.ranks
        micro = config.train.micro_batch or math.ceil(config.train.global_batch / ranks)
        micro_batches = math.ceil(config.train.global_batch / (micro * ranks))
        if plan is not None and config.data.pack_tokens is not None:
            rows = plan.slicing(plan.order.ids(0), 0, ranks, micro)
            micro, micro_batches = max(len(ids) for ids, _ in rows), len(rows)
        counts = memory_estimate.count_parameters(bundle.model, self.names, self.ever, bundle.blocks)
        parameters = self.parameters
        storage = kept.storage(config, parameters, bundle.blocks)
        orthogonalised = kept.orthogonalised(parameters, config.optim, bundle.blocks)  # before fake weights take the place of these
        if bundle.adapters is not None:
            bundle.adapters.begin(self.ever, self.names)
        fake_step.fake_weights(bundle, self.names, set(self.ever), config.train.precision)
        try:
            batch = self.batch(plan, micro, faults)
            flops = self.step_flops(batch)
        except PlaitError as error:
            faults["batch"] = str(error)
        layout, reason = self.layout(counts, storage, micro_batches > 1)
        memories = list(self.memories(layout, counts, storage, batch, micro_batches > 1))
        kept_checkpoints = None if isinstance(checkpoints, str) else checkpoints[view.index - 1]
        return StageForecast(
            view=view,
            sizes={name: self.size(name, names) for name, names in bundle.component_names.items()},
            plan=plan,
            steps=plan.steps if plan is not None else steps_without_data(config),
            micro_batch=micro,
            micro_batches=micro_batches,
            chosen=memories[0],
            reason=reason,
            others=memories[1:],
            batch=batch,
            flops=flops,
            orthogonalised=orthogonalised,
            checkpoints=kept_checkpoints,
            host=host_memory.of_stage(bundle, config, kept_checkpoints, layout, (counts, storage)),
            counts=counts,
            storage=storage,
            faults=faults,
        )

    def size(self, component: str, names: Sequence[str]) -> Size:
        parameters = dict(self.bundle.model.named_parameters())
        trains = self.trained.get(component, set())
        return Size(*(sum(parameters[name].numel() for name in some) for some in (names, trains)))

    def batch(self, plan: StagePlan | None, micro: int, faults: dict[str, str]) -> StageBatch:
        """Return a micro-batch of the data, or an assumed one where there is none or it cannot be encoded here."""
        reason = faults.get("data", "")
        if plan is not None:
            try:
                return stage_batch.of_data(plan, self.bundle, self.hardware.ranks)
            except stage_batch.Unusable as error:
                reason = faults["samples"] = str(error)
            except PlaitError as error:
                reason = str(error)
        return stage_batch.assumed(self.view.config, self.bundle, self.bundle.loss(), micro, reason)

    def step_flops(self, batch: StageBatch) -> float:
        precision, loss = self.view.config.train.precision, self.bundle.loss()
        counted = sum(fake_step.flops(self.bundle, loss, micro, precision) for micro, _ in batch.typical)
        return counted / sum(samples for _, samples in batch.typical) * self.view.config.train.global_batch

    def layout(self, counts: ParameterCounts, storage: Storage, accumulating: bool) -> tuple[Layout, str]:
        if self.hardware.ranks == 1:
            return Layout(), "one rank"
        place = self.hardware.place(self.view.config.distributed)
        return strategy.decide(self.view.config.distributed, counts, storage, place, accumulating=accumulating)

    def memories(
        self, layout: Layout, counts: ParameterCounts, storage: Storage, batch: StageBatch | None, accumulating: bool
    ) -> Iterator[StrategyMemory]:
        """Yield the memory under the chosen layout first, then under the others, and then with other activation checkpointing."""
        settings = self.view.config.distributed
        kind = settings.activation_checkpointing
        other = "none" if kind != "none" else "full"

        def under(layout: Layout, kind: str, step: StepMemory | None) -> StrategyMemory:
            state = memory_estimate.memory(counts, layout, storage, accumulating=accumulating)
            return StrategyMemory(layout, kind, state, step, accumulating)

        step = self.step(batch, settings)
        layouts = layouts_of(self.hardware.ranks, self.hardware.place(settings).group, settings.gradient_sync)
        yield under(layout, kind, step)
        yield from (under(one, kind, step) for one in layouts if one.strategy != layout.strategy)
        yield under(layout, other, self.step(batch, settings.model_copy(update={"activation_checkpointing": other})))

    def step(self, batch: StageBatch | None, settings: Distributed) -> StepMemory | None:
        if batch is None:
            return None
        return measured(self.bundle, batch, self.view.config.train, settings, self.hardware.memory(settings))


def measured(bundle: ModelBundle, batch: StageBatch, train: Train, settings: Distributed, memory: float) -> StepMemory:
    """Return what forward and backward of the run's largest micro-batch hold, on the fake weights of `bundle`. `memory`: of a device.

    Of one that is larger than is made, that follows from a smaller one and from half of that, as memory is linear in samples. Raises
    PlaitError for a model whose operators depend on values that it computes.
    """
    kept = blocks.keeps_casts(settings, bundle.model, memory)
    measure = functools.partial(fake_step.measure, bundle, bundle.loss(), precision=train.precision, settings=settings, casts_kept=kept)
    with blocks.residual_stream(bundle.blocks, train.residual_dtype):
        large = measure(batch.largest)
        if batch.part is None:
            return large
        half, share = batch.part
        return fake_step.between(measure(half), large, share)


def layouts_of(ranks: int, group: int, gradient_sync: str) -> list[Layout]:
    """Return the ways to divide the state over `ranks` ranks. `group`: ranks that share a copy under hsdp."""
    if ranks == 1:
        return [Layout()]
    each = gradient_sync == "micro_batch"
    layouts = [Layout("ddp", ranks), *(Layout(name, ranks, reduce_each=each) for name in ("shard_grad_op", "fsdp"))]
    return layouts + ([Layout("hsdp", ranks, group, reduce_each=each)] if 1 < group < ranks else [])
