"""A run from its configuration, in the order things start.

    world      who we are among the ranks, and on which device
    run        the directory is ours alone, and belongs to this configuration
    model      the family's parts: from the hub, a folder, or drawn from the seed
    state      the newest intact checkpoint put back, or step 0
    stage      what trains now, its data from (seed, step), its optimizer
    loop       steps; after each: metrics, held-out figures, checkpoint

The same command continues a run: everything that is not in the checkpoint is derived again from the configuration.
"""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plait import config as configuration
from plait import files, parts
from plait.config import Resolved, StageView
from plait.data.loader import Loader
from plait.data.order import Order
from plait.engine import checkpoint, distributed, evaluation, optim, rundir
from plait.engine.distributed import World
from plait.engine.evaluation import Evaluations
from plait.engine.guards import Quarantine
from plait.engine.loop import Hook, Loop, Row
from plait.engine.state import State, set_precision
from plait.engine.tracking import Tracker, open_tracker
from plait.errors import PlaitError
from plait.keys import key
from plait.parts import Parts
from plait.schema import RunConfig


def train(resolved: Resolved, *, restart: bool = False) -> Path:
    """Start the run that `resolved` describes, or continue it from its newest intact checkpoint, to its last planned step.

    Returns the run directory. With `restart` an earlier run there is kept aside first.
    """
    config = resolved.config
    if config.run is None:
        raise PlaitError("no run directory: name one with `run:` in the file or --run=DIR")
    run = Path(config.run)
    with distributed.world(config.distributed.device) as world, claimed(run, resolved, restart, world) as going_on:
        built = parts.build(config, run, world)
        state = State(built.model)
        if going_on:
            resume(state, built, run, world)
        tracker = open_tracker(run, config, rundir.identity(run), state.step) if world.first else Tracker(None, [])
        with contextlib.closing(tracker):
            for view in resolved.stages[state.stage - 1 :]:
                state.enter(view.index)
                if not state.stage_done:
                    train_stage(view, built, state, run, world, tracker)
    return run


@contextlib.contextmanager
def claimed(run: Path, resolved: Resolved, restart: bool, world: World) -> Iterator[bool]:
    """Hold the run directory (rank 0) while the block lasts; yields whether there is a run to continue. Ranks fail together."""
    trouble, going_on = None, False
    with contextlib.ExitStack() as held:
        if world.first:
            try:
                if restart and rundir.check(run):
                    rundir.hold(run).close()
                    print(f"the old run is kept at {rundir.set_aside(run)}")
                going_on = rundir.check(run)
                held.enter_context(rundir.hold(run))
                if going_on:
                    before = parts.open_run(run).config
                    rundir.refuse(run, rundir.binding(configuration.difference(before, resolved.config)))
                files.write_whole(run / "config.yaml", resolved.to_yaml())
            except PlaitError as error:
                trouble = str(error)
        trouble, going_on = world.agree((trouble, going_on))
        if trouble is not None:
            raise PlaitError(trouble)
        yield going_on


def resume(state: State, built: Parts, run: Path, world: World) -> None:
    """Put the newest intact checkpoint back and say so; newer ones that are damaged are named with their fault.

    Raises PlaitError when a frozen weight is not the one the run was trained against.
    """
    if world.first:
        checkpoint.clear_unfinished(run)
    world.barrier()
    found, faults = checkpoint.newest_intact(run)
    if world.first:
        print(*(f"passed over: {fault}" for fault in faults), sep="\n", end="\n" if faults else "")
        print(f"continuing from {found.folder}" if found else f"{run} has no intact checkpoint: starting at step 0")
    if found is None:
        return
    facts = found.manifest["state"]
    if built.frozen_xxh3(set(facts["trained"])) != found.manifest["frozen_xxh3"]:
        raise PlaitError(
            f"the frozen weights are not those that {found.folder} was trained against ({found.manifest['base']}); pin the same revision"
        )
    state.restore(facts, {group: found.tensors(group) for group in checkpoint.GROUPS})


def train_stage(view: StageView, built: Parts, state: State, run: Path, world: World, tracker: Tracker) -> None:
    """Run one stage from where the state is to its end."""
    config = view.config
    components = built.family.components(built.model)
    trained = optim.select(components, config.trainable, built.family.never_trained)
    optim.check_components(config.optim, components)
    evaluation.check(config.evaluate, built.family.benches)
    opened = parts.open_data(config, config.data.train, "train")
    seed = key(config.seed, "stage", view.name)
    order = Order([len(source) for source in opened], [entry.weight for entry in config.data.train], seed, config.train.global_batch)
    steps = planned_steps(config, order)
    stop = state.stage_start + steps
    set_precision(built.model, state.ever_trained.union(*trained.values()), config.train.precision)
    state.begin(trained, config.optim)
    loss = built.family.Loss(built.section)
    quarantine = Quarantine(run / "quarantine.jsonl", config.guard.max_bad_fraction)
    if world.first:
        quarantine.resume(state.step)
        tracker.begin(view.name, state.step, stop)
        announce(view, trained, components, opened, steps)
    saver = checkpoint.Saver(config.checkpoint.async_save)
    facts = {"stage": view.name, "data": {source.name: source.fingerprint for source in opened}, "base": built.family.base(built.section)}
    benches, inputs = built.family.benches, built.inputs(config, train=False)
    judge = Evaluations(
        config.evaluate, parts.held_out(built, config, world), loss, benches, inputs, world, config.train.precision, stop, tracker.row
    )
    save = saving(run, built, view, world, saver, facts, stop)
    loader = Loader(
        opened, order, built.inputs(config, train=True), seed=seed, start_step=state.stage_step, stop_step=steps, **cut(config, world)
    )
    with contextlib.closing(loader), contextlib.closing(saver):
        Loop(state, loss, config, world, quarantine, [recording(config, tracker, stop), judge, save]).run(loader, stop)


def planned_steps(config: RunConfig, order: Order) -> int:
    """Optimizer steps of a stage from its budget in steps, epochs or samples (rounded up to whole steps).

    Raises PlaitError when warm-up would not end before the stage does.
    """
    budget = config.train
    if budget.steps is not None:
        steps = budget.steps
    else:
        steps = order.steps(budget.epochs) if budget.epochs is not None else math.ceil((budget.samples or 0) / budget.global_batch)
    warmup = config.optim.schedule.warmup_steps
    if warmup >= steps > 0:
        raise PlaitError(
            f"optim.schedule.warmup_steps = {warmup} must be less than the {steps} steps of the stage; train longer or warm up less"
        )
    return steps


def cut(config: RunConfig, world: World) -> dict[str, Any]:
    """How this rank takes its part of each global batch: never a change of what the batch is."""
    micro = config.train.micro_batch or math.ceil(config.train.global_batch / world.size)
    data = config.data
    workers = {"workers": data.workers, "kind": data.worker_kind, "prefetch": data.prefetch, "pin": world.device.type == "cuda"}
    return {"rank": world.rank, "world": world.size, "micro_batch": micro, **workers}


def recording(config: RunConfig, tracker: Tracker, stop: int) -> Hook:
    """Record a step's metrics every `track.every_steps`, and those of the last step."""

    def record(state: State, row: Row) -> None:
        if state.stage_step % config.track.every_steps == 0 or state.step == stop:
            tracker.row(row)

    return record


def saving(run: Path, built: Parts, view: StageView, world: World, saver: checkpoint.Saver, facts: dict[str, Any], stop: int) -> Hook:
    """Write a checkpoint every `checkpoint.every_steps`, and one at the end of the stage, which later saves never delete."""
    settings = view.config.checkpoint

    def save(state: State, row: Row) -> None:
        state.stage_done = state.step == stop
        due = settings.every_steps is not None and state.stage_step % settings.every_steps == 0
        if world.first and (due or state.stage_done):
            content = {**facts, "state": state.facts(), "frozen_xxh3": built.frozen_xxh3(state.ever_trained)}
            saver.save(checkpoint.folder_of(run, view.index, view.name, state.step), state.tensors(), content, settings.keep)

    return save


def announce(
    view: StageView, trained: dict[str, dict[str, Any]], components: dict[str, dict[str, Any]], opened: list[Any], steps: int
) -> None:
    """Say what the stage trains, on what, for how long."""
    total = sum(value.numel() for part in components.values() for value in part.values())
    counts = {name: sum(value.numel() for value in part.values()) for name, part in trained.items()}
    shown = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    data = ", ".join(f"{source.name} {len(source):,}" for source in opened)
    print(f"stage {view.index} {view.name}: trains {shown} of {total:,} parameters ({sum(counts.values()) / total:.2%})")
    print(f"data: {data} samples; {steps:,} steps of {view.config.train.global_batch}")
