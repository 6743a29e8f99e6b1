"""Train a run in Python, `plait.train`: what `plait train` does, in this process, with functions between the steps."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from plait.api import checkpoint, open_autocast
from plait.api.checkpoint import Checkpoint
from plait.api.configuration import load_config
from plait.api.metrics import rows, table
from plait.commands.actions.publishing.beside import pushed
from plait.commands.actions.publishing.restore import from_mirror
from plait.commands.actions.report.refresh import refreshed
from plait.config.messages import CONFIGURATION, LIST, PLACE, TEXT, Wanted, check_arguments, optional, with_type
from plait.config.resolved import Resolved
from plait.engine.loop import Hook, Row
from plait.engine.state import State
from plait.errors import PlaitError
from plait.training import run as training
from plait.training.run_context import TrainOptions

log = logging.getLogger(__name__)

Callback = Callable[[dict[str, Any], nn.Module], object]
"""A function of the metrics of a step by name, and the model; what it returns is not looked at."""


def train(
    config: Resolved | str | Path | Mapping[str, Any],
    *,
    callbacks: Sequence[Callback] = (),
    restart: bool = False,
    fresh: bool = False,
    stage: str | None = None,
    allow_inexact: bool = False,
) -> "Run":
    """Start the run of a configuration, or continue it, to its last planned step; returns the run.

    `config`: what `load_config` returned, or takes. `callbacks`: functions of (metrics of the step by name, model), called after each step
    on every rank, without gradients; an error in one ends the run as a crash would, and the same call continues. `restart`: keep an old run
    aside and begin anew; `fresh`: refuse where there is a run; `stage`: run this stage only; `allow_inexact`: go on although something
    differs from what was saved. Raises PlaitError for what has to be mended, when the run stops itself, or when it was asked to stop, with
    everything saved, by a signal such as Ctrl-C; also outside of the main thread, where no signal can be heard, and inside an autocast.
    """
    if threading.current_thread() is not threading.main_thread():
        raise PlaitError("plait.train runs in the main thread only, where a signal to stop can be heard: start a process for it")
    open_autocast.refuse("plait.train")
    check_arguments(
        "plait.train",
        config=(config, Wanted((Resolved, *CONFIGURATION.kinds), f"{CONFIGURATION.words}, or what load_config returned")),
        callbacks=(callbacks, LIST),
        stage=(stage, optional(TEXT)),
    )
    if wrong := [one for one in callbacks if not callable(one)]:
        raise PlaitError(f"plait.train: `callbacks` is to be a list of functions, and has {with_type(wrong[0])}")
    resolved = config if isinstance(config, Resolved) else load_config(config)
    for line in resolved.warnings:
        log.warning(line)
    restarts = restart or "restart" in resolved.train_options
    fresh = fresh or "fresh" in resolved.train_options
    from_mirror(resolved, restart=restarts, fresh=fresh)
    with pushed(resolved) as pushes, refreshed(resolved) as pages:
        options = TrainOptions(
            restart=restarts,
            allow_inexact=allow_inexact,
            only=stage,
            fresh=fresh,
            hooks=(*pages, *pushes, *map(_hook, callbacks)),
        )
        return Run(training.train(resolved, options))


def _hook(callback: Callback) -> Hook:
    """Return a hook of the loop that calls `callback` with a copy of the step's metrics and the model; no gradient can come of it."""

    def call(state: State, row: Row) -> None:
        state.copied()  # it may change the weights
        with torch.no_grad():
            callback(dict(row), state.model)

    return call


class Run:
    """A run's directory, `folder`, as `train` leaves it."""

    def __init__(self, folder: str | Path) -> None:
        check_arguments("plait.Run", folder=(folder, PLACE))
        self.folder = Path(folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def checkpoint(self, mark: int | str = "latest", *, stage: str | None = None) -> Checkpoint:
        """Open a checkpoint of the run, or of one of its stages: "latest", "best" or a step. Raises PlaitError if there is none."""
        check_arguments("Run.checkpoint", mark=(mark, Wanted((int, str), "a step, or a text such as best")), stage=(stage, optional(TEXT)))
        return checkpoint.open(f"{self.folder if stage is None else self.folder / stage}@{mark}")

    def metrics(self) -> Any:
        """Return what the run recorded: a pandas DataFrame, or without pandas a list of dicts, one per row."""
        return table(rows(self.folder))
