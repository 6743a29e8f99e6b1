"""Requests to stop: SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and Ctrl-C (SIGINT) set a flag here, and the ranks agree on it here.

The data wait, the loop and the evaluation look at it. SLURM, Kubernetes and spot machines send the signal some time before the kill, a
terminal that closes sends SIGHUP: a second one changes nothing. A second Ctrl-C ends the process at once, as does any signal in a start,
before anything has looked, when nothing is trained yet and what is waited for may never come; what is saved is always whole.
"""

import contextlib
import os
import signal
from types import FrameType

from plait.errors import PlaitError

ASKING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGINT)  # for the run to stop
INTERRUPTED = 130
"""The exit code of a process that Ctrl-C ended."""
EARLY = "before training began; the same command starts again"
"""The end of the line that tells of a stop in a start, before the first step."""


class Paused(PlaitError):
    """The run stopped because it was asked to, with its state saved. Exit code 75: try again, the same command continues."""

    exit_code = 75


class Signals:
    """Context manager: inside it, SIGTERM, SIGINT and others (ASKING) set a flag and end nothing. Only the main thread can enter it.

    A process that was started to ignore SIGHUP, by `nohup`, goes on ignoring it.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        """Name of the signal that this process got."""
        self.agreed = False
        """Whether all ranks know that one of them is to stop; the same on every rank at the same moment of the run."""
        self._interrupted, self._looked_at = False, False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Signals":
        ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        self._before = {number: signal.signal(number, self._note) for number in ASKING if not (ignored and number == signal.SIGHUP)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        again = "ended; the same command continues from the last checkpoint"
        if not self._looked_at or (number == signal.SIGINT and self._interrupted):
            _say(again if self._looked_at else f"stopped by {self.received} {EARLY}")
            os._exit(INTERRUPTED if number == signal.SIGINT else Paused.exit_code)
        if number == signal.SIGINT:
            self._interrupted = True
            _say("saving and stopping; Ctrl-C again ends at once")

    def requested(self) -> bool:
        """Return whether this process got a signal to stop; other ranks may not know of it yet (see `agree`)."""
        self._looked_at = True
        return self.received is not None

    def agree(self, requested: bool) -> bool:
        """Record `requested`, whether any rank was asked to stop (the same on all ranks). Returns whether the run stops."""
        self.agreed = self.agreed or requested
        return self.agreed


def _say(text: str) -> None:
    """Write a line to the error stream as a signal handler may, whatever is being written at the moment. Rank 0 alone."""
    if os.environ.get("RANK", "0") == "0":
        with contextlib.suppress(OSError):
            os.write(2, f"\nplait: {text}\n".encode())
