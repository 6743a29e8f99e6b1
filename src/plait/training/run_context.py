"""What the stages (parts) of a run share while it runs."""

from dataclasses import dataclass
from pathlib import Path

from plait.engine.checkpoints.checkpoint import Checkpoint
from plait.engine.monitoring.heartbeat import Heartbeat
from plait.engine.monitoring.signals import Signals
from plait.engine.monitoring.tracking import Tracker
from plait.engine.parallel.distributed import Ranks


@dataclass(frozen=True)
class RunContext:
    """What all stages of a run share. `run`: its directory; `tracker`: records metrics; `allow_inexact`: start even if state is lost."""

    run: Path
    ranks: Ranks
    tracker: Tracker
    signals: Signals
    heartbeat: Heartbeat
    config: str
    """The whole configuration as YAML, of which every checkpoint gets a copy."""
    allow_inexact: bool
    resumed_from: Checkpoint | None
    """The checkpoint that this process continued the run from; None if it began the run."""
