"""The program that sends what a training run gives out: a process beside the run, which `beside.py` starts.

It sends the queue in RUN/outbox to the Hub, and keeps the mirror of checkpoints, each in a thread, until the run closes its standard input
or was killed, and then until all is sent. Another process that does so, such as that of a run that was killed, is waited for.
"""

import os
import threading
import time
from pathlib import Path
from typing import Protocol

from plait.commands.actions.publishing import mirror, outbox
from plait.commands.actions.publishing.mirror import Mirror
from plait.commands.actions.publishing.sending import FIRST_PAUSE_S, LONGEST_PAUSE_S, Later, Sender
from plait.engine.monitoring.beside.process import Inbox
from plait.errors import PlaitError, command

NICENESS = 10
_LOOK_EVERY_S = 0.5
_REFUSED_PAUSE_S = 600.0
"""Pause after a refusal, as somebody may mend the token meanwhile."""
_MIRROR_LOCK = "mirror.lock"


class Way(Protocol):
    """A place that a run is sent to."""

    @property
    def pause_s(self) -> float:
        """How long to wait after a failure."""

    def send(self) -> bool:
        """Send the next piece; returns whether there was one. Raises Later for what may pass, and PlaitError for what does not."""

    def left(self) -> str | None:
        """Return what was not sent, as a line that says what to do, None for nothing."""


class HubWay:
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


class MirrorWay:
    """The way of a run's checkpoints to its mirror. An address that fails is tried again."""

    def __init__(self, run: Path, inbox: Inbox) -> None:
        self.run, self.inbox, self.failures = run, inbox, 0
        self.mirror = Mirror(run, inbox.settings["mirror"], inbox.settings["keep"])
        self._behind = True

    @property
    def pause_s(self) -> float:
        """How long to wait after a failure."""
        return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (self.failures - 1)) if self.failures else 0.0

    def send(self) -> bool:
        """Copy the newest checkpoint that is not there. One that the run has pruned meanwhile is no failure."""
        self._behind = True
        try:
            line = self.mirror.update()
        except PlaitError:
            raise
        except Exception as error:  # of any library below fsspec
            self.failures += 1
            if self.failures == 2:  # the first may be of a checkpoint that was pruned
                where = self.mirror.store.shown()
                self.inbox.say(f"the mirror {where} is behind: {mirror.reason(error)}; it is tried again", warning=True)
            raise Later(mirror.reason(error)) from error
        self.failures = 0
        self._behind = line is not None
        if line is not None:
            self.inbox.say(line, warning=False)
        return line is not None

    def left(self) -> str | None:
        """Return that checkpoints are not there."""
        again = command("train", self.run)
        return f"{self.mirror.store.shown()} does not have all checkpoints: `{again}` copies what is not there" if self._behind else None


class Carrier:
    """Sends on one way until the run has ended and all is sent. `patience_s`: how long without a success, once it has ended."""

    def __init__(self, inbox: Inbox, way: Way, patience_s: float) -> None:
        self.inbox, self.way, self.patience_s = inbox, way, patience_s
        self._told: str | None = None
        self._sent_s = 0.0  # when something was last sent

    def work(self) -> None:
        """Send what comes, then what is left."""
        while not self.inbox.ended.is_set():
            self.inbox.ended.wait(self._send())
        ended_s = time.monotonic()
        while pause_s := self._send():
            if self._told is not None or time.monotonic() + pause_s - max(ended_s, self._sent_s) > self.patience_s:
                if line := self.way.left():
                    self.inbox.say(line, warning=True)
                return
            time.sleep(pause_s)

    def _send(self) -> float:
        """Send all that there is; return how long to pause before the next look, 0 where the run has ended and all is sent."""
        try:
            while self.way.send():
                self._told, self._sent_s = None, time.monotonic()
        except Later:
            return self.way.pause_s
        except (PlaitError, OSError) as error:
            if str(error) != self._told:
                self._told = str(error)
                self.inbox.say(self._told, warning=True)
            return _REFUSED_PAUSE_S
        return 0.0 if self.inbox.ended.is_set() else _LOOK_EVERY_S


def carry(inbox: Inbox, kind: type[HubWay] | type[MirrorWay], lock: str) -> None:
    """Send on a way, when no other process does."""
    run = Path(inbox.settings["run"])
    while True:
        with outbox.locked(run, lock) as mine:
            if mine:
                try:
                    Carrier(inbox, kind(run, inbox), inbox.settings["patience_s"]).work()
                except PlaitError as error:
                    inbox.say(str(error), warning=True)
                return
        if inbox.ended.is_set() and not outbox.waiting(run):
            return
        time.sleep(_LOOK_EVERY_S)


def main() -> None:
    """Send what the settings name of their run: its queue, and its mirror where they have an address."""
    inbox = Inbox(orphan_s=None)
    os.nice(NICENESS)
    ways = [threading.Thread(target=carry, args=(inbox, HubWay, "lock"))] if inbox.settings["hub"] else []
    if inbox.settings["mirror"] is not None:
        ways.append(threading.Thread(target=carry, args=(inbox, MirrorWay, _MIRROR_LOCK)))
    for way in ways:
        way.start()
    for way in ways:
        way.join()


if __name__ == "__main__":
    main()
    os._exit(0)  # what the run no longer reads cannot be flushed
