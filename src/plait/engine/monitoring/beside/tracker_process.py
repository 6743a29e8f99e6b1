"""The program that sends a run's rows to a tracking service: the process that `ServiceMirror` (trackers.py) starts.

It follows `metrics.jsonl` until the run closes its standard input. Any failure becomes one line of the run's log, and ends it.
"""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from plait.engine.monitoring.beside import shown
from plait.engine.monitoring.beside.process import Inbox
from plait.engine.monitoring.beside.shown import Table

_LOOK_EVERY_S = 0.5
_NOT_FINITE = ("nan", "inf", "-inf")  # as metrics.jsonl writes them


class Session(Protocol):
    """A run at a tracking service: `Session(start)` of the service's own file in this package opens or continues it."""

    where: str
    """A line that says where the run is seen."""

    def row(self, step: int, numbers: Mapping[str, float]) -> None:
        """Send the numbers of a row."""

    def pictures(self, step: int, pictures: Mapping[str, Path]) -> None:
        """Send picture files by name."""

    def table(self, step: int, name: str, table: Table) -> None:
        """Send a table, such as the answers of a bench."""

    def finish(self) -> None:
        """Wait until everything is sent."""


class Lines:
    """The rows that a growing JSON Lines file gains after its byte `start`; it may not be there yet."""

    def __init__(self, path: Path, start: int) -> None:
        self.path, self.position = path, start

    def new(self) -> list[dict[str, Any]]:
        """Return the rows of whole lines that have come since the last call."""
        if not self.path.is_file():
            return []
        with self.path.open("rb") as file:
            file.seek(self.position)
            whole, newline, _ = file.read().rpartition(b"\n")
        self.position += len(whole) + len(newline)
        return [json.loads(line) for line in whole.split(b"\n") if line]


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a row that a service plots: without `step` and strings, but with "nan" and "inf" as floats."""
    values = {name: float(value) if value in _NOT_FINITE else value for name, value in row.items() if name != "step"}
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def send(inbox: Inbox, session: Session) -> None:
    """Send the rows of `metrics.jsonl` and what evaluations showed as they come, until the run has ended and the last is sent."""
    run, begin = Path(inbox.settings["run"]), inbox.settings["from"]
    metrics, answers, pictures = (Lines(run / name, begin[name]) for name in ("metrics.jsonl", shown.ANSWERS, shown.PICTURES))
    while True:
        last = inbox.ended.is_set()
        for row in metrics.new():
            session.row(row["step"], numbers(row))
        for row in answers.new():
            session.table(row["step"], shown.answers_of(row["bench"]), shown.table(row["answers"]))
        for row in pictures.new():
            if there := {name: run / path for name, path in row["pictures"].items() if (run / path).is_file()}:
                session.pictures(row["step"], there)
        if last:
            return
        inbox.ended.wait(_LOOK_EVERY_S)


def main() -> None:
    """Open a session at the service that the settings name, and send to it what the run writes."""
    inbox = Inbox()
    service, title = inbox.settings["service"], inbox.settings["title"]
    try:
        session: Session = importlib.import_module(f"plait.engine.monitoring.beside.{service}_service").Session(inbox.settings["start"])
        inbox.say(session.where, warning=False)
        send(inbox, session)
        session.finish()
    except Exception as error:  # noqa: BLE001  a mirror must not stop a run
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason += f": pip install 'plait[{service}]'" if isinstance(error, ModuleNotFoundError) else ""
        inbox.give_up(f"{title} is off for this run: {reason}; metrics.jsonl has every row")


if __name__ == "__main__":
    main()
