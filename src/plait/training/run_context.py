"""What the stages (parts) of a run share while it runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from plait.engine.checkpoints.checkpoint import Checkpoint
from plait.engine.monitoring.heartbeat import Heartbeat
from plait.engine.monitoring.signals import Signals
from plait.engine.monitoring.tracking import Tracker
from plait.engine.parallel.distributed import Ranks

Callback = Callable[[dict[str, Any], nn.Module], object]
"""A caller's function between steps, of a copy of the step's metrics by name and the model; what it returns is not looked at."""


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
    callbacks: Sequence[Callback]
    """Called in order after each step, on every rank."""
