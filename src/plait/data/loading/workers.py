"""Who builds micro-batches: the consumer itself (here), threads (`threads.py`) or processes (`processes.py`).

All give the same batches, in the same order. Threads share one memory and start at once; most of the work (reading, decoding, resizing)
releases Python's lock. Processes are for encoding that is mostly Python, as that of small pictures is.
"""

from collections.abc import Callable
from typing import Protocol

from plait.data.loading.micro_batch import MicroBatch, MicroBatchBuilder

POLL_S = 0.2
"""How often a waiting consumer checks whether it should stop."""
STOP_TIMEOUT_S = 2.0
"""For the workers to finish their samples when the loader closes."""

Stop = Callable[[], bool]
PendingStep = Callable[[Stop], list[MicroBatch]]
"""Waits for a step that was submitted and returns its micro-batches; raises Interrupted when `stop()` becomes true."""


class Interrupted(Exception):
    """The consumer's `interrupted` became true while it waited, so the wait for a step was given up."""


class Workers(Protocol):
    """What builds the micro-batches of steps, mostly in the background."""

    lookahead: int  # steps that must be submitted ahead to keep every worker busy

    def submit(self, step: int) -> PendingStep:
        """Start building this rank's micro-batches of `step`; calling the result waits for them and returns them."""

    def close(self) -> None:
        """Stop every worker; steps that were submitted are lost."""


class InlineWorker:
    """No workers: a step is built in the consumer's thread when it is waited for, which costs no hand-over."""

    lookahead = 0

    def __init__(self, builder: MicroBatchBuilder) -> None:
        self._builder = builder

    def submit(self, step: int) -> PendingStep:
        """Return a function that builds the step's micro-batches when it is called."""
        return lambda stop: [self._builder.build(ids, padding) for ids, padding in self._builder.slices(step)]

    def close(self) -> None:
        """Do nothing: there is nothing to stop."""
