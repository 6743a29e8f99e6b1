"""Who prepares micro-batches: the consumer itself, threads, or processes. All give the same batches, in the same order.

Threads share one memory and start at once; most of the work (reading, decoding, resizing) lets go of Python's lock. Processes are for
encoding that is mostly Python, as that of small pictures is: they start in seconds, know every id themselves (they are told a step's
number, nothing else), and leave their batches in shared memory (slots.py).
"""

import multiprocessing.util
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import torch
import torch.multiprocessing

from plait.data.loading.micro_batch import Example, MicroBatch, Preparation, pinned
from plait.data.loading.shared_memory import Parcel, Reader, Writer, keep_freed_memory
from plait.errors import PlaitError

_POLL_S = 0.2  # how often a waiting consumer looks whether it should stop
_GOODBYE_S = 2.0  # what a process gets to finish its sample, when the loader closes
_LAST_WORDS_S = 10.0  # for a process whose line has closed to be gone, so that its exit code can be told
_SHIELDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # the engine's to answer; a worker that died of one would lose the step

Stop = Callable[[], bool]


class Interrupted(Exception):
    """The consumer asked to stop while it waited."""


class Crew(Protocol):
    """Prepares steps. `ask` starts work on one; what it returns yields its micro-batches, waiting for them, when it is called."""

    lookahead: int  # steps that must be asked for ahead to keep everyone busy

    def ask(self, step: int) -> Callable[[Stop], list[MicroBatch]]: ...
    def close(self) -> None: ...


class Alone:
    """No workers: a step is prepared when it is waited for."""

    lookahead = 0

    def __init__(self, preparation: Preparation) -> None:
        self._preparation = preparation

    def ask(self, step: int) -> Callable[[Stop], list[MicroBatch]]:
        return lambda stop: [self._preparation.prepared(ids, padding) for ids, padding in self._preparation.parts(step)]

    def close(self) -> None:
        """Nothing to let go."""


class _Job:
    """One micro-batch cut among threads; the one that finishes last collates."""

    def __init__(self, pieces: int, padding: bool) -> None:
        self.examples: list[list[Example]] = [[] for _ in range(pieces)]
        self.padding, self.left, self.lock = padding, pieces, threading.Lock()
        self.done: Future[MicroBatch] = Future()


class Threads:
    """A pool of threads; every micro-batch is cut among them."""

    lookahead = 0

    def __init__(self, preparation: Preparation, workers: int) -> None:
        self._preparation, self._workers = preparation, workers
        self._closing = threading.Event()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="plait-data")
        _one_torch_thread_each(self._pool, workers)

    def ask(self, step: int) -> Callable[[Stop], list[MicroBatch]]:
        jobs = []
        for ids, padding in self._preparation.parts(step):
            pieces = min(self._workers, len(ids))
            job = _Job(pieces, padding)
            for piece in range(pieces):
                self._pool.submit(self._work, job, piece, ids[piece * len(ids) // pieces : (piece + 1) * len(ids) // pieces])
            jobs.append(job)
        return lambda stop: [_result(job.done, lambda: stop() or self._closing.is_set()) for job in jobs]

    def _work(self, job: _Job, piece: int, ids: Sequence[Any]) -> None:
        try:
            for wanted in ids:
                if self._closing.is_set() or job.done.done():
                    return
                job.examples[piece].append(self._preparation.example(wanted))
            with job.lock:
                job.left -= 1
                last = job.left == 0
            if last:
                job.done.set_result(self._preparation.assemble([e for part in job.examples for e in part], job.padding))
        except Exception as error:  # noqa: BLE001  # handed to the consumer, which raises it
            with job.lock:
                if not job.done.done():
                    job.done.set_exception(error)

    def close(self) -> None:
        """Stop at the next sample, and wait for that."""
        self._closing.set()
        self._pool.shutdown(wait=True, cancel_futures=True)


def _result(future: "Future[MicroBatch]", stop: Stop) -> MicroBatch:
    while not futures.wait([future], timeout=_POLL_S).done:
        if stop():
            raise Interrupted
    return future.result()


def _one_torch_thread_each(pool: ThreadPoolExecutor, workers: int) -> None:
    """Without this each worker's first large tensor operation starts a team of threads, and the teams fight for the cores.

    The number is kept per thread once a thread has set it; setting it back here keeps the consumer and threads to come as they were.
    """
    before = torch.get_num_threads()
    together = threading.Barrier(workers)

    def limit() -> None:
        together.wait()
        torch.set_num_threads(1)

    for started in [pool.submit(limit) for _ in range(workers)]:
        started.result()
    torch.set_num_threads(before)


@dataclass(frozen=True)
class _Failure:
    """An error on its way from a worker process."""

    error: BaseException | None  # None: it could not be sent
    text: str


@dataclass
class _Worker:
    number: int
    process: Any
    line: Connection
    memory: Reader


class Processes:
    """Worker processes, started afresh (spawn): nothing is inherited but what is sent. Micro-batches go round among them."""

    def __init__(self, preparation: Preparation, workers: int) -> None:
        self._preparation, self._turn, self._team = preparation, 0, []  # type: Preparation, int, list[_Worker]
        context = torch.multiprocessing.get_context("spawn")
        self._parts = len(preparation.parts(0))  # the same in every step
        self.lookahead = -(-workers // self._parts)
        self._farewell = multiprocessing.util.Finalize(None, _dismiss, (self._team,), exitpriority=100)
        try:
            with _shielded():  # a new process inherits the mask: it is never without it
                for number in range(workers):
                    ours, theirs = context.Pipe()
                    process = context.Process(target=_serve, args=(theirs, replace(preparation, pin=False)), daemon=True)
                    process.start()
                    theirs.close()
                    self._team.append(_Worker(number, process, ours, Reader()))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            self.close()
            raise PlaitError(f"the data pipeline cannot be sent to worker processes ({error}); use worker_kind: threads") from error

    def ask(self, step: int) -> Callable[[Stop], list[MicroBatch]]:
        asked = []
        for number in range(self._parts):
            worker = self._team[self._turn % len(self._team)]
            self._turn += 1
            slot = worker.memory.offer()
            try:
                worker.line.send((step, number, slot))
            except OSError:
                raise _death(worker, step) from None
            asked.append((worker, slot))
        return lambda stop: [self._receive(worker, slot, step, stop) for worker, slot in asked]

    def _receive(self, worker: _Worker, slot: int | None, step: int, stop: Stop) -> MicroBatch:
        while not wait([worker.line, worker.process.sentinel], timeout=_POLL_S):
            if stop():
                raise Interrupted
        try:
            if not worker.line.poll():
                raise EOFError
            answer = worker.line.recv()
        except (EOFError, OSError):
            raise _death(worker, step) from None
        if isinstance(answer, _Failure):
            error = answer.error or RuntimeError(f"data worker {worker.number} failed")
            error.add_note(f"in data worker {worker.number}:\n{answer.text}")
            raise error
        micro, parcel = answer
        batch = worker.memory.unpack(parcel, slot)
        return replace(micro, batch=pinned(batch) if self._preparation.pin else batch)

    def close(self) -> None:
        """Let the workers finish the sample at hand, then end those that do not."""
        self._farewell()


def _death(worker: _Worker, step: int) -> PlaitError:
    worker.process.join(_LAST_WORDS_S)
    code = worker.process.exitcode
    if code is None:
        how = "closed its line"
    else:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    hint = _HINTS.get(code, "")
    return PlaitError(f"data worker {worker.number} (process {worker.process.pid}) {how} before it had prepared step {step}{hint}")


_HINTS = {  # by exit code
    -signal.SIGKILL: "; memory may have run out: fewer data.workers, or worker_kind: threads",
    -signal.SIGBUS: "; shared memory (/dev/shm) may be full: give it more room, smaller micro-batches, or worker_kind: threads",
}


def _dismiss(team: list[_Worker]) -> None:
    for worker in team:
        worker.line.close()  # a worker that waits or sends sees this at once
    deadline = time.monotonic() + _GOODBYE_S
    for worker in team:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.process.close()
    team.clear()


@contextmanager
def _shielded() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SHIELDED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(line: Connection, preparation: Preparation) -> None:
    """A worker process: answer (step, number) with its micro-batch until the line closes, whatever signals come."""
    for name in _SHIELDED:
        signal.signal(name, signal.SIG_IGN)
    torch.set_num_threads(1)
    keep_freed_memory()
    memory = Writer()
    while True:
        try:
            step, number, slot = line.recv()
        except (EOFError, OSError):  # the consumer has gone; a reset when it left answers unread
            return
        try:
            micro = preparation.micro(step, number)
            answer: tuple[MicroBatch, Parcel] | _Failure = replace(micro, batch={}), memory.pack(micro.batch, slot)
        except Exception as error:  # noqa: BLE001  # sent to the consumer, which raises it
            answer = _Failure(error if _can_travel(error) else None, traceback.format_exc())
        try:
            line.send(answer)
        except OSError:  # the consumer has gone
            return


def _can_travel(error: BaseException) -> bool:
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:  # noqa: BLE001  # an exception class may do anything here
        return False
