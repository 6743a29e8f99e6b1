"""Show a person the progress of a stage (part of a run). On a terminal one line moves with every step; elsewhere lines are plain.

Nothing is recorded: tracking.py writes the metrics.
"""

import contextlib
import math
import os
import stat
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from plait.engine.monitoring.wrapping import columns, wrapped
from plait.errors import printable

_LINE_EVERY_S = 10.0
_BAR = (8, 40)
"""Columns of the bar: the fewest, and the most."""
_BEFORE_BAR = 2
"""Figures that count more than the bar: the loss and the time left."""
_NAME_COLUMNS = 20
_NO_BREAK = "\xa0"
"""A blank at which no line is broken, as between a figure's name and its value."""
_WINDOW_STEPS = 50
"""Steps over which the share of the time that goes to waiting for data is taken."""
_WAIT_SHOWN, _WAIT_TOLD, _WAIT_STEPS = 0.1, 0.3, 10
"""Share of the step from which waiting is shown; from which its cure is told, once a stage; and after how many steps."""


class Screen:
    """The progress of a stage. On a terminal it is a line with a bar and the time left, elsewhere a plain line every 10 s.

    Where standard output is a pipe (`| tee`), what comes through it would break the bar: plain lines there, too. `console`: where it
    is shown; None: standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, soft_wrap=True)
        self.live: Live | None = None
        self.stage, self.first, self.step, self.stop = "", 0, 0, 0
        self.figures: list[str] = []
        self.waits: deque[tuple[float, float]] = deque(maxlen=_WINDOW_STEPS)
        """(seconds waited for data, seconds of the whole step) of the last steps."""
        self.told = False
        self.began_s, self.line_s = time.monotonic(), -math.inf
        """When the stage began, and when the last line was written (monotonic clock)."""

    def begin(self, stage: str, start: int, stop: int) -> None:
        """Show a new stage by its name, from step `start` to `stop` (both counted over all stages)."""
        self.close()
        self.stage, self.first, self.step, self.stop = stage, start, start, stop
        self.figures, self.told = [], False
        self.waits.clear()
        self.began_s, self.line_s = time.monotonic(), -math.inf
        if self.console.is_terminal and not self.console.is_dumb_terminal and not _is_pipe() and stage:
            with contextlib.suppress(OSError, ValueError):
                own = sys.stdout is not None and sys.stdout.isatty()  # a file that standard output goes to gets its lines itself
                self.live = Live(self, console=self.console, refresh_per_second=4, redirect_stdout=own)
                self.live.start()

    def advance(self, row: Mapping[str, Any]) -> None:
        """Show a step's row of metrics, recorded or not: `loss`, `samples_per_s`; MFU and the wait for data where they are known."""
        self.step = row["step"]
        if "data_wait_s" in row and self.step > self.first + 1:  # the first one waits for the workers to start
            self.waits.append((row["data_wait_s"], row["data_wait_s"] + row["step_s"]))
        share = self.waiting()
        self.figures = [f"loss {row['loss']:.4f}", f"{clock(self.left_s())} left", f"{_speed(row['samples_per_s'])} samples/s"]
        self.figures += [f"data {100 * share:.0f} % of the step"] if share >= _WAIT_SHOWN else []
        self.figures += [f"MFU {100 * row['mfu']:.1f} %"] if "mfu" in row else []
        if self.live is None and (time.monotonic() - self.line_s >= _LINE_EVERY_S or self.step == self.stop):
            self.line_s = time.monotonic()
            self._write(f"{self._place()}  {'  '.join(self.figures)}")
        if share >= _WAIT_TOLD and len(self.waits) >= _WAIT_STEPS and not self.told:
            self.told = True
            waits = f"data {100 * share:.0f} % of the step: more workers (data.workers), or processes (data.worker_kind)"
            self._write(f"{self._place()}  {waits}")

    def held_out(self, row: Mapping[str, Any]) -> None:
        """Show all figures of an evaluation's row (`eval/...`): `loss`, and in brackets after it those that are named `loss/...`.

        Of figures that are measured in several ways (`colour/image_off` beside `image_off`) only the first of each way is shown. A figure
        that has an interval in `intervals` is followed by the distance to its farther end: `accuracy 0.81 ±0.04`.
        """
        intervals = row.get("intervals", {})
        numbers = {name.removeprefix("eval/"): value for name, value in row.items() if isinstance(value, float)}
        terms = [name for name in numbers if name.startswith("loss/")]
        for name in {"loss/loss", *(terms if len(terms) == 1 else ())} & numbers.keys():
            if numbers[name] == numbers.get("loss"):
                del numbers[name]  # the loss itself
        shown = []
        for name, value in numbers.items():
            if not any(name.startswith(f"{other}/") for other in numbers):
                others = {other[len(name) + 1 :]: its for other, its in numbers.items() if other.startswith(f"{name}/")}
                others = {other: its for other, its in others.items() if "/" not in other or other.rpartition("/")[2] not in others}
                inner = [f"{other}{_NO_BREAK}{number(its)}" for other, its in others.items()]
                sure = f"{_NO_BREAK}±{max(abs(end - value) for end in intervals[name]):.2g}" if name in intervals else ""
                shown.append(f"{name}{_NO_BREAK}{number(value)}{sure}" + (f" ({', '.join(inner)})" if inner else ""))
        self._write(f"{self._place(row['step'])}  held out: {'  '.join(shown)}")

    def row(self, row: Mapping[str, Any]) -> None:
        """Show a recorded row of an evaluation (`eval/...`) as `held_out` does; ignore others: `advance` shows that of a step."""
        if any(name.startswith("eval/") for name in row):
            self.held_out(row)

    def warn(self, lines: Sequence[str]) -> None:
        """Show warnings about the latest row of metrics, a line each."""
        self._write("\n".join(f"warning: {line}" for line in lines))

    def close(self) -> None:
        """Stop moving the progress line, whose last state stays on the terminal, and leave the terminal as it was."""
        if self.live is not None:
            with contextlib.suppress(OSError, ValueError):
                self.live.stop()
            self.live = None

    def waiting(self) -> float:
        """Return the share of the last steps' time, 0 to 1, that the training process waited for its data."""
        total = sum(seconds for _, seconds in self.waits)
        return sum(wait for wait, _ in self.waits) / total if total else 0.0

    def left_s(self) -> float:
        """Return the estimated seconds to the end of the stage, from the mean speed since it began or was resumed."""
        return (time.monotonic() - self.began_s) / max(1, self.step - self.first) * (self.stop - self.step)

    def line(self, width: int, *, ascii_only: bool = False) -> Text:
        """Return the progress line for a terminal of `width` columns; what does not fit is left out, the least important first.

        `ascii_only`: draw the bar with # and - for a terminal that shows ASCII only.
        """
        place, kept = self._place(), list[str]()
        for figure in [*self.figures, f"{clock(time.monotonic() - self.began_s)} so far"]:
            bar = _BAR[0] + 1 if len(kept) >= _BEFORE_BAR else 0
            if len("  ".join([place, *kept, figure])) + bar > width:
                break
            kept.append(figure)
        room = min(_BAR[1], width - len("  ".join([place, *kept])) - 1)
        text = Text(place, no_wrap=True, overflow="crop")
        if room >= _BAR[0]:
            done = round(room * self.step / self.stop) if self.stop else 0
            text.append(" ").append(("#" if ascii_only else "━") * done, "bar.complete")
            text.append(("-" if ascii_only else "━") * (room - done), "bar.back")
        return text.append("".join(f"  {figure}" for figure in kept))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.line(options.max_width, ascii_only=options.ascii_only)

    def _place(self, step: int | None = None) -> str:
        name = self.stage if len(self.stage) <= _NAME_COLUMNS else f"{self.stage[: _NAME_COLUMNS - 3]}..."
        return f"{name} step {self.step if step is None else step}/{self.stop}".lstrip()

    def _write(self, line: str) -> None:
        width = columns(self.console.file) or self.console.width if self.console.is_terminal else None
        line = wrapped(printable(line), width).replace(_NO_BREAK, " ")
        with contextlib.suppress(OSError, ValueError):  # the terminal may have gone
            self.console.print(line, highlight=False, soft_wrap=True, markup=False)


def number(value: float) -> str:
    """Format a number: whole ones, and all from 10,000 on, as 12,345; others with four significant digits."""
    if math.isfinite(value) and (value == int(value) or abs(value) >= 1e4):
        return f"{value:,.0f}"
    return f"{value:.4g}"


def clock(seconds: float) -> str:
    """Format seconds as h:mm:ss."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def _speed(samples_per_s: float) -> str:
    return f"{samples_per_s:,.1f}" if samples_per_s >= 1 else f"{samples_per_s:.2g}"


def _is_pipe() -> bool:
    """Return whether standard output goes into a pipe, whose reader may write to this very terminal."""
    try:
        return sys.stdout is not None and stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode)
    except (OSError, ValueError):
        return False
