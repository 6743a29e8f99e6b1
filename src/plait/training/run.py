"""Train a run from its configuration: start it or continue it. What is done, in this order:

    ranks      join the process group, and choose the device
    run        lock the run directory, and compare its configuration with this one
    model      build the family's (kind of model's) parts: from the Hub, a folder, or drawn from the seed
    state      restore the newest intact checkpoint, or load the weights of `from:`, or begin at step 0
    stage      plan a stage (part of the run): what trains, its data from (seed, step); set the model up for it, and make the optimizer
    loop       take steps; after each: metrics, evaluation, the decision to end the stage, a checkpoint

The same command continues a run: everything that is not in the checkpoint is derived again from the configuration.
"""

import contextlib
import gc
import logging
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from plait import files
from plait.assembly import overwritten
from plait.assembly.data import check_data
from plait.assembly.model import build_model
from plait.config.resolved import Resolved, StageView
from plait.config.signed import PendingSettings
from plait.engine import optim
from plait.engine.checkpoints import checkpoint, disk_errors, folders, regular_files, rundir
from plait.engine.compilation import choice
from plait.engine.evaluation import LOSS
from plait.engine.monitoring import alerts, watchdog
from plait.engine.monitoring.heartbeat import Heartbeat
from plait.engine.monitoring.signals import Signals
from plait.engine.monitoring.tracking import Tracker, open_alerts, open_tracker
from plait.engine.monitoring.watchdog import Watchdog
from plait.engine.nonfinite import Rewind
from plait.engine.parallel import distributed
from plait.engine.parallel.distributed import Ranks
from plait.engine.state import State
from plait.errors import PlaitError, Stopped, command
from plait.training import from_weights, start
from plait.training.run_context import RunContext, TrainOptions
from plait.training.stage import run_stage
from plait.training.stage_plan import plan_stage, trained_by

log = logging.getLogger(__name__)

DEFAULT = TrainOptions()


def train(resolved: Resolved, options: TrainOptions = DEFAULT) -> Path:
    """Train the run of the checked configuration `resolved` to its last planned step; continue it if it has a checkpoint.

    Returns the run directory. Raises PlaitError for what the user has to mend, and two subclasses of it: Paused after a signal such as
    SIGTERM, with everything saved, and Stopped when a safety check (`guard:`) ends the run.
    """
    config = resolved.config
    assert config.run is not None, "load_config names every run"
    run = Path(config.run)
    timeouts = [view.config.guard.hang_timeout_s for view in resolved.stages]
    limit_s = watchdog.collectives_s(timeouts) if any(timeouts) else None
    with Signals() as signals, distributed.join(config.distributed.device, limit_s) as ranks:
        while True:
            try:
                _attempt(resolved, options, ranks, signals)
                return run
            except Rewind as error:
                log.info(str(error))
            gc.collect()  # a replica in a cycle would keep its model
            options = replace(options, restart=False, fresh=False)


@contextlib.contextmanager
def _disk_errors(run: Path, ranks: Ranks) -> Iterator[None]:
    """End the block in one line where the run's directory has gone, is full or cannot be read or written. Raises Stopped.

    Where a start fails on all ranks, the first one removes the directory that it made: that is no reason to the others.
    """
    try:
        yield
    except (OSError, PlaitError) as error:
        line = disk_errors.told(error, run) if ranks.first or isinstance(error, OSError) else None
        if line is None:
            raise
        raise Stopped(line) from error


def _attempt(resolved: Resolved, options: TrainOptions, ranks: Ranks, signals: Signals) -> None:
    """Train from the newest checkpoint, or the start, to the end. Raises Rewind where the run is to go back to that checkpoint."""
    config, run = resolved.config, Path(str(resolved.config.run))
    with (
        locked_run_directory(run, resolved, options, ranks) as (continues, accept),
        open_alerts(run, config, first=ranks.first) as told,
        _disk_errors(run, ranks),
        contextlib.closing(Heartbeat(run, ranks.rank)) as heartbeat,
        _watching(resolved, heartbeat, ranks) as dog,
    ):
        bundle = build_model(config, run, ranks, lambda: overwritten.shapes_of_start(config, run, ranks) if config.from_ else {})
        if bundle.unread:
            log.info(f"base weights that the start overwrites, and that are not read: {', '.join(sorted(bundle.unread))}")
        state = State(bundle.model)
        inexact = options.allow_inexact
        resumed_from = start.resume(state, bundle, resolved.stages, run=run, ranks=ranks, allow_inexact=inexact) if continues else None
        for view in resolved.stages[: state.stage - (state.stage_done is None)] if resumed_from else ():
            start.round_frozen(bundle.model, state.ever_trained, view.config.train.precision)
        if resumed_from is None and config.from_:
            from_weights.begin_from(state, bundle, resolved.stages[0], run=run, ranks=ranks, allow_inexact=inexact)
        for view in resolved.stages:
            optim.check_optimizer(view.config.optim, trained_by(view, bundle), bundle.blocks)  # of later stages before the first
        monitors = bundle.family.monitors(bundle.section)
        tracker = open_tracker(run, config, rundir.identity(run), state, monitors, told) if ranks.first else Tracker(None, [])
        context = RunContext(run, ranks, tracker, signals, heartbeat, resolved, accept=accept, options=options, resumed_from=resumed_from)
        with contextlib.closing(tracker):
            for view in stages_ahead(resolved, options.only, state):
                heartbeat.phase("stage", state.step)
                if dog is not None:
                    dog.allow(view.config.guard.hang_timeout_s)
                batch, auto = view.config.train.global_batch, view.config.distributed.compile == "auto"
                decided = choice.decide(view, ranks, resumed_from.manifest if resumed_from else None) if auto else view
                plan = plan_stage(decided, bundle, state.batches_in(view.index, batch))
                state.enter(view.index, batch, plan.steps)
                run_stage(plan, bundle, state, context)
            heartbeat.phase("done", state.step)
            accept()
    failed = {row.get("bench") for row in files.read_rows(run / "bench_failures.jsonl")}
    benches = [*(entry.bench for entry in config.evaluate if entry.title not in failed), LOSS]  # of all benches, what any data has
    data = "" if resolved.stages[-1].config.data.holds_out or ":" in "".join(benches[:1]) else " --data=..."
    log.info(next_steps(run, state, [one + data for one in benches], list(bundle.section.layouts), asks=bundle.family.generate is not None))


def _watching(resolved: Resolved, heartbeat: Heartbeat, ranks: Ranks) -> contextlib.AbstractContextManager[Watchdog | None]:
    """Return a watchdog to enter. It does nothing where no stage limits how long a hang may last and there is no torchrun to outlive."""
    timeouts = [config.guard.hang_timeout_s for config in (resolved.config, *(view.config for view in resolved.stages))]
    if not any(timeouts) and "TORCHELASTIC_RUN_ID" not in os.environ:
        return contextlib.nullcontext()
    return Watchdog(heartbeat, ranks, timeouts[0])


def next_steps(run: Path, state: State, benches: Sequence[str], layouts: Sequence[str], *, asks: bool) -> str:
    """Return the lines logged at a run's end: its files, and commands to use next.

    `benches`, `layouts`: names of the family's metrics and export formats, of which the first is suggested. `asks`: whether the family can
    generate. The best checkpoint, where `checkpoint.best` is set, is the one to export.
    """
    saved, best = checkpoint.published(run), state.best
    best_folder = next((str(path) for path in saved if best and checkpoint.step_of(path) == best["step"]), None)
    spec, folder = f"{run}@best" if best_folder else run, f"{run}-export"
    export = command("export", spec, folder, "--to", layouts[0]) if layouts else command("ckpt", "consolidate", spec, folder)
    rows = [
        ("run", f"{run}, {state.step} steps done"),
        ("metrics", f"{run / 'metrics.jsonl'}; curves: {shlex.join(['tensorboard', '--logdir', str(run)])}"),
        *([("checkpoint", str(saved[0]))] if saved else []),
        *([("best", f"{best_folder}, {best['metric']} {best['value']:.4g}")] if best and best_folder else []),
        *([("measure", command("eval", spec, "--bench", *benches[0].split()))] if benches else []),
        *([("ask", command("generate", run, "--prompt=..."))] if asks else []),
        *([("export", export)] if saved else []),
        ("more steps", command("train", run, "--train.steps=...")),
    ]
    return "\n".join(f"{name:<12} {text}" for name, text in rows)


def stages_ahead(resolved: Resolved, only: str | None, state: State) -> list[StageView]:
    """Return the current stage and those after it, or the one named `only`. Raises PlaitError if `only` is unknown, past or not yet due."""
    ahead = list(resolved.stages[state.stage - 1 :])
    if only is None:
        return ahead
    named = [view for view in ahead if view.name == only]
    if not named:
        names = ", ".join(view.name for view in resolved.stages)
        raise PlaitError(f"stage {only!r} is not one to run next: the stages are {names}, and the run is in {ahead[0].name}")
    due = ahead[1] if state.stage_done and len(ahead) > 1 else ahead[0]
    if named[0] not in (ahead[0], due):
        raise PlaitError(f"stage {only!r} comes after {due.name}, which is not finished; run that first")
    return named


@contextlib.contextmanager
def locked_run_directory(run: Path, resolved: Resolved, options: TrainOptions, ranks: Ranks) -> Iterator[tuple[bool, PendingSettings]]:
    """Lock the directory `run`; yield whether it is a run to continue, and its settings. Raises PlaitError if it is locked or they differ.

    `options`: `restart` first renames a run that is there, `fresh` refuses one. If the block fails, a new directory without results goes.
    """
    error, continues = None, False
    settings = PendingSettings(run, resolved.yaml if ranks.first else None)
    with contextlib.ExitStack() as held:
        if ranks.first:
            held.enter_context(rundir.cleared_if_failed(run))
            try:
                continues = _prepare_directory(run, resolved, options)
                held.enter_context(rundir.lock(run))
                rundir.sweep(run)
                if continues:
                    start.reconcile_configuration(run, resolved, options.allow_inexact)
                held.enter_context(settings)
            except PlaitError as raised:
                error = str(raised)
            except OSError as raised:
                error = disk_errors.told_of_start(raised, run)
        error, continues = ranks.agree((error, continues))
        if error is not None:
            raise PlaitError(error)
        yield continues, settings


def _prepare_directory(run: Path, resolved: Resolved, options: TrainOptions) -> bool:
    """Set an old run aside where that was asked for, and look at all that a start needs. Returns whether there is a run to continue."""
    if resolved.config.alert.wanted:
        alerts.check(resolved.config.alert)
    if options.restart and rundir.check(run):
        check_data(resolved.stages)  # an old run makes room only for one that can begin
        rundir.lock(run).close()
        log.info(f"the old run is kept at {folders.set_aside(run)}")
    continues = rundir.check(run)
    if continues:
        regular_files.check_kinds(run, [checkpoint.AVERAGES, *(f"stage-{view.index}-{view.name}" for view in resolved.stages)])
    if continues and options.fresh:
        raise PlaitError(f"{run} is a run already, and a fresh one was asked for: give another --run, or --restart (keeps it aside)")
    if not checkpoint.published(run):  # also of a run that was begun and saved nothing
        if resolved.config.from_:
            from_weights.check_named(resolved.config.from_)
        check_data(resolved.stages)
    return continues
