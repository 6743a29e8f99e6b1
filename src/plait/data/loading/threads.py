"""Threads that build micro-batches. A thread that hangs on a server or a disk does not delay the end of the run: it is abandoned."""

import functools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from concurrent.futures import Future
from queue import SimpleQueue

import torch

from plait.data.loading.micro_batch import Example, MicroBatch, MicroBatchBuilder
from plait.data.loading.passes import encode_in_passes
from plait.data.loading.turns import Turns
from plait.data.loading.workers import POLL_S, STOP_TIMEOUT_S, Interrupted, PendingStep, Stop
from plait.data.memory import reused
from plait.data.order import SampleId


class _ThreadedBatch:
    """One micro-batch whose samples are divided among threads; the one that finishes last collates."""

    def __init__(self, parts: int, padding: bool) -> None:
        self.examples: list[list[Example]] = [[] for _ in range(parts)]
        self.padding, self.parts_left, self.lock = padding, parts, threading.Lock()
        self.done: Future[MicroBatch] = Future()


class ThreadWorkers:
    """`workers` daemon threads, among which the samples of every micro-batch are divided. `lookahead`: 0, as one step keeps all busy."""

    lookahead = 0

    def __init__(self, builder: MicroBatchBuilder, workers: int) -> None:
        self._builder, self._workers = builder, workers
        self._closing = threading.Event()
        self._turns = Turns(allowed=workers > 1 and not any(source.may_wait for source in builder.sources))
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        reused.begin(self)
        self._threads = _threads_of_one_torch_thread(workers, self._run)

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            work()

    def submit(self, step: int) -> PendingStep:
        """Queue the samples of step number `step`. Returns `wait_for(stop: () -> bool)`, which waits for the step's micro-batches.

        While it waits it calls `stop()` every 0.2 s, and raises Interrupted if that is true, or after `close`; and it raises what reading,
        encoding or collating raised in a thread, such as PlaitError for too many bad samples.
        """
        batches = []
        for ids, padding in self._builder.slices(step):
            parts = min(self._workers, len(ids))
            batch = _ThreadedBatch(parts, padding)
            for part in range(parts):
                own = ids[part * len(ids) // parts : (part + 1) * len(ids) // parts]
                self._queue.put(functools.partial(self._encode, batch, part, own))
            batches.append(batch)
        return lambda stop: [_result(batch.done, lambda: stop() or self._closing.is_set()) for batch in batches]

    def _encode(self, batch: _ThreadedBatch, part: int, ids: Sequence[SampleId]) -> None:
        try:
            with self._turns.part(len(ids)) as alone:
                if alone and not batch.done.done():
                    batch.examples[part], ids = encode_in_passes(self._builder, ids), ()
                for identity in ids:
                    if self._closing.is_set() or batch.done.done():
                        return
                    batch.examples[part].append(self._builder.encode(identity))
            with batch.lock:
                batch.parts_left -= 1
                last = batch.parts_left == 0
            if last:
                micro = self._builder.collate([e for examples in batch.examples for e in examples], batch.padding)
                batch.examples.clear()  # here: the consumer would spend its time on freeing pictures
                batch.done.set_result(micro)
        except Exception as error:  # noqa: BLE001  # given to the consumer, which raises it
            with batch.lock:
                if not batch.done.done():
                    batch.done.set_exception(error)

    def close(self) -> None:
        """Stop each thread after its current sample and drop what is queued. Daemon threads that run for 2 s more are not waited for."""
        self._closing.set()
        for _ in self._threads:
            self._queue.put(None)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        reused.end(self)


def _result(future: "Future[MicroBatch]", stop: Stop) -> MicroBatch:
    while not futures.wait([future], timeout=POLL_S).done:
        if stop():
            raise Interrupted
    return future.result()


def _threads_of_one_torch_thread(count: int, run: Callable[[], None]) -> list[threading.Thread]:
    """Start threads that call `run`, each with one torch thread; otherwise each starts a team, and the teams compete for the cores.

    The number is kept per thread once a thread has set it; setting it back here leaves the consumer and later threads as they were.
    """
    before = torch.get_num_threads()
    limited = threading.Barrier(count + 1)

    def limit_and_run() -> None:
        torch.set_num_threads(1)
        limited.wait()
        run()

    threads = [threading.Thread(target=limit_and_run, name=f"plait-data_{number}", daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    limited.wait()
    torch.set_num_threads(before)
    return threads
