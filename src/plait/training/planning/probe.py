"""Measure the pace of each stage (part of a run) by some real steps on this machine. Nothing of them stays."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from plait.assembly.configuration import open_config
from plait.config.resolved import Resolved, StageView, dump
from plait.engine.loop import Hook, Row
from plait.engine.state import State
from plait.training import run
from plait.training.planning.pace import Pace, measured
from plait.training.run_context import TrainOptions

STEPS = 8
"""Steps of each stage: fewer than those after which a gradient of zeros ends a run."""


class _Enough(Exception):
    """Raised in a run by the hook that has seen enough steps."""


def probe(resolved: Resolved, only: str | None = None) -> dict[str, Pace]:
    """Train each stage by itself for some steps, or `only` one; return {stage: its pace}. Needs the weights and the data of the run.

    Nothing is saved. Raises PlaitError for what keeps the run from starting, as `plait train` does.
    """
    with quiet():
        return {view.name: _pace(view) for view in resolved.stages if only is None or view.name == only}


def _pace(view: StageView) -> Pace:
    rows: list[dict[str, Any]] = []

    def note(state: State, row: Row) -> None:
        rows.append({**row, "stage": 1})

    train_some(view, STEPS, note)
    pace = measured(rows, 1, f"measured here, in {len(rows)} steps (--probe)")
    assert pace is not None, "a run has steps"
    return pace


def train_some(view: StageView, steps: int, hook: Hook) -> None:
    """Train a stage by itself for some steps in a folder that is removed; `hook` is called after each. Raises what `plait train` does."""
    done = [0]

    def count(state: State, row: Row) -> None:
        hook(state, row)
        done[0] += 1
        if done[0] == steps:
            raise _Enough

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.yaml"
        path.write_text(yaml.safe_dump(_shortened(view, Path(folder) / "run", steps), allow_unicode=True), encoding="utf-8")
        with suppress(_Enough):
            run.train(open_config(path), TrainOptions(hooks=(count,)))


def _shortened(view: StageView, folder: Path, steps: int) -> dict[str, Any]:
    """Return the settings of a run of this stage alone, without evaluations and checkpoints on the way."""
    plain = dump(view.config)
    schedule = {"warmup": None, "warmup_steps": 0, "warmup_tokens": 0, "decay_steps": None}
    plain["run"] = str(folder)
    plain["stages"] = []
    plain["evaluate"] = []
    plain["train"] |= {"steps": steps + 1, "epochs": None, "samples": None, "plateau": None}
    plain["optim"]["schedule"] |= schedule
    for component in plain["optim"]["components"].values():
        component |= {"warmup": None, "warmup_steps": None, "warmup_tokens": None}
    plain["checkpoint"] |= {"every_steps": None, "best": None}
    plain["track"] |= {"every_steps": 1, "tensorboard": False, "wandb": None, "mlflow": None, "trackio": None}
    plain["alert"] |= {"urls": [], "command": None}
    return plain


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the lines of the run to itself inside the block; warnings and errors come through."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)
