"""Mirrors to tracking services: each a process beside the run (tracker_process.py) that follows the files of the run directory.

No row waits in the trainer, so a slow or dead network never delays training.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from plait import files
from plait.config.sections.track import Mlflow, Trackio, Wandb
from plait.engine.monitoring.beside.process import SideProcess, Words
from plait.engine.monitoring.beside.shown import ANSWERS, PICTURES, Table

FILES = ("metrics.jsonl", ANSWERS, PICTURES)
"""The files that the process of a service follows."""
WANDB_ID = "wandb_id"
"""The file of a run directory that keeps the run's id at W&B where that is not the run's own identity, as in a trial of a sweep."""


class ServiceMirror:
    """Mirrors a run to the tracking service `service`, called `title` in messages: what its files gain from now on.

    `run`: the run directory. `start`: how a session is opened there, JSON values that the service's own file in this package explains.
    """

    def __init__(self, run: Path, service: str, title: str, start: Mapping[str, Any]) -> None:
        begin = {name: path.stat().st_size if (path := run / name).exists() else 0 for name in FILES}
        settings = {"service": service, "title": title, "start": dict(start), "run": str(run), "from": begin}
        kept = "metrics.jsonl has every row"
        words = Words(f"sends metrics to {title}", kept, f"{title} has not taken the last rows", f"{title} may lack rows of metrics.jsonl")
        self.side = SideProcess("plait.engine.monitoring.beside.tracker_process", settings, words, {"WANDB_SILENT": "true"})

    def row(self, row: Mapping[str, Any]) -> None:
        """Log what the process has said, and start it again if it was killed. `row` is not used: the process reads `metrics.jsonl`."""
        self.side.look()

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Do nothing: the process reads `pictures.jsonl` and the files that it names."""

    def table(self, step: int, name: str, table: Table) -> None:
        """Do nothing: the process reads `answers.jsonl`."""

    def close(self) -> None:
        """Give the process some seconds to send the remaining rows, then kill it."""
        self.side.close()


def wandb_mirror(run: Path, settings: Wandb, config: Mapping[str, Any], identity: str) -> ServiceMirror:
    """Return the mirror to Weights & Biases. `config`: the run's configuration, shown there; `identity`: the run's own id.

    `settings`: project, entity, name and mode (`track.wandb`); the variable WANDB_MODE goes before its mode, and WANDB_RUN_ID, which W&B's
    agents set for a trial of a sweep, before the run's own id. It is kept, so that the run goes on in its first W&B run wherever it is
    continued.
    """
    start = {"project": settings.project, "entity": settings.entity, "name": settings.name or run.name, "config": dict(config)}
    start |= {"mode": os.environ.get("WANDB_MODE", settings.mode), "id": _wandb_id(run, identity), "resume": "allow", "dir": str(run)}
    return ServiceMirror(run, "wandb", "W&B", start)


def mlflow_mirror(run: Path, settings: Mlflow, config: Mapping[str, Any], identity: str) -> ServiceMirror:
    """Return the mirror to MLflow, where the run is found again by its own id, `identity`. `config`: the run's configuration."""
    start = {"uri": settings.uri, "experiment": settings.experiment, "name": settings.name or run.name}
    return ServiceMirror(run, "mlflow", "MLflow", start | {"config": dict(config), "id": identity})


def trackio_mirror(run: Path, settings: Trackio, config: Mapping[str, Any], identity: str) -> ServiceMirror:
    """Return the mirror to Trackio, where a continued run is found by its name, which ends in `identity`."""
    name = f"{settings.name or run.name}-{identity}"
    return ServiceMirror(
        run, "trackio", "Trackio", {"project": settings.project, "name": name, "space_id": settings.space, "config": config}
    )


def _wandb_id(run: Path, identity: str) -> str:
    path, given = run / WANDB_ID, os.environ.get("WANDB_RUN_ID", "")
    if given:
        files.write_whole(path, given + "\n")
        return given
    kept = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    return kept if re.fullmatch(r"\S+", kept) else identity
