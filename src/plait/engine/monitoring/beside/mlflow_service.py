"""A session of a run at an MLflow server, or in a folder or database of MLflow's, for tracker_process.py."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plait.engine.monitoring.beside.shown import Table

_TAG = "plait.identity"
_AT_ONCE = 1000  # metrics in a request


class Session:
    """A run of MLflow. `start`: `uri`, `experiment`, `name`, `config` and `id`, by which a run that is continued is found again."""

    def __init__(self, start: Mapping[str, Any]) -> None:
        import mlflow
        from mlflow.entities import Metric

        self.metric = Metric
        uri = start["uri"] or os.environ.get("MLFLOW_TRACKING_URI")
        self.client = mlflow.MlflowClient(os.path.expandvars(uri) if uri else None)
        found = self.client.get_experiment_by_name(start["experiment"])
        experiment = found.experiment_id if found else self.client.create_experiment(start["experiment"])
        runs = self.client.search_runs([experiment], f"tags.`{_TAG}` = '{start['id']}'", max_results=1)
        if runs:
            self.run = runs[0].info.run_id
            self.client.update_run(self.run, status="RUNNING")
        else:
            self.run = self.client.create_run(experiment, tags={_TAG: start["id"]}, run_name=start["name"]).info.run_id
        self.client.log_dict(self.run, start["config"], "config.json")
        self.where = f"MLflow: experiment {start['experiment']}, run {self.run}{f' at {uri}' if uri else ''}"

    def row(self, step: int, numbers: Mapping[str, float]) -> None:
        """Send the numbers of a row."""
        now_ms = int(time.time() * 1000)
        metrics = [self.metric(_name(name), float(value), now_ms, step) for name, value in numbers.items()]
        for first in range(0, len(metrics), _AT_ONCE):
            self.client.log_batch(self.run, metrics=metrics[first : first + _AT_ONCE])

    def pictures(self, step: int, pictures: Mapping[str, Path]) -> None:
        """Send picture files by name."""
        for name, path in pictures.items():
            self.client.log_artifact(self.run, str(path), f"{_name(name)}/step-{step:08d}")

    def table(self, step: int, name: str, table: Table) -> None:
        """Send a table as JSON, as MLflow shows tables."""
        body = {"columns": list(table.columns), "data": [list(row) for row in table.rows]}
        self.client.log_dict(self.run, body, f"{_name(name)}/step-{step:08d}.json")

    def finish(self) -> None:
        """Mark the run as ended; all has been sent."""
        self.client.set_terminated(self.run)


def _name(text: str) -> str:
    """Return a name with the characters that MLflow takes: others become _."""
    return "".join(char if char.isalnum() or char in "_-./ " else "_" for char in text)
