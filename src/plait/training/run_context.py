"""What the stages (parts) of a run share while it runs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from plait.config.resolved import Resolved
from plait.engine.checkpoints.checkpoint import Checkpoint
from plait.engine.loop import Hook
from plait.engine.monitoring.heartbeat import Heartbeat
from plait.engine.monitoring.signals import Signals
from plait.engine.monitoring.tracking import Tracker
from plait.engine.parallel.distributed import Ranks


@dataclass(frozen=True)
class TrainOptions:
    """Flags of `plait train`. `restart`: rename an old run and begin anew. `only`: name of the one stage to run.

    `allow_inexact`: start even where something saved would be lost. `fresh`: fail where there is a run. `hooks`: called after each step.
    """

    restart: bool = False
    allow_inexact: bool = False
    only: str | None = None
    fresh: bool = False
    hooks: tuple[Hook, ...] = ()


@dataclass(frozen=True)
class RunContext:
    """What all stages share. `resolved`: the run's settings; `accept` writes them. `resumed_from`: where this process went on, or None."""

    run: Path
    ranks: Ranks
    tracker: Tracker
    signals: Signals
    heartbeat: Heartbeat
    resolved: Resolved
    accept: Callable[[], None]
    options: TrainOptions
    resumed_from: Checkpoint | None
