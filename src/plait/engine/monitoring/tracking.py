"""Where the numbers of a run go: `metrics.jsonl` is the truth; TensorBoard, W&B and the screen mirror it and may fail without harm."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from plait import files
from plait.config.schema import RunConfig
from plait.engine.monitoring.wandb_mirror import WandB
from plait.engine.state import State

_LINE_EVERY_S = 10.0
_NOT_FINITE = ("nan", "inf", "-inf")

Monitor = Callable[[Mapping[str, Any]], list[str]]
"""Reads every recorded row, in order, and answers with advice when something has gone wrong."""


class Mirror(Protocol):
    """Something that shows rows of metrics elsewhere."""

    def row(self, row: Mapping[str, Any]) -> None:
        """Take one row; must return at once."""

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Take pictures (uint8, H x W x 3) by name; must return at once."""

    def close(self) -> None:
        """Finish within seconds."""


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> Any:
    return float(value) if value in _NOT_FINITE else value


class TensorBoard:
    """Event files under RUN/events; `tensorboard --logdir RUN` is the live page."""

    def __init__(self, run: Path, step: int):
        self.writer = SummaryWriter(str(run / "events"), purge_step=step + 1 if step else None, flush_secs=10)

    def row(self, row: Mapping[str, Any]) -> None:
        """Add the row's numbers as scalars, in one event: `add_scalar` each would cost ten times as much."""
        numbers = [(name, value) for name, value in row.items() if isinstance(value, int | float) and name != "step"]
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers]
        assert self.writer.file_writer is not None
        self.writer.file_writer.add_summary(Summary(value=values), row["step"])

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Add them to the page's images."""
        for name, picture in pictures.items():
            self.writer.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Flush the event file."""
        self.writer.close()


class Screen:
    """A progress bar with time left on a terminal; a plain line every few seconds elsewhere."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.bar: Progress | None = None
        self.begin("", 0, 0)

    def begin(self, stage: str, start: int, stop: int) -> None:
        """Count a new stage from step `start` to `stop`."""
        self.close()
        self.stage, self.first, self.stop = stage, start, stop
        self.began_s, self.said_s = time.monotonic(), -math.inf
        if self.console.is_terminal and stage:
            columns = [
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
            ]
            self.bar = Progress(*columns, console=self.console)
            self.task = self.bar.add_task(stage, total=stop, completed=start, text="")
            self.bar.start()

    def row(self, row: Mapping[str, Any]) -> None:
        """Show loss, learning rate and rate of a training row, or every figure of an evaluation."""
        step = row["step"]
        if "loss" not in row:
            numbers = {name.removeprefix("eval/"): value for name, value in row.items() if isinstance(value, float)}
            terms = [name for name in numbers if name.startswith("loss/")]
            if len(terms) == 1 and numbers[terms[0]] == numbers.get("loss"):
                del numbers[terms[0]]  # the only term is the loss itself
            figures = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            self._say(f"{self.stage} {step}/{self.stop}  held out: {figures}")
            return
        text = f"loss {row['loss']:.4f}  {row['samples_per_s']:.1f} samples/s"
        text += f"  MFU {100 * row['mfu']:.1f} %" if "mfu" in row else ""
        if self.bar is not None:
            self.bar.update(self.task, completed=step, text=text)
        elif time.monotonic() - self.said_s >= _LINE_EVERY_S or step == self.stop:
            self.said_s = time.monotonic()
            left_s = (self.said_s - self.began_s) / max(1, step - self.first) * (self.stop - step)
            self._say(f"{self.stage} {step}/{self.stop}  {text}  {_clock(left_s)} left")

    def warn(self, lines: Sequence[str]) -> None:
        """Say what monitors found."""
        self._say("\n".join(f"warning: {line}" for line in lines))

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self.bar is not None:
            self.bar.stop()


class Tracker:
    """Writes every row to `metrics.jsonl` first, then to the mirrors. A tracker of no run (ranks above 0) does nothing.

    What monitors say of a row is recorded in it as `warnings`, and shown.
    """

    def __init__(self, run: Path | None, mirrors: Sequence[Mirror], screen: Screen | None = None, monitors: Sequence[Monitor] = ()):
        self.path = run / "metrics.jsonl" if run is not None else None
        self.mirrors, self.screen, self.monitors = mirrors, screen, monitors

    def begin(self, stage: str, step: int, stop: int) -> None:
        """A stage starts or continues at `step`."""
        if self.screen is not None:
            self.screen.begin(stage, step, stop)

    def row(self, row: Mapping[str, Any]) -> None:
        """Record one row; it has a `step`: it describes the moment after that many updates."""
        if self.path is not None:
            warnings = self.watch(row)
            row = {**row, "warnings": warnings} if warnings else row
            files.append_rows(self.path, [{name: _plain(value) for name, value in row.items()}])
            for mirror in self._all():
                mirror.row(row)
            if self.screen is not None and warnings:
                self.screen.warn(warnings)

    def watch(self, row: Mapping[str, Any]) -> list[str]:
        """What the monitors say of the row; they remember it."""
        return [line for monitor in self.monitors for line in monitor(row)]

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Show pictures by name where pictures can be shown."""
        for mirror in self.mirrors:
            mirror.pictures(step, pictures)

    def _all(self) -> list[Mirror | Screen]:
        return [*self.mirrors, *([self.screen] if self.screen is not None else [])]

    def close(self) -> None:
        """Finish all mirrors."""
        for mirror in self._all():
            mirror.close()


def open_tracker(run: Path, config: RunConfig, identity: str, state: State, monitors: Sequence[Monitor] = ()) -> Tracker:
    """The tracker of a run that continues at `state`: rows of what will be run again are dropped, so that none is doubled.

    Monitors read the rows that stay, so that they know what they knew, and say nothing twice.
    """
    step = state.step

    def done(row: Mapping[str, Any]) -> bool:
        held_out = any(name.startswith("eval/") for name in row)
        return row["step"] <= (state.judged if held_out else step)

    files.keep_rows(run / "metrics.jsonl", done)
    mirrors: list[Mirror] = [TensorBoard(run, step)] if config.track.tensorboard else []
    if config.track.wandb is not None:
        mirrors.append(WandB(run, config.track.wandb, config.model_dump(mode="json", by_alias=True), identity))
    tracker = Tracker(run, mirrors, Screen(), monitors)
    for row in files.read_rows(run / "metrics.jsonl"):
        tracker.watch({name: _number(value) for name, value in row.items()})
    return tracker


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
