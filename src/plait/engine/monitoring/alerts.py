"""Alerts about a run: what is told, and when. They are sent by a process beside the run (alert_process.py), so that nothing waits for them.

That process also looks at the space on the disk, and tells of a run that was killed, as it sees its standard input close without a word.
"""

import importlib.util
import logging
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from plait.config.secrets import shown, unset_in
from plait.config.sections.alert import Alert
from plait.engine.monitoring.beside.process import SideProcess, Words
from plait.engine.monitoring.signals import Paused
from plait.engine.nonfinite import Rewind
from plait.errors import PlaitError

log = logging.getLogger(__name__)

PACKAGE = "pip install 'plait[alert]'"
_LONGEST = 1000  # characters of a text: with the rest of a line less than what a pipe takes whole or not at all
_FIGURES = 6  # figures in the text of a run's end


def check(settings: Alert) -> None:
    """Raise PlaitError if alerts could not be sent: a variable is not set, or its address is of no known kind.

    Called before a run begins. Nothing is sent. The message has no address, only its variable.
    """
    for written in settings.urls:
        if name := unset_in(written):
            raise PlaitError(f"alert.urls names ${name}, a variable of the environment that is not set: set it, or take it out of alert")
    if not settings.urls:
        return
    if importlib.util.find_spec("apprise") is None:
        raise PlaitError(f"alert.urls needs apprise, which is not installed: {PACKAGE}, or use alert.command")
    unknown = [sys.executable, "-m", "plait.engine.monitoring.beside.alert_process", "unknown", *settings.urls]
    done = subprocess.run(unknown, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode or done.stdout:
        at_fault = f"{done.stdout.strip()} holds no address that apprise knows" if done.stdout else "apprise cannot be used, as said above"
        raise PlaitError(f"alert.urls: {at_fault}: see the services of https://appriseit.com, or use alert.command")


class Alerts:
    """Context manager: tells the people that `settings` name of what happens to the run in the folder `run`.

    The run has finished where the block ends without an error; a Rewind, after which the run goes on, is a spike.
    """

    def __init__(self, run: Path, settings: Alert) -> None:
        self.settings, self.run = settings, run
        self.step: int | None = None
        self.figures: dict[str, float] = {}
        """The newest loss and held-out figures, for the text of the run's end."""
        words = Words(
            does="sends alerts",
            keeps="the run goes on",
            late="not all alerts could be sent",
            lost="an alert may not have been sent",
            end="the others are given up, and alert.command has a minute from its start",
        )
        start = settings.model_dump(mode="json") | {"run": str(run.absolute()), "name": str(run)}
        self.process = SideProcess("plait.engine.monitoring.beside.alert_process", start, words, {})

    def __enter__(self) -> "Alerts":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, Rewind):
            self.tell("spike", str(error))
        elif isinstance(error, Paused):
            self.tell("stop", str(error))
        elif error is not None:
            self.tell("failure", str(error) if isinstance(error, PlaitError) else f"{type(error).__name__}: {error}")
        else:
            figures = ", ".join(f"{name} {value:.4g}" for name, value in self.figures.items())
            self.tell("finish", f"{'' if self.step is None else f'step {self.step}: '}done{f'; {figures}' if figures else ''}")
        self.process.send({"end": True})
        self.process.close()

    def advance(self, row: Mapping[str, Any]) -> None:
        """Look at the row of a step, whether or not it is recorded: an update that was passed over is a spike."""
        self.step = row["step"]
        if row.get("skipped") and not row.get("spike"):  # of one that is finite and stands out, a row of its own is recorded
            reason = "its loss or gradient was not finite" if "grad_norm" in row else "the run has gone back from it before"
            self.tell("spike", f"step {row['step']}: no update was made, as {reason}")

    def row(self, row: Mapping[str, Any]) -> None:
        """Look at a recorded row: its warnings, and its loss and held-out figures for the text of the run's end."""
        self.step = row["step"]
        for text in row.get("warnings", ()):
            self.tell("spike" if "spike/loss" in row else "warning", text)
        for name, value in row.items():
            shown_at_end = (name == "loss" or name.startswith("eval/")) and isinstance(value, float) and math.isfinite(value)
            if shown_at_end and (name in self.figures or len(self.figures) < _FIGURES):
                self.figures[name] = value

    def tell(self, event: str, text: str) -> None:
        """Have an event told, if it is one of `alert.on`; returns at once."""
        if event not in self.settings.on:
            return
        line = {"event": event, "text": shown(text)[:_LONGEST], "step": self.step}
        if not self.process.send(line):
            log.warning(f"alert of {event} not sent: the process that sends alerts is not there")
