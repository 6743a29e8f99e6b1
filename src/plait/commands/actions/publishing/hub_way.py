"""The way of a run's queue to the Hub, for the process beside a run (uploader.py)."""

from pathlib import Path

from plait.commands.actions.publishing import outbox
from plait.commands.actions.publishing.sending import Sender
from plait.engine.monitoring.beside.process import Inbox
from plait.errors import command


class Way:
    """The way of a run's queue to the Hub."""

    def __init__(self, run: Path, inbox: Inbox) -> None:
        self.run = run
        self.sender = Sender(run, lambda text, warning: inbox.say(text, warning=warning))

    @property
    def pause_s(self) -> float:
        """How long to wait after a failure."""
        return self.sender.pause_s

    def send(self) -> bool:
        """Send the oldest item of the queue."""
        return self.sender.send_next()

    def left(self) -> str | None:
        """Return how many pushes wait."""
        count = len(outbox.waiting(self.run))
        waits = f"{count} push{'es' if count > 1 else ''} to the Hub wait{'' if count > 1 else 's'} in {self.run / outbox.FOLDER}"
        return f"{waits}: `{command('push', self.run)}` sends what is there" if count else None
