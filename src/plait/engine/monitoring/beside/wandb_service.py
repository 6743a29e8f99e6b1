"""A session of a run at Weights & Biases, for tracker_process.py.

W&B's own count of steps only grows, and drops rows of a step that a run repeats; so each row has its `step` as a value, against which
charts are drawn, and W&B counts rows.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plait.engine.monitoring.beside.shown import Table


class Session:
    """A run at W&B. `start`: arguments of `wandb.init`. `where`: a line that says where the run is seen, or how it gets there."""

    def __init__(self, start: Mapping[str, Any]) -> None:
        import wandb

        self.wandb, self.why = wandb, "offline"
        self.run = self._opened(start)
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")
        offline = self.run.url is None
        self.where = f"W&B ({self.why}): wandb sync {self.run.settings.sync_dir}" if offline else f"W&B: {self.run.url}"

    def _opened(self, start: Mapping[str, Any]) -> Any:
        """Open the run at W&B, or, where W&B cannot be reached, on the disk alone, to be sent later."""
        silent = self.wandb.Settings(silent=True)
        try:
            return self.wandb.init(**start, settings=silent)
        except Exception as error:
            if type(error).__name__ != "CommError":
                raise
            self.why = "not reached, so kept on the disk"
            self.wandb.teardown()  # the service that waits for the network holds the run's id
            return self.wandb.init(**{**start, "mode": "offline"}, settings=silent)

    def row(self, step: int, numbers: Mapping[str, float]) -> None:
        """Send the numbers of a row."""
        self.run.log({"step": step, **numbers})

    def pictures(self, step: int, pictures: Mapping[str, Path]) -> None:
        """Send picture files by name."""
        self.run.log({"step": step, **{name: self.wandb.Image(str(path)) for name, path in pictures.items()}})

    def table(self, step: int, name: str, table: Table) -> None:
        """Send a table."""
        columns: list[str | int] = [*table.columns]
        rows = [[*row] for row in table.rows]
        self.run.log({"step": step, name: self.wandb.Table(columns=columns, data=rows, allow_mixed_types=True)})

    def finish(self) -> None:
        """Wait until everything is sent."""
        self.run.finish()
