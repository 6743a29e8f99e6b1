"""Whether threads encode one after another: where a sample costs so little that they would mostly wait for Python's lock.

Every read and decode lets go of that lock; another thread takes it, and gives it back no sooner than it reads or decodes itself. Two
threads encode photos of 32 x 32 slower than one. Reading that waits for a disk is worth sharing out, however little it computes.
"""

import contextlib
import resource
import threading
import time
from collections.abc import Iterator

_CHEAP_S = 100e-6
"""Processor time of a sample below which threads take turns."""
_TRY_AGAIN = 64
"""Parts of micro-batches encoded side by side, after one that read from a disk, before the next is given a turn alone."""
_WHOSE = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)  # of a thread, where the system counts so


class Turns:
    """The turns of one loader's threads. `allowed`: whether they may ever be taken; not where a read may wait for a network."""

    def __init__(self, *, allowed: bool) -> None:
        self._lock, self._allowed = threading.Lock(), allowed
        self.taken = False
        """Whether threads take turns now."""
        self._side_by_side = 0  # parts left before turns are tried again

    @contextlib.contextmanager
    def part(self, samples: int) -> Iterator[bool]:
        """Context for encoding `samples` samples, of one micro-batch: alone (True) where turns are taken, which their cost decides."""
        if not self._allowed:
            yield False
            return
        taken = self.taken
        with self._lock if taken else contextlib.nullcontext():
            read, began_s = _disk_reads(), time.thread_time()
            yield taken
            computed_s = time.thread_time() - began_s
        if _disk_reads() > read:
            self._side_by_side = _TRY_AGAIN
        elif self._side_by_side:
            self._side_by_side -= 1
        self.taken = self._side_by_side == 0 and computed_s < _CHEAP_S * samples


def _disk_reads() -> int:
    """Return how often this thread has waited for a disk or a file server; what lies in the system's memory is not counted."""
    return resource.getrusage(_WHOSE).ru_inblock
