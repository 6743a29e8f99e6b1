"""A session of a run at Weights & Biases, for tracker_process.py.

W&B's own count of steps only grows, and drops rows of a step that a run repeats; so each row has its `step` as a value, against which
charts are drawn, and W&B counts rows.
"""

from collections.abc import Mapping
from typing import Any


class Session:
    """A run at W&B. `start`: arguments of `wandb.init`. `where`: a line that says where the run is seen, or how it gets there."""

    def __init__(self, start: Mapping[str, Any]) -> None:
        import wandb

        self.run = wandb.init(**start, settings=wandb.Settings(silent=True))
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")
        offline = self.run.url is None
        self.where = f"W&B (offline): wandb sync {self.run.settings.sync_dir}" if offline else f"W&B: {self.run.url}"

    def row(self, step: int, numbers: Mapping[str, float]) -> None:
        """Send the numbers of a row."""
        self.run.log({"step": step, **numbers})

    def finish(self) -> None:
        """Wait until everything is sent."""
        self.run.finish()
