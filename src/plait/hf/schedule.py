"""A stage's learning rates as a scheduler of torch: what `engine/schedule.py` computes, in steps or in tokens, set before each update."""

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from plait.config.schema import Optim
from plait.engine.schedule import TOKENS, factor, progress_at
from plait.engine.state import State


class StageSchedule(LRScheduler):
    """The learning rate of each group of `optimizer` in a stage of `steps` updates. `state`: has the tokens so far.

    `begin` is called with what a step's batch counts before its update, as a schedule in tokens depends on them.
    """

    def __init__(self, optimizer: Optimizer, settings: Optim, steps: int, state: State) -> None:
        self.settings, self.steps, self.state = settings, steps, state
        self.counts: Mapping[str, float] = {TOKENS: 0.0}
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Any]:
        """Return the learning rate of each group for the update that comes next."""
        schedule = self.settings.schedule
        progress = progress_at(schedule, self.last_epoch, self.steps, self.state.totals, self.counts)
        return [group["peak"] * factor(self.settings, progress, group["warmup"]) for group in self.optimizer.param_groups]

    def begin(self, counts: Mapping[str, float]) -> None:
        """Set the rates of the update whose global batch counts `counts`, by the names of `Loss.counts`."""
        self.counts = counts
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the updates so far, and the last rates."""
        return {"last_epoch": self.last_epoch, "_last_lr": list(self._last_lr)}
