"""Worker processes that build micro-batches: for encoding that is mostly Python, which in threads would run one at a time.

They start in seconds, compute every sample id themselves (only a step's number is sent to them), and put their batches into shared memory
(memory/shared.py). A worker that hangs on a server or a disk does not delay the end of the run: it is killed.
"""

import multiprocessing.util
import pickle
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch
import torch.multiprocessing

from plait.data.loading.micro_batch import MicroBatch, MicroBatchBuilder
from plait.data.loading.workers import POLL_S, STOP_TIMEOUT_S, Interrupted, PendingStep, Stop
from plait.data.memory.shared import BufferPool, BufferWriter, PackedBatch, keep_freed_memory
from plait.errors import PlaitError, Stopped

_EXIT_TIMEOUT_S = 10.0  # for a process whose connection has closed to end, so that its exit code can be reported
# The engine handles these signals; a worker that died of one would lose the step.
_BLOCKED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
_ADVICE = {  # by exit code
    -signal.SIGKILL: "; memory may have run out: fewer data.workers, or worker_kind: threads",
    -signal.SIGBUS: "; shared memory (/dev/shm) may be full: give it more room, smaller micro-batches, or worker_kind: threads",
}


@dataclass(frozen=True)
class _Failure:
    """An error sent from a worker process."""

    error: BaseException | None  # None: it could not be sent
    text: str


@dataclass
class _Worker:
    """One worker process, seen from the consumer."""

    number: int
    process: BaseProcess
    connection: "Connection[tuple[int, int, int | None], tuple[MicroBatch, PackedBatch] | _Failure]"
    buffers: BufferPool


class ProcessWorkers:
    """`workers` processes that build micro-batches in turn; `lookahead`: steps to submit ahead so that all are busy.

    They are forked from a server process that has imported torch and the family's modules; the builder is pickled to them. They start in
    less than half the time of processes that each import torch, and share half of their memory. Raises PlaitError if the builder cannot
    be pickled. Once a process has died, `submit` or the function that it returned raises Stopped, a PlaitError: another start may go well.
    """

    def __init__(self, builder: MicroBatchBuilder, workers: int) -> None:
        self._builder, self._submitted = builder, 0
        self._workers: list[_Worker] = []
        context = torch.multiprocessing.get_context("forkserver")
        modules = {type(part).__module__ for part in (builder.inputs, *builder.sources)} - {"__main__"}
        context.set_forkserver_preload([__name__, *sorted(modules)])
        self.lookahead = -(-workers // len(builder.slices(0)))
        self._stop_all = multiprocessing.util.Finalize(None, _stop_workers, (self._workers,), exitpriority=100)
        resource_tracker.ensure_running()  # its start unblocks signals, so it comes first
        try:
            with _signals_blocked():  # the server and its workers inherit the mask: they are never without it
                for number in range(workers):
                    ours, theirs = context.Pipe()
                    with theirs:
                        process = context.Process(target=_work, args=(theirs, builder), daemon=True)
                        process.start()
                    self._workers.append(_Worker(number, process, ours, BufferPool()))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            self.close()
            raise PlaitError(f"the data pipeline cannot be sent to worker processes ({error}); use worker_kind: threads") from error

    def submit(self, step: int) -> PendingStep:
        """Start building step number `step`. Returns `wait_for(stop: () -> bool)`, which waits for its micro-batches and returns them.

        While it waits it calls `stop()` every 0.2 s, and raises Interrupted if that is true; it raises what building them raised, such as
        PlaitError for too many bad samples. Both this method and `wait_for` raise Stopped, a PlaitError, if a worker process has died.
        """
        sent = []
        for number in range(len(self._builder.slices(step))):
            worker = self._workers[self._submitted % len(self._workers)]
            self._submitted += 1
            buffer = worker.buffers.take()
            try:
                worker.connection.send((step, number, buffer))
            except OSError:
                raise _death(worker, step) from None
            sent.append((worker, buffer))
        return lambda stop: [self._receive(worker, buffer, step, stop) for worker, buffer in sent]

    def _receive(self, worker: _Worker, buffer: int | None, step: int, stop: Stop) -> MicroBatch:
        """Wait for a worker's next micro-batch. Raises the worker's error, Stopped if it died, Interrupted if `stop()`."""
        while not wait([worker.connection, worker.process.sentinel], timeout=POLL_S):
            if stop():
                raise Interrupted
        try:
            if not worker.connection.poll():
                raise EOFError
            answer = worker.connection.recv()
        except (EOFError, OSError):
            raise _death(worker, step) from None
        if isinstance(answer, _Failure):
            error = answer.error or RuntimeError(f"data worker {worker.number} failed")
            error.add_note(f"in data worker {worker.number}:\n{answer.text}")
            raise error
        micro, packed = answer
        return replace(micro, batch=worker.buffers.unpack(packed, buffer))

    def close(self) -> None:
        """Close the connections to the workers, at which they exit, and kill those that still run after 2 s. What they built is dropped."""
        self._stop_all()


def _death(worker: _Worker, step: int) -> Stopped:
    """Return the error for a worker process that ended, with its exit code or signal: another attempt may go well."""
    worker.process.join(_EXIT_TIMEOUT_S)
    code = worker.process.exitcode
    if code is None:
        how = "closed its connection"
    else:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    advice = "" if code is None else _ADVICE.get(code, "")
    return Stopped(f"data worker {worker.number} (process {worker.process.pid}) {how} before it had prepared step {step}{advice}")


def _stop_workers(workers: list[_Worker]) -> None:
    """Close the connections, wait a moment for the processes to end, and kill those that have not."""
    for worker in workers:
        worker.connection.close()  # a worker that waits or sends sees this at once
    deadline = time.monotonic() + STOP_TIMEOUT_S
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.process.close()
    workers.clear()


@contextmanager
def _signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(
    connection: "Connection[tuple[MicroBatch, PackedBatch] | _Failure, tuple[int, int, int | None]]", builder: MicroBatchBuilder
) -> None:
    """Run a worker process: answer (step, number, buffer) with that micro-batch until the connection closes, ignoring signals."""
    for name in _BLOCKED_SIGNALS:
        signal.signal(name, signal.SIG_IGN)
    torch.set_num_threads(1)
    keep_freed_memory()
    buffers = BufferWriter()
    while True:
        try:
            step, number, buffer = connection.recv()
        except (EOFError, OSError):  # the consumer has gone; a reset when it left answers unread
            return
        answer: tuple[MicroBatch, PackedBatch] | _Failure
        try:
            answer = _built(builder, step, number, buffers, buffer)
        except Exception as error:  # noqa: BLE001  # sent to the consumer, which raises it
            answer = _Failure(error if _pickles(error) else None, traceback.format_exc())
        try:
            connection.send(answer)
        except OSError:  # the consumer has gone
            return


def _built(builder: MicroBatchBuilder, step: int, number: int, buffers: BufferWriter, buffer: int | None) -> tuple[MicroBatch, PackedBatch]:
    """Return a micro-batch without its tensors, and those, collated in buffer number `buffer`."""
    ids, padding = builder.slices(step)[number]
    examples = [builder.encode(identity) for identity in ids]
    with buffers.collating(buffer):
        micro = builder.collate(examples, padding)
    return replace(micro, batch={}), buffers.pack(micro.batch, buffer)


def _pickles(error: BaseException) -> bool:
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:  # noqa: BLE001  # an exception class may do anything here
        return False
