"""Copy micro-batches to page-locked memory in a thread of its own, so that a GPU can take them while it computes. Only where there is one.

It waits for the workers (workers.py) in the order of the steps; the consumer gets what they built, or raise.
"""

import threading
from collections.abc import Sequence
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any

import torch

from plait.data.loading.micro_batch import MicroBatch
from plait.data.loading.workers import POLL_S, STOP_TIMEOUT_S, Interrupted, PendingStep, Stop, Workers


@dataclass(frozen=True)
class PinnedStep:
    """A submitted step: called with `stop`, as a PendingStep, it waits for the step's micro-batches in page-locked memory."""

    done: "Future[list[MicroBatch]]"

    def __call__(self, stop: Stop) -> list[MicroBatch]:
        """Return the micro-batches. Raises Interrupted once `stop()` is true, and what building or copying them raised."""
        while not futures.wait([self.done], timeout=POLL_S).done:
            if stop():
                raise Interrupted
        return self.done.result()

    def first(self) -> MicroBatch | None:
        """Return the first micro-batch if the step is built, without waiting; None if it is not, has none, or could not be."""
        built = self.done.done() and self.done.exception() is None
        return next(iter(self.done.result()), None) if built else None


class PinningWorkers:
    """Workers whose micro-batches one thread copies to page-locked memory, in the order of their steps."""

    def __init__(self, workers: Workers) -> None:
        self._workers, self.lookahead = workers, workers.lookahead
        self._queue: SimpleQueue[tuple[PendingStep, Future[list[MicroBatch]]] | None] = SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="plait-pin", daemon=True)
        self._thread.start()

    def submit(self, step: int) -> PinnedStep:
        """Submit step number `step` to the workers, and what they build to the thread. Raises what they raise."""
        done: Future[list[MicroBatch]] = Future()
        self._queue.put((self._workers.submit(step), done))
        return PinnedStep(done)

    def close(self) -> None:
        """Stop the thread and the workers; a thread that still waits after 2 s is not waited for."""
        self._closing.set()
        self._queue.put(None)
        self._thread.join(STOP_TIMEOUT_S)
        self._workers.close()

    def _run(self) -> None:
        while (submitted := self._queue.get()) is not None:
            wait_for, done = submitted
            try:
                done.set_result([replace(micro, batch=pinned(micro.batch)) for micro in wait_for(self._closing.is_set)])
            except BaseException as error:  # noqa: BLE001  # given to the consumer, which raises it
                done.set_exception(error)


def first_pinned(pending: Sequence[tuple[int, PendingStep]]) -> MicroBatch | None:
    """Return the first micro-batch of the first of these steps (number, step), if it is in page-locked memory."""
    step = pending[0][1] if pending else None
    return step.first() if isinstance(step, PinnedStep) else None


def pinned(value: Any) -> Any:
    """Return `value` with every tensor in its nested dicts, lists and tuples copied to page-locked memory, for fast copies to a GPU."""
    if isinstance(value, torch.Tensor):
        return value.pin_memory()
    if isinstance(value, dict):
        return {name: pinned(item) for name, item in value.items()}
    return type(value)(map(pinned, value)) if type(value) in (list, tuple) else value
