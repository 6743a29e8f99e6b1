"""The program that sends a training run's queue to the Hub: a process beside the run, which `beside.py` starts.

It looks at RUN/outbox until the run closes its standard input, or was killed, and then until the queue is empty. Another process that
sends the same queue, such as that of a run that was killed, is waited for.
"""

import os
import time
from pathlib import Path

from plait.commands.actions.publishing import outbox
from plait.commands.actions.publishing.sending import Later, Sender
from plait.engine.monitoring.beside.process import Inbox
from plait.errors import PlaitError, command

NICENESS = 10
_LOOK_EVERY_S = 0.5
_REFUSED_PAUSE_S = 600.0
"""Pause after a refusal, as somebody may mend the token meanwhile."""


class Uploader:
    """Sends the queue of `run` until it has ended. `patience_s`: how long without a success, once it has."""

    def __init__(self, inbox: Inbox, run: Path, patience_s: float) -> None:
        self.inbox, self.run, self.patience_s = inbox, run, patience_s
        self.sender = Sender(run, lambda text, warning: inbox.say(text, warning=warning))
        self._told: str | None = None

    def work(self) -> None:
        """Send what comes, then what is left."""
        while not self.inbox.ended.is_set():
            self._pause(self._send())
        since_s = time.monotonic()
        while outbox.waiting(self.run):
            pause_s = self._send()
            since_s = since_s if pause_s else time.monotonic()
            if self._told is not None or time.monotonic() + pause_s - since_s > self.patience_s:
                count = len(outbox.waiting(self.run))
                waits = f"{count} push{'es' if count > 1 else ''} to the Hub wait{'' if count > 1 else 's'} in {self.run / outbox.FOLDER}"
                self.inbox.say(f"{waits}: `{command('push', self.run)}` sends what is there", warning=True)
                return
            time.sleep(pause_s)

    def _send(self) -> float:
        """Send all that waits; return how long to pause before the next look."""
        try:
            while self.sender.send_next():
                self._told = None
        except Later:
            return self.sender.pause_s
        except (PlaitError, OSError) as error:
            if str(error) != self._told:
                self._told = str(error)
                self.inbox.say(self._told, warning=True)
            return _REFUSED_PAUSE_S
        return _LOOK_EVERY_S if not self.inbox.ended.is_set() else 0.0

    def _pause(self, pause_s: float) -> None:
        """Wait so long, or until the run has ended."""
        self.inbox.ended.wait(pause_s)


def main() -> None:
    """Send the queue of the run that the settings name."""
    inbox = Inbox(orphan_s=None)
    os.nice(NICENESS)
    run = Path(inbox.settings["run"])
    while True:
        with outbox.locked(run) as mine:
            if mine:
                Uploader(inbox, run, inbox.settings["patience_s"]).work()
                return
        if inbox.ended.is_set() and not outbox.waiting(run):
            return
        time.sleep(_LOOK_EVERY_S)


if __name__ == "__main__":
    main()
    os._exit(0)  # what the run no longer reads cannot be flushed
