"""The way of a run's queue to the Hub, for the process beside a run (uploader.py)."""

from pathlib import Path

from plait.commands.actions.publishing import outbox
from plait.commands.actions.publishing.sending import Sender
from plait.engine.monitoring.beside.process import Inbox
from plait.errors import command


class Way:
    """The way of a run's queue to the Hub."""

    def __init__(self, run: Path, inbox: Inbox) -> None:
        self.run, self.inbox = run, inbox
        self.sender = Sender(run, lambda text, warning: inbox.say(text, warning=warning))
        self._told: set[str] = set()
        self._last = False

    @property
    def pause_s(self) -> float:
        """How long to wait after a failure."""
        return self.sender.pause_s

    def send(self) -> bool:
        """Send the oldest item that is not refused. A refusal is told once, and what is refused is tried again when the run ends."""
        if self.inbox.ended.is_set() and not self._last:
            self._last = True
            self.sender.retry()
        sent = self.sender.send_next()
        refusals = self.sender.refusals
        for reason in [reason for reason in refusals if reason not in self._told]:
            self.inbox.say(refusals[reason], warning=True)
        self._told = set(refusals)
        return sent

    @property
    def moved_s(self) -> None:
        """None: the Hub's client does not tell, and has limits of time for each request."""

    def waits(self, limit_s: float) -> None:
        """Return None, as the run has told it (beside.py)."""

    def left(self) -> str | None:
        """Return how many pushes wait."""
        count = len(outbox.waiting(self.run)) + len(outbox.damaged(self.run))
        waits = f"{count} push{'es' if count > 1 else ''} to the Hub wait{'' if count > 1 else 's'} in {self.run / outbox.FOLDER}"
        return f"{waits}: `{command('push', self.run)}` sends what is there" if count else None
