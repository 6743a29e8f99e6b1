"""A run from its configuration, in the order things start.

    world      who we are among the ranks, and on which device
    run        the directory is ours alone, and belongs to this configuration
    model      the family's parts: from the hub, a folder, or drawn from the seed
    state      the newest intact checkpoint put back, or other weights to start from, or step 0
    stage      what trains now, its data from (seed, step), its optimizer
    loop       steps; after each: metrics, held-out figures, the end of the stage, a checkpoint

The same command continues a run: everything that is not in the checkpoint is derived again from the configuration.
"""

import contextlib
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from pydantic import ValidationError

from plait import files
from plait.assembly import parts
from plait.config.resolved import Resolved, StageView, difference
from plait.config.schema import RunConfig
from plait.engine import precision
from plait.engine.checkpoints import checkpoint, rundir
from plait.engine.monitoring import watchdog
from plait.engine.monitoring.heartbeat import Heartbeat
from plait.engine.monitoring.signals import Signals
from plait.engine.monitoring.tracking import Tracker, open_tracker
from plait.engine.monitoring.watchdog import Watchdog
from plait.engine.nonfinite import Rewind
from plait.engine.parallel import distributed
from plait.engine.parallel.distributed import Ranks
from plait.engine.state import State
from plait.errors import PlaitError
from plait.families import registry
from plait.training import start
from plait.training.stage import Stage


@dataclass(frozen=True)
class Options:
    """What the command line adds to a configuration. `only`: the one stage to run. `fresh`: never continue a run."""

    restart: bool = False
    allow_inexact: bool = False
    only: str | None = None
    fresh: bool = False


DEFAULT = Options()


def train(resolved: Resolved, options: Options = DEFAULT) -> Path:
    """Start the run that `resolved` describes, or continue it from its newest intact checkpoint, to its last planned step.

    Returns the run directory. Raises Paused when a signal asked for a stop, with everything saved.
    """
    config = resolved.config
    assert config.run is not None, "config.load names every run"
    run = Path(config.run)
    limit_s = watchdog.collectives_s([view.config.guard.hang_timeout_s for view in resolved.stages])
    with Signals() as signals, distributed.join(config.distributed.device, limit_s) as ranks:
        while True:
            try:
                _attempt(resolved, options, ranks, signals)
                return run
            except Rewind as error:
                print(error) if ranks.first else None
            gc.collect()  # a replica in a cycle would keep its model
            options = replace(options, restart=False)


def _attempt(resolved: Resolved, options: Options, ranks: Ranks, signals: Signals) -> None:
    """From the newest checkpoint, or the start, to the end. Raises Rewind where the run is to go back to that checkpoint."""
    config, run = resolved.config, Path(str(resolved.config.run))
    with (
        claimed(run, resolved, options, ranks) as going_on,
        contextlib.closing(Heartbeat(run, ranks.rank)) as heart,
        Watchdog(heart, ranks, config.guard.hang_timeout_s) as dog,
    ):
        built = parts.build(config, run, ranks)
        state = State(built.model)
        since = start.resume(state, built, resolved.stages, run, ranks, options.allow_inexact) if going_on else None
        for view in resolved.stages[: state.stage - (state.stage_done is None)] if since else ():
            precision.round_frozen(built.model, state.ever_trained, view.config.train.precision)
        if since is None and config.from_:
            start.begin_from(state, built, resolved.stages[0], run, ranks, options.allow_inexact)
        monitors = built.family.monitors(built.section) if built.family.monitors is not None else []
        tracker = open_tracker(run, config, rundir.identity(run), state, monitors) if ranks.first else Tracker(None, [])
        with contextlib.closing(tracker):
            for view in wanted(resolved, options.only, state):
                state.enter(view.index)
                heart.phase("stage", state.step)
                dog.timeout_s = view.config.guard.hang_timeout_s
                Stage(view, built, state, run, ranks, tracker, signals, options.allow_inexact, heart, since).train()
            heart.phase("done", state.step)
    if ranks.first:
        print(whereabouts(run, state.step, sorted(registry.benches(config.family))))


def whereabouts(run: Path, step: int, benches: Sequence[str]) -> str:
    """Where everything of a run that came to its end is, and what to do with it next."""
    newest = checkpoint.published(run)
    rows = [
        ("run", f"{run}, {step} steps done"),
        ("metrics", f"{run / 'metrics.jsonl'}; curves: tensorboard --logdir {run}"),
        *([("checkpoint", str(newest[0]))] if newest else []),
        *([("measure", f"plait eval {run} --bench {benches[0]}")] if benches else []),
        ("ask", f"plait generate {run} --prompt=..."),
    ]
    return "\n".join(f"{name:<12} {text}" for name, text in rows)


def wanted(resolved: Resolved, only: str | None, state: State) -> list[StageView]:
    """The stages still to run: from the state's on, or just the one named. Raises PlaitError for a name that is unknown or past."""
    ahead = list(resolved.stages[state.stage - 1 :])
    if only is None:
        return ahead
    found = [view for view in ahead if view.name == only]
    if not found:
        names = ", ".join(view.name for view in resolved.stages)
        raise PlaitError(f"stage {only!r} is not one to run next: the stages are {names}, and the run is in {ahead[0].name}")
    if found[0] is not ahead[0] and not (state.stage_done and found[0] is ahead[1]):
        raise PlaitError(f"stage {only!r} comes after {ahead[0].name}, which is not finished; run that first")
    return found


@contextlib.contextmanager
def claimed(run: Path, resolved: Resolved, options: Options, ranks: Ranks) -> Iterator[bool]:
    """Hold the run directory (rank 0) while the block lasts; yields whether there is a run to continue. Ranks fail together."""
    trouble, going_on = None, False
    with contextlib.ExitStack() as held:
        if ranks.first:
            try:
                if options.restart and rundir.check(run):
                    rundir.hold(run).close()
                    print(f"the old run is kept at {rundir.set_aside(run)}")
                going_on = rundir.check(run)
                if going_on and options.fresh:
                    raise PlaitError(
                        f"{run} is a run already, and a fresh one was asked for: give another --run, or --restart (keeps it aside)"
                    )
                if not checkpoint.published(run):  # also of a run that was begun and saved nothing
                    if resolved.config.from_:
                        start.check_named(resolved.config.from_)
                    parts.check_data(resolved.stages)
                held.enter_context(rundir.hold(run))
                if going_on:
                    compare(run, resolved, options.allow_inexact)
                files.write_whole(run / "config.yaml", resolved.yaml)
            except PlaitError as error:
                trouble = str(error)
        trouble, going_on = ranks.agree((trouble, going_on))
        if trouble is not None:
            raise PlaitError(trouble)
        yield going_on


def compare(run: Path, resolved: Resolved, allow_inexact: bool) -> None:
    """Print how the configuration differs from the one the run was begun with. Raises PlaitError where that changes the answer."""
    try:
        before = RunConfig.model_validate(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")))
    except (ValidationError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[1:2] or [type(error).__name__]
        raise PlaitError(f"{run}/config.yaml is not of this version of plait ({reason[0]}); use the version that began the run") from error
    differences = difference(before, resolved.config)
    if differences:
        print(f"configuration changed:\n{start.changed(before, resolved.config, differences, before.train.steps or 1000)}")
    binding = rundir.binding(differences)
    if binding and not checkpoint.published(run):
        print("nothing was saved under the old configuration: the run begins with the new one")
        rundir.clear(run)
    elif not allow_inexact:
        rundir.refuse(run, binding)
