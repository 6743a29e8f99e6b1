"""The program that sends what a training run gives out: a process beside the run, which `beside.py` starts.

It sends the queue in RUN/outbox to the Hub, and keeps the mirror of checkpoints, each in a thread, until the run closes its standard input
or was killed, and then until all is sent. Another process that does so, such as that of a run that was killed, is waited for.
"""

import importlib
import os
import threading
import time
from pathlib import Path
from typing import Protocol

from plait.commands.actions.publishing import outbox
from plait.commands.actions.publishing.retries import Later
from plait.engine.monitoring.beside.process import Inbox
from plait.errors import PlaitError

NICENESS = 10
_LOOK_EVERY_S, _SOON_S = 0.5, 2.0
"""Seconds between looks at what there is to send, and after the run's end until it is said what is waited for."""
_REFUSED_PAUSE_S = 600.0
"""Pause after a refusal, as somebody may mend the token meanwhile."""
_MIRROR_LOCK = "mirror.lock"


class Way(Protocol):
    """A place that a run is sent to: `Way(run, inbox)` of hub_way.py or mirror_way.py, of which only what is needed is imported."""

    @property
    def pause_s(self) -> float:
        """How long to wait after a failure."""

    def send(self) -> bool:
        """Send the next piece; returns whether there was one. Raises Later for what may pass, and PlaitError for what does not."""

    @property
    def moved_s(self) -> float | None:
        """When bytes were last taken, by the monotonic clock; 0: never; None: not known, and each call of `send` ends by itself."""

    def waits(self, limit_s: float) -> str | None:
        """Return a line on what is waited for, for so long without success; None where the run has told it."""

    def left(self) -> str | None:
        """Return what was not sent, as a line that says what to do, None for nothing."""


class Carrier:
    """Sends on one way until the run has ended and all is sent.

    `patience_s`: how long without a success, once it has ended; `untaken_s`: the same where there was none since the start.
    """

    def __init__(self, inbox: Inbox, way: Way, patience_s: float, untaken_s: float) -> None:
        self.inbox, self.way, self.patience_s, self.untaken_s = inbox, way, patience_s, untaken_s
        self._told: str | None = None
        self._sent_s = 0.0  # when something was last sent

    def work(self) -> None:
        """Send what comes, then what is left. A call that a dead network does not answer is left alone at the end."""
        sending = threading.Thread(target=self._work, daemon=True)
        sending.start()
        self.inbox.ended.wait()
        ended_s, told = time.monotonic(), False
        while sending.is_alive() and not (self.way.moved_s is not None and self._left_s(ended_s) < 0):
            sending.join(_LOOK_EVERY_S)
            if not told and time.monotonic() - ended_s > _SOON_S and sending.is_alive():
                told = True
                if line := self.way.waits(self._limit_s):
                    self.inbox.say(line, warning=False)
        if line := self.way.left():
            self.inbox.say(line, warning=True)

    def _work(self) -> None:
        while not self.inbox.ended.is_set():
            self.inbox.ended.wait(self._send())
        ended_s = time.monotonic()
        while pause_s := self._send():
            if self._told is not None or self._left_s(ended_s) < pause_s:
                break
            time.sleep(pause_s)

    @property
    def _limit_s(self) -> float:
        return self.patience_s if self._sent_s else self.untaken_s

    def _left_s(self, ended_s: float) -> float:
        """Return the seconds that are left to send something, of a run that ended then."""
        return max(ended_s, self._sent_s, self.way.moved_s or 0.0) + self._limit_s - time.monotonic()

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


def carry(inbox: Inbox, kind: str, lock: str) -> None:
    """Send on the way `kind`, hub or mirror, when no other process does."""
    way = importlib.import_module(f"plait.commands.actions.publishing.{kind}_way")
    run = Path(inbox.settings["run"])
    while True:
        with outbox.locked(run, lock) as mine:
            if mine:
                try:
                    Carrier(inbox, way.Way(run, inbox), *(inbox.settings[name] for name in ("patience_s", "untaken_s"))).work()
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
    ways = [threading.Thread(target=carry, args=(inbox, "hub", "lock"))] if inbox.settings["hub"] else []
    if inbox.settings["mirror"] is not None:
        ways.append(threading.Thread(target=carry, args=(inbox, "mirror", _MIRROR_LOCK)))
    for way in ways:
        way.start()
    for way in ways:
        way.join()


if __name__ == "__main__":
    main()
    os._exit(0)  # what the run no longer reads cannot be flushed
