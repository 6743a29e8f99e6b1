"""Iterate over the micro-batches of one rank, step after step, built some steps ahead of the consumer.

What a step holds is decided by `order` alone; workers only decide when it is ready (workers.py has the workers, micro_batch.py their work).
"""

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Self

import torch

from plait.data.loading.micro_batch import Bad, Inputs, MicroBatch, MicroBatchBuilder
from plait.data.loading.pinning import PinningWorkers, first_pinned
from plait.data.loading.prefetch import PrefetchingWorkers
from plait.data.loading.processes import ProcessWorkers
from plait.data.loading.threads import ThreadWorkers
from plait.data.loading.workers import InlineWorker, Interrupted, PendingStep, Workers
from plait.data.order import Ordering, Slicing, rank_slices
from plait.data.sources.contract import Source

__all__ = ["Bad", "Loader", "MicroBatch", "StepBatch"]


@dataclasses.dataclass(frozen=True)
class StepBatch:
    """One training step's micro-batches (`micro`) on this rank. `bad`: samples replaced in them; `wait_s`: seconds of waiting for them."""

    step: int
    micro: list[MicroBatch]
    bad: list[Bad]
    wait_s: float
    following: Callable[[], MicroBatch | None] = lambda: None  # the next step's first one, if pinned; that step is not taken by it


class Loader:
    """Iterates over the StepBatches of steps `start_step` (from 0) up to, not including, `stop_step` (None: endless).

    `order`: which samples of `sources` a step holds. `inputs`: how they become tensors. `micro_batch`: samples in each; None: a step's.
    `workers`: threads or processes (`kind`); 0 builds a step only when it is requested. `prefetch`: steps built ahead, more if needed for
    every process to have work. `pin`: copy to page-locked memory when there is a GPU. `replace`, `slicing`: as of `MicroBatchBuilder`.
    `interrupted()`: called before each step and while waiting; True ends the iteration. Each iteration starts again from `start_step`.
    Close it, or use it in a `with`, to stop its workers.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        order: Ordering,
        inputs: Inputs,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        micro_batch: int | None = None,
        workers: int = 2,
        kind: Literal["threads", "processes"] = "threads",
        prefetch: int = 2,
        start_step: int = 0,
        stop_step: int | None = None,
        pin: bool = False,
        replace: bool = True,
        slicing: Slicing = rank_slices,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        assert [len(source) for source in sources] == list(order.sizes), "the order is for other sources"
        self._pin = pin and torch.cuda.is_available()
        builder = MicroBatchBuilder(tuple(sources), order, inputs, seed=seed, rank=rank, world_size=world_size, micro_batch=micro_batch)
        self._builder = dataclasses.replace(builder, replace=replace, slicing=slicing)
        self._worker_count, self._kind, self._prefetch = workers, kind, prefetch
        self._start, self._stop, self._interrupted = start_step, stop_step, interrupted
        self._workers: Workers | None = None

    def __iter__(self) -> Iterator[StepBatch]:
        """Yield a StepBatch per step. Raises a worker's error, PlaitError after 50 bad samples in a row, Stopped once a worker has died."""
        self.close()
        workers = self._workers = PinningWorkers(self._start_workers()) if self._pin else self._start_workers()
        ahead = max(self._prefetch, workers.lookahead) if self._worker_count else 0
        pending: deque[tuple[int, PendingStep]] = deque()
        next_step = self._start
        try:
            while not self._interrupted():
                before = time.perf_counter()
                while len(pending) <= ahead and (self._stop is None or next_step < self._stop):
                    pending.append((next_step, workers.submit(next_step)))
                    next_step += 1
                if not pending:
                    return
                step, wait_for = pending.popleft()
                micro = wait_for(self._interrupted)
                bad, wait_s = [bad for part in micro for bad in part.bad], time.perf_counter() - before
                yield StepBatch(step, micro, bad, wait_s, lambda: first_pinned(pending))
        except Interrupted:
            return
        finally:
            workers.close()

    def _start_workers(self) -> Workers:
        if not self._worker_count and not any(source.may_wait for source in self._builder.sources):
            return InlineWorker(self._builder)
        kind = ProcessWorkers if self._kind == "processes" and self._worker_count else ThreadWorkers
        workers = kind(self._builder, max(1, self._worker_count))
        streamed = any(source.stream is not None for source in self._builder.sources)
        return PrefetchingWorkers(workers, self._builder, range(self._start, self._stop or 0)) if streamed else workers

    def close(self) -> None:
        """Stop every worker; steps that were built and not yielded are dropped. Safe to call more than once."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
