"""Step after step of prepared micro-batches for one rank, some steps ahead of the consumer.

What a step holds is decided by `order` alone; workers only decide when it is ready (crews.py has the workers, preparation.py their work).
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from plait.data.loading.micro_batch import Bad, Inputs, MicroBatch, Preparation
from plait.data.loading.workers import Alone, Crew, Interrupted, Processes, Threads
from plait.data.order import Ordering
from plait.data.sources.open import Source

__all__ = ["Bad", "Loader", "MicroBatch", "StepBatch"]


@dataclass(frozen=True)
class StepBatch:
    """One step's work for this rank. `wait_s`: how long the consumer waited for it."""

    step: int
    micro: list[MicroBatch]
    bad: list[Bad]
    wait_s: float


class Loader:
    """Iterate for the StepBatches of steps `start_step` (from 0) up to, not including, `stop_step` (None: without end).

    `micro_batch` None: one per rank and step. `prefetch`: steps kept ready beside the one at work (processes keep at least one micro-batch
    each). `pin`: copy to page-locked memory when there is a GPU. `interrupted` is asked while waiting; a yes ends the iteration.
    Each iteration starts again from `start_step`. Close it, or use it in a `with`: nothing is left running.
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
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        assert [len(source) for source in sources] == list(order.sizes), "the order is for other sources"
        pin = pin and torch.cuda.is_available()
        self._preparation = Preparation(tuple(sources), order, inputs, seed, rank, world_size, micro_batch, pin)
        self._workers, self._kind, self._prefetch = workers, kind, prefetch
        self._start, self._stop, self._interrupted = start_step, stop_step, interrupted
        self._crew: Crew | None = None

    def __iter__(self) -> Iterator[StepBatch]:
        self.close()
        crew = self._crew = self._hire()
        ahead = max(self._prefetch, crew.lookahead)
        asked: deque[tuple[int, Callable[[Callable[[], bool]], list[MicroBatch]]]] = deque()
        following = self._start
        try:
            while not self._interrupted():
                before = time.perf_counter()
                while len(asked) <= ahead and (self._stop is None or following < self._stop):
                    asked.append((following, crew.ask(following)))
                    following += 1
                if not asked:
                    return
                step, answer = asked.popleft()
                micro = answer(self._interrupted)
                yield StepBatch(step, micro, [bad for part in micro for bad in part.bad], time.perf_counter() - before)
        except Interrupted:
            return
        finally:
            crew.close()

    def _hire(self) -> Crew:
        if self._workers == 0:
            return Alone(self._preparation)
        return (Threads if self._kind == "threads" else Processes)(self._preparation, self._workers)

    def close(self) -> None:
        """End every worker now. Closing twice is fine."""
        if self._crew is not None:
            self._crew.close()
            self._crew = None

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
