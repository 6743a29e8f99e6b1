"""SIGTERM and SIGUSR1 ask for a clean stop: they set a flag that the loop, the data wait and the evaluation look at.

SLURM, Kubernetes and spot machines send them some time before the kill. A second signal of the same kind changes nothing.
"""

import signal
from types import FrameType

from plait.errors import PlaitError

ASKING = (signal.SIGTERM, signal.SIGUSR1)


class Paused(PlaitError):
    """The run stopped because it was asked to, with its state saved. Exit code 75: try again, the same command continues."""

    exit_code = 75


class Signals:
    """While entered, the named signals are noted instead of ending the process. Only the main thread can enter it."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Signals":
        self._before = {number: signal.signal(number, self._note) for number in ASKING}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name

    def asked(self) -> bool:
        """Whether this process was asked to stop."""
        return self.received is not None
