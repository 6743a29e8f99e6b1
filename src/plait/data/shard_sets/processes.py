"""Write the shards of a set in this process, or in several, each of which takes every n-th shard.

A process whose parent has gone ends by itself. What one of them leaves is a shard less, which the same command writes.
"""

import logging
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from plait.data.shard_sets.write import Shard, Tick
from plait.errors import PlaitError, Stopped

log = logging.getLogger(__name__)


def in_this(shards: Sequence[Shard], tick: Tick, threads: int) -> None:
    """Write the shards one after the other. `threads`: that read and encode."""
    for shard in shards:
        shard.write(threads, tick)


def in_several(shards: Sequence[Shard], tick: Tick, threads: int, processes: int) -> None:
    """Write the shards in `processes` processes, with `threads` each.

    Raises what a process raised, Stopped where one died, and PlaitError where the source cannot be sent to another process.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    started: dict[Connection, BaseProcess] = {}
    try:
        for number in range(min(processes, len(shards))):
            ours, theirs = context.Pipe(duplex=False)
            with theirs:
                process = context.Process(target=_work, args=(theirs, shards[number::processes], threads), daemon=True)
                try:
                    process.start()
                except (pickle.PicklingError, AttributeError, TypeError) as error:
                    raise PlaitError(f"the source cannot be sent to other processes ({error}): leave --processes out") from error
            started[ours] = process
        while started:
            for ready in wait(list(started)):
                assert isinstance(ready, Connection)
                _receive(ready, started, tick)
    finally:
        for left in started.values():
            left.kill()
            left.join()


def _receive(connection: Connection, started: dict[Connection, BaseProcess], tick: Tick) -> None:
    """Take one message of a process: a number of samples done, an error, which is raised, or None at its end."""
    try:
        message = connection.recv()
    except (EOFError, OSError):
        process = started[connection]
        process.join()
        code = process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise Stopped(
            f"a packing process (process {process.pid}) {how}; the same command goes on, perhaps with fewer --processes"
        ) from None
    if isinstance(message, BaseException):
        raise message
    if message is None:
        started.pop(connection).join()
    else:
        tick(message)


def _work(connection: Connection, shards: Sequence[Shard], threads: int) -> None:
    """Write shards in a process of its own, and tell how far it is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        in_this(shards, connection.send, threads)
        connection.send(None)
    except PlaitError as error:
        connection.send(type(error)(*error.args))
    except OSError as error:
        connection.send(error)
