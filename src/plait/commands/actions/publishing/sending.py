"""Send the queue of a run item by item, again after pauses where the Hub cannot be reached.

What the Hub refuses, such as a token that may not write, is told once with its cure, and waits in the queue: that item, all for its
repository, or all, by what the answer says. The others go on. It is tried again after ten minutes, as somebody may mend it meanwhile.
"""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from plait.commands.actions.publishing import card, hub, outbox, passports, retries
from plait.commands.actions.publishing.outbox import Item
from plait.commands.actions.publishing.retries import Later
from plait.config import hub_errors
from plait.data.web import retry_after_s
from plait.errors import PlaitError, command

REFUSED_PAUSE_S = 600.0
"""Pause after a refusal."""
LONGEST_ASKED_S = 3600.0
"""The longest pause that the Hub may ask for."""
Say = Callable[[str, bool], None]
"""Called with a line, and whether it is a warning."""


class _Refused(PlaitError):
    """Raised for an item that the Hub will not take. `part`: "item", "repo" or "all", is refused with it; `reason`: of all alike."""

    def __init__(self, line: str, part: str, reason: str) -> None:
        super().__init__(line)
        self.part, self.reason = part, reason


class Sender:
    """Sends the items of a run's queue, oldest first. `say`: called with what happens."""

    def __init__(self, run: Path, say: Say) -> None:
        self.run, self.say = run, say
        hub.prepare()
        self.failures = 0
        """Failures since the last item that was sent."""
        self.given_up: list[str] = []
        """A line for each item that will never be sent."""
        self.refusals: dict[str, str] = {}
        """A line for each reason why something is refused at present."""
        self._asked_s = 0.0  # the pause that the last failure asked for
        self._held: dict[tuple[str, str], tuple[float, str]] = {}
        """(when it is tried again, the reason) of what is refused: ("item", folder), ("repo", name) or ("all", "")."""

    @property
    def pause_s(self) -> float:
        """How long to wait before the next try."""
        return max(retries.pause_s(self.failures), self._asked_s)

    def send_next(self) -> bool:
        """Send the oldest item that is not refused; returns whether there was one. One that is damaged is given up.

        Raises Later for what may pass.
        """
        for line in outbox.damaged(self.run):
            self.refusals.setdefault(line, line)
        for item in outbox.waiting(self.run):
            if self._is_held(item):
                continue
            try:
                self._send(item)
            except _Refused as error:
                self._hold(item, error)
                continue
            return True
        return False

    def retry(self) -> None:
        """Have what is refused tried again without a further pause."""
        self._held.clear()

    def _send(self, item: Item) -> None:
        branches = outbox.branches(self.run, item)
        try:
            repo, commit = _sent(item, self.run, branches)
        except passports.Damaged as error:
            outbox.finish(self.run, item, None)
            self.given_up.append(str(error))
            self.say(str(error), True)
            return
        except Later as error:
            self.failures += 1
            self._asked_s = error.asked_s
            if self.failures == 1:
                self.say(f"{item.job.title} is not at {item.job.repo} yet: {error}; it is tried again, and waits in {item.folder}", True)
            raise
        self.failures, self._asked_s = 0, 0.0
        for held in _parts(item):
            if held in self._held:
                self.refusals.pop(self._held.pop(held)[1], None)
        with contextlib.suppress(FileNotFoundError):  # it was given up meanwhile
            outbox.finish(self.run, item, commit)
        aside = "" if "main" in branches else f", branch {branches[0]}: main has a newer push"
        self.say(f"{item.job.title}: pushed to {hub.address(repo, commit)}{aside}", False)

    def _is_held(self, item: Item) -> bool:
        return any(part in self._held and time.monotonic() < self._held[part][0] for part in _parts(item))

    def _hold(self, item: Item, error: _Refused) -> None:
        """Leave what an answer refuses in the queue for a time."""
        if not item.folder.is_dir():  # it was given up meanwhile
            return
        part = next(part for part in _parts(item) if part[0] == error.part)
        self._held[part] = time.monotonic() + REFUSED_PAUSE_S, error.reason
        self.refusals.setdefault(error.reason, str(error))


def _parts(item: Item) -> tuple[tuple[str, str], ...]:
    return ("item", item.folder.name), ("repo", item.job.repo), ("all", "")


def _sent(item: Item, run: Path, branches: list[str]) -> tuple[str, str]:
    """Send an item; return its repository and commit. Raises Later where it may be taken later, and _Refused where it will not."""
    try:
        passports.write(item, run)
        card.write(item, run)
        return hub.send(item, branches)
    except passports.Damaged:
        raise
    except PlaitError as error:
        raise _Refused(str(error), "repo", str(error)) from error
    except Exception as error:  # the errors of the client's HTTP library change with its version
        reason = hub_errors.not_sent(error, item.job.repo)
        if hub_errors.may_pass(error) or hub_errors.conflicts(error):
            raise Later(reason, min(LONGEST_ASKED_S, retry_after_s(hub_errors.retry_after(error)))) from error
        line = f"{item.job.title} is not pushed to {item.job.repo}: {reason}; then `{command('push', run)}` sends what waits"
        raise _Refused(line, hub_errors.refused_part(error), reason) from error
