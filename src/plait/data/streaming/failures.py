"""Remember for a while which shards could not be read: each of a shard's samples would wait for all attempts again."""

import time
from collections.abc import Callable
from typing import TypeVar

from plait.data.streaming.shard_cache import Abandoned
from plait.errors import PlaitError

T = TypeVar("T")

_AGAIN_S = 300.0  # until a shard that could not be read is tried again


class WrongCount(PlaitError):
    """Raised for a shard with another number of samples than the order was made of: every later sample would be another."""

    of_one_sample = False


class RecentFailures:
    """The shards, by number, that could not be read a short while ago, in this process."""

    def __init__(self) -> None:
        self._failed: dict[int, tuple[float, str]] = {}

    def tried(self, number: int, action: Callable[[], T]) -> T:
        """Return `action()`, which needs shard `number`. Raises PlaitError at once where that failed a short while ago."""
        failed = self._failed.get(number)
        if failed is not None and time.monotonic() - failed[0] < _AGAIN_S:
            raise PlaitError(failed[1])
        try:
            result = action()
        except Abandoned:
            raise
        except PlaitError as error:
            if error.of_one_sample:
                self._failed[number] = (time.monotonic(), str(error))
            raise
        self._failed.pop(number, None)
        return result
