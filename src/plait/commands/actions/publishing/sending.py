"""Send the queue of a run item by item, again after pauses where the Hub cannot be reached.

What the Hub refuses, such as a token that may not write, is told with its cure, and waits in the queue.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

from plait.commands.actions.publishing import card, hub, outbox, retries
from plait.commands.actions.publishing.outbox import Item
from plait.commands.actions.publishing.retries import Later
from plait.config import hub_errors
from plait.errors import PlaitError, command

Say = Callable[[str, bool], None]
"""Called with a line, and whether it is a warning."""


class Sender:
    """Sends the items of a run's queue, oldest first. `say`: called with what happens."""

    def __init__(self, run: Path, say: Say) -> None:
        self.run, self.say = run, say
        hub.prepare()
        self.failures = 0
        """Failures since the last item that was sent."""
        self.given_up: list[str] = []
        """A line for each item that will never be sent."""

    @property
    def pause_s(self) -> float:
        """How long to wait before the next try."""
        return retries.pause_s(self.failures)

    def send_next(self) -> bool:
        """Send the oldest item; returns whether there was one. One that is damaged is given up.

        Raises Later for what may pass, and PlaitError for what does not.
        """
        item = next(iter(outbox.waiting(self.run)), None)
        if item is None:
            return False
        try:
            commit = _sent(item, self.run)
        except hub.Damaged as error:
            outbox.finish(self.run, item, None)
            self.given_up.append(str(error))
            self.say(str(error), True)
            return True
        except Later as error:
            self.failures += 1
            if self.failures == 1:
                self.say(f"{item.job.title} is not at {item.job.repo} yet: {error}; it is tried again, and waits in {item.folder}", True)
            raise
        self.failures = 0
        with contextlib.suppress(FileNotFoundError):  # it was given up meanwhile
            outbox.finish(self.run, item, commit)
        self.say(f"{item.job.title}: pushed to {hub.address(item.job.repo, commit)}", False)
        return True


def _sent(item: Item, run: Path) -> str:
    """Send an item and return its commit. Raises Later where it may be taken later, and PlaitError where it will not."""
    try:
        card.write(item, run)
        return hub.send(item)
    except PlaitError:
        raise
    except Exception as error:  # the errors of the client's HTTP library change with its version
        reason = hub_errors.not_sent(error, item.job.repo)
        if hub_errors.may_pass(error) or hub_errors.conflicts(error):
            raise Later(reason) from error
        push = command("push", run)
        raise PlaitError(f"{item.job.title} is not pushed to {item.job.repo}: {reason}; then `{push}` sends what waits") from error
