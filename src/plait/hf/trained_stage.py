"""What a trainer of transformers trains: a stage's plan, its model, and the state of the run."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from plait.assembly.model import ModelBundle
from plait.config.schema import RunConfig
from plait.engine.parallel.distributed import Ranks
from plait.engine.state import State
from plait.training.stage_plan import StagePlan


@dataclass(frozen=True)
class Stage:
    """A stage that a trainer trains. `state`: of the run, at the trainer's step; `out`: folder of its files.

    `changes`: of the model's blocks, recomputed or compiled, which last as long as the trainer.
    """

    plan: StagePlan
    bundle: ModelBundle
    state: State
    ranks: Ranks
    out: Path
    changes: ExitStack

    @property
    def config(self) -> RunConfig:
        """Return the settings of the stage."""
        return self.plan.config


class Wrapped(nn.Module):
    """A family's model, `model`, as a Trainer is given it: transformers takes a `config` that it finds for one of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any) -> Any:
        """Return what the model makes of a batch."""
        return self.model(batch)
