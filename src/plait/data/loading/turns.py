"""Whether threads encode one after another: where a sample costs so little that they would mostly wait for Python's lock.

Every read and decode lets go of that lock; another thread takes it, and gives it back no sooner than it reads or decodes itself. Two
threads encode photos of 32 x 32 slower than one. Reading that waits for a disk is worth sharing out, however little it computes.
"""

import contextlib
import threading
import time
from collections.abc import Iterator

_CHEAP_S = 100e-6
"""Processor time of a sample below which threads take turns."""
_WAITING = 2.0
"""Time on the clock over processor time, of a thread that has its turn, above which it waits for a disk: others are let in meanwhile."""
_TRY_AGAIN = 64
"""Parts of micro-batches encoded side by side, after one that waited, before the next is given a turn alone."""


class Turns:
    """The turns of one loader's threads. `allowed`: whether they may ever be taken; not where a read may wait for a network."""

    def __init__(self, *, allowed: bool) -> None:
        self._lock, self._allowed = threading.Lock(), allowed
        self.taken = False
        """Whether threads take turns now."""
        self._side_by_side = 0  # parts left before turns are tried again

    @contextlib.contextmanager
    def part(self, samples: int) -> Iterator[None]:
        """Context for encoding `samples` samples, of one micro-batch: alone where turns are taken. Their cost decides about the next."""
        if not self._allowed:
            yield
            return
        taken = self.taken
        with self._lock if taken else contextlib.nullcontext():
            clock, computed = time.perf_counter(), time.thread_time()
            yield
            clock, computed = time.perf_counter() - clock, time.thread_time() - computed
        if taken and clock > _WAITING * computed:
            self._side_by_side = _TRY_AGAIN
        elif self._side_by_side:
            self._side_by_side -= 1
        self.taken = self._side_by_side == 0 and computed < _CHEAP_S * samples
