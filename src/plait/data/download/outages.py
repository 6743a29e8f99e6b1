"""Tell failures of a dead network from those of dead hosts, by when the requests that were answered had begun.

An answer over a new connection says that one could be made when its request began, and nothing of later ones: a server that stops answers
what it was asked before. So a failure is judged once a request that began after it was answered, and by the longest span around it in which
no answered request began.
"""

import time
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

Row = TypeVar("Row")

_SILENT_S = 1.0  # without an answered request, after which failures are those of the network
_SILENT_FAILURES = 16  # without an answered request between them: they are tried once more, however short that was
_ATTEMPTS_MOST = 3  # at a row that failed in silence
_REMEMBERED = 64  # silent spans


@dataclass(frozen=True)
class Failure(Generic[Row]):
    """A row that was not answered, whatever the caller calls one. `began_s` and `failed_s`: of its last attempt, on time.monotonic.

    `slow`: it waited for an answer all that time, and would have had one, had the network been there for half of it. `attempt`: from 1.
    """

    row: Row
    began_s: float
    failed_s: float
    slow: bool
    attempt: int = 1


class Outages(Generic[Row]):
    """Failures that are not judged yet, in `failures`, and the spans in which no answered request began."""

    def __init__(self) -> None:
        self.failures: list[Failure[Row]] = []
        self._last_s = time.monotonic()  # when the last request began that was answered, or the download
        self._silent: deque[tuple[float, float]] = deque(maxlen=_REMEMBERED)

    def quiet_s(self) -> float:
        """Return the seconds since a request began that was answered."""
        return time.monotonic() - self._last_s

    def waited_s(self) -> float:
        """Return the seconds that the first failure waits to be judged; 0 without any."""
        return time.monotonic() - self.failures[0].failed_s if self.failures else 0.0

    def answered(self, began_s: float) -> tuple[list[Failure[Row]], list[Failure[Row]]]:
        """Note an answer to a request which began then. Returns the failures before it: those of dead hosts, and those to try again."""
        if began_s <= self._last_s:
            return [], []
        if began_s - self._last_s > _SILENT_S:
            self._silent.append((self._last_s, began_s))
        self._last_s = began_s
        before = [failure for failure in self.failures if failure.failed_s <= began_s]
        if not before:
            return [], []
        self.failures = [failure for failure in self.failures if failure.failed_s > began_s]
        many = len(before) >= _SILENT_FAILURES
        dead: list[Failure[Row]] = []
        again: list[Failure[Row]] = []
        for failure in before:
            (again if self._of_network(failure, many=many) else dead).append(failure)
        return dead, again

    def _of_network(self, failure: Failure[Row], *, many: bool) -> bool:
        """Return whether a failure may be one of the network, and is worth another attempt. `many`: it is one of many in a row."""
        if failure.attempt >= _ATTEMPTS_MOST:
            return False
        most_s = max(_SILENT_S, (failure.failed_s - failure.began_s) / 2) if failure.slow else _SILENT_S
        silent = any(began < failure.failed_s and ended > failure.began_s and ended - began > most_s for began, ended in self._silent)
        return silent or (many and not failure.slow and failure.attempt == 1)

    def take_all(self) -> list[Failure[Row]]:
        """Return the failures that are not judged, and forget them."""
        failures, self.failures = self.failures, []
        return failures
