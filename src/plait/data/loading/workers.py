"""The workers that build micro-batches: none, in the consumer's thread (here), threads (`threads.py`) or processes (`processes.py`).

All build the same batches, in the same order. Threads share memory and start at once; most of the work (reading, decoding, resizing)
releases Python's lock. Processes are for encoding that is mostly Python, as that of small pictures is.
"""

from collections.abc import Callable
from typing import Protocol

from plait.data.loading.micro_batch import MicroBatch, MicroBatchBuilder

POLL_S = 0.2
"""Seconds between a waiting consumer's checks whether it should stop."""
STOP_TIMEOUT_S = 2.0
"""Seconds that workers get to finish their samples when the loader closes."""

Stop = Callable[[], bool]
PendingStep = Callable[[Stop], list[MicroBatch]]
"""Called with a function `stop`: waits for a submitted step and returns its micro-batches; raises Interrupted once `stop()` is true."""


class Interrupted(Exception):
    """Raised where a step is waited for, because the function `stop`, or the loader's `interrupted`, has returned True."""


class Workers(Protocol):
    """Builds micro-batches, mostly in the background: `wait_for = submit(step)`; `wait_for(stop)` raises Interrupted if `stop()` holds."""

    lookahead: int
    """Steps that must be submitted ahead to keep every worker busy."""

    def submit(self, step: int) -> PendingStep:
        """Start building step number `step`. Returns `wait_for`, which returns this rank's micro-batches or raises what building raised."""

    def close(self) -> None:
        """Stop every worker; micro-batches of submitted steps that were not waited for are dropped."""


class InlineWorker:
    """Builds a step in the consumer's own thread, when it is waited for: used for 0 workers. `lookahead`: 0, as none is built ahead."""

    lookahead = 0

    def __init__(self, builder: MicroBatchBuilder) -> None:
        self._builder = builder

    def submit(self, step: int) -> PendingStep:
        """Return a function that builds and returns this rank's micro-batches of step number `step`. Its argument, `stop`, is ignored."""
        return lambda stop: [self._builder.build(ids, padding) for ids, padding in self._builder.slices(step)]

    def close(self) -> None:
        """Do nothing: there is nothing to stop."""
