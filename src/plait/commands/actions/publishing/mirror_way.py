"""The way of a run's checkpoints to its mirror, for the process beside a run (uploader.py)."""

import time
from pathlib import Path

from plait.commands.actions.publishing import mirror, retries
from plait.commands.actions.publishing.mirror import Mirror, Store
from plait.commands.actions.publishing.retries import Later
from plait.data import remote
from plait.engine.monitoring.beside.process import Inbox
from plait.errors import PlaitError, command


class Way:
    """The way of a run's checkpoints to its mirror. An address that fails is tried again."""

    def __init__(self, run: Path, inbox: Inbox) -> None:
        self.run, self.inbox, self.failures = run, inbox, 0
        self._mirror: Mirror | None = None
        """None until its store has answered once."""
        self._behind, self._moved_s = True, 0.0

    @property
    def pause_s(self) -> float:
        """How long to wait after a failure."""
        return retries.pause_s(self.failures)

    def send(self) -> bool:
        """Copy the newest checkpoint that is not there. One that the run has pruned meanwhile is no failure.

        Raises PlaitError where the address refuses to be written or is another run's, and Later for other failures.
        """
        self._behind = True
        try:
            if self._mirror is None:
                self._mirror = Mirror(self.run, self.inbox.settings["mirror"], self.inbox.settings["keep"], self._moved)
            line = self._mirror.update()
        except PlaitError:
            raise
        except Exception as error:  # of any library below fsspec
            if not remote.may_pass(error):
                raise PlaitError(mirror.unwritable(self._shown, error)) from error
            self.failures += 1
            if self.failures == 2:  # the first may be of a checkpoint that was pruned
                self.inbox.say(f"the mirror {self._shown} is behind: {mirror.reason(error)}; it is tried again", warning=True)
            raise Later(mirror.reason(error)) from error
        self.failures = 0
        self._behind = line is not None
        if line is not None:
            self.inbox.say(line, warning=False)
        return line is not None

    @property
    def _shown(self) -> str:
        """The address, for people."""
        return Store.shown_of(self.inbox.settings["mirror"])

    @property
    def moved_s(self) -> float:
        """When bytes were last taken or an answer came, by the monotonic clock; 0: never."""
        return self._moved_s

    def _moved(self) -> None:
        self._moved_s = time.monotonic()

    def waits(self, limit_s: float) -> str:
        """Return a line on the mirror, for so long without an answer."""
        again = command("train", self.run)
        return f"waiting for the mirror {self._shown}, {limit_s:.0f} s at most without an answer; Ctrl-C leaves the rest to `{again}`"

    def left(self) -> str | None:
        """Return that checkpoints are not there."""
        again = command("train", self.run)
        return f"{self._shown} does not have all checkpoints: `{again}` copies what is not there" if self._behind else None
