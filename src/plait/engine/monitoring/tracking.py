"""Record the metrics of a run.

Every row (metrics by name, with their `step`) goes to `metrics.jsonl`; mirrors repeat it and may fail without harm.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from plait import files
from plait.config.schema import RunConfig
from plait.engine.monitoring import event_files
from plait.engine.monitoring.alerts import Alerts
from plait.engine.monitoring.beside import shown
from plait.engine.monitoring.beside.shown import KeptPictures, Table
from plait.engine.monitoring.beside.trackers import mlflow_mirror, trackio_mirror, wandb_mirror
from plait.engine.monitoring.event_files import TensorBoard
from plait.engine.monitoring.screen import Screen
from plait.engine.state import State

log = logging.getLogger(__name__)

_NOT_FINITE = ("nan", "inf", "-inf")

Monitor = Callable[[Mapping[str, Any]], list[str]]
"""Called with every recorded row, in order; returns warnings when something has gone wrong."""


class Mirror(Protocol):
    """A destination of metrics besides `metrics.jsonl`: TensorBoard or W&B."""

    def row(self, row: Mapping[str, Any]) -> None:
        """Show or send one row; must return at once."""

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Show or send pictures (uint8, H x W x 3) by name; must return at once."""

    def table(self, step: int, name: str, table: Table) -> None:
        """Show or send a table, such as the answers of a bench; must return at once."""

    def close(self) -> None:
        """Write out what is pending, within seconds."""


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it: numbers that are not finite as text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> Any:
    """Undo `_plain`."""
    return float(value) if value in _NOT_FINITE else value


class Tracker:
    """Writer of metrics: every row to `metrics.jsonl` first, then to the mirrors. `run`: the run's directory; None: rows are dropped.

    `screen`: shows progress to a person; None: nobody is shown any. `monitors`: functions that take a row and return warnings, which are
    recorded in the row as `warnings` and shown on the screen. `alerts`: tells people what happens; None: nobody is told.
    """

    def __init__(
        self,
        run: Path | None,
        mirrors: Sequence[Mirror],
        screen: Screen | None = None,
        monitors: Sequence[Monitor] = (),
        alerts: Alerts | None = None,
    ) -> None:
        self.path = run / "metrics.jsonl" if run is not None else None
        self.mirrors, self.screen, self.monitors, self.alerts = mirrors, screen, monitors, alerts

    def begin(self, stage: str, step: int, stop: int) -> None:
        """Show on the screen that a stage (part of a run) begins or continues at `step`, to end at step `stop`."""
        if self.screen is not None:
            self.screen.begin(stage, step, stop)

    def attach(self, monitor: Monitor) -> None:
        """Give every row from now on to one more monitor, which first reads those that are recorded already and repeats no warning.

        Of a long `metrics.jsonl` those are the first and the last rows.
        """
        for row in files.read_rows(self.path, files.STEP_KINDS, ends=True) if self.path is not None else ():
            monitor({name: _number(value) for name, value in row.items()})
        self.monitors = [*self.monitors, monitor]

    def advance(self, row: Mapping[str, Any]) -> None:
        """Show the row of a step on the screen, whether or not it is recorded too, and to the alerts."""
        if self.screen is not None:
            self.screen.advance(row)
        if self.alerts is not None:
            self.alerts.advance(row)

    def tell(self, event: str, text: str) -> None:
        """Have people told of an event of `alert.on`, such as "plateau"; returns at once."""
        if self.alerts is not None:
            self.alerts.tell(event, text)

    def row(self, row: Mapping[str, Any]) -> None:
        """Record a row of metrics, with the warnings of the monitors, in `metrics.jsonl`; pass it to the mirrors and the screen.

        Its key `step`: how many updates were done when it was measured.
        """
        if self.path is not None:
            warnings = self.watch(row)
            row = {**row, "warnings": warnings} if warnings else row
            files.append_rows(self.path, [{name: _plain(value) for name, value in row.items()}])
            for mirror in self._all():
                mirror.row(row)
            if self.screen is not None and warnings:
                self.screen.warn(warnings)
            if self.alerts is not None:
                self.alerts.row(row)

    def watch(self, row: Mapping[str, Any]) -> list[str]:
        """Pass a row to every monitor, which may remember it, and return their warnings."""
        return [line for monitor in self.monitors for line in monitor(row)]

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Pass pictures (uint8, H x W x 3), by name, to the mirrors."""
        for mirror in self.mirrors:
            mirror.pictures(step, pictures)

    def answers(self, step: int, bench: str, answers: Sequence[Mapping[str, Any]]) -> None:
        """Pass answers of a bench, each with `id`, `question`, `answer` and more, to the mirrors as a table."""
        for mirror in self.mirrors:
            mirror.table(step, shown.answers_of(bench), shown.table(answers))

    def _all(self) -> list[Mirror | Screen]:
        return [*self.mirrors, *([self.screen] if self.screen is not None else [])]

    def close(self) -> None:
        """Close the mirrors (TensorBoard, W&B), which write out what is pending, and the display of progress."""
        for mirror in self._all():
            mirror.close()


def open_alerts(run: Path, config: RunConfig, *, first: bool) -> contextlib.AbstractContextManager[Alerts | None]:
    """Return the alerts of a run, to enter: whoever is to be told learns how its block ends. None on ranks that are not the `first`."""
    return Alerts(run, config.alert) if first and config.alert.wanted else contextlib.nullcontext()


def open_tracker(
    run: Path, config: RunConfig, identity: str, state: State, monitors: Sequence[Monitor] = (), alerts: Alerts | None = None
) -> Tracker:
    """Open the tracker of a run that continues at `state`, after removing rows of later steps from `metrics.jsonl` and the event files.

    `identity`: the run's id at W&B. `monitors` read the rows that stay, so that they remember earlier steps and repeat no warning; of a
    long `metrics.jsonl` the first and the last, so that a start takes no longer at a later step.
    """

    def done(step: int, held_out: bool) -> bool:
        return step <= (state.evaluated_step if held_out else state.step)

    path = run / "metrics.jsonl"
    files.keep_rows(path, lambda row: done(row["step"], any(name.startswith("eval/") for name in row)), files.STEP_KINDS)
    for name, kinds in shown.KINDS.items():
        files.keep_rows(run / name, lambda row: done(row["step"], True), kinds)
    rows = [{name: _number(value) for name, value in row.items()} for row in files.read_rows(path, files.STEP_KINDS, ends=True)]
    mirrors: list[Mirror] = []
    try:
        there = event_files.cut(run, done)
        if config.track.tensorboard:
            board = TensorBoard(run, state.step)
            event_files.fill(board, rows, there)
            event_files.show_again(board, run, there)
            mirrors.append(board)
    except OSError as error:
        log.warning(f"TensorBoard is off for this run: {error}; metrics.jsonl has every row")
    track, written = config.track, config.model_dump(mode="json", by_alias=True)
    if track.wandb or track.mlflow or track.trackio:
        mirrors.append(KeptPictures(run))
    if track.wandb is not None:
        mirrors.append(wandb_mirror(run, track.wandb, written, identity))
    if track.mlflow is not None:
        mirrors.append(mlflow_mirror(run, track.mlflow, written, identity))
    if track.trackio is not None:
        mirrors.append(trackio_mirror(run, track.trackio, written, identity))
    tracker = Tracker(run, mirrors, Screen(), monitors, alerts)
    for row in rows:
        tracker.watch(row)
    return tracker
