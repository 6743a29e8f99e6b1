"""Several ranks of one test, forked from the process that has imported everything: a second, where fresh ones take ten."""

import faulthandler
import gc
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import socket
import traceback
from pathlib import Path

import torch._dynamo

FORK = multiprocessing.get_context("fork")
LIMIT_S = 120
"""What a rank may take, waiting for the others included."""


def forked(function, *args, **environment):
    """A process that calls `function`; exit code 0 unless that raises; it ends by itself after a time."""

    def body():
        os.environ.update({name: str(value) for name, value in environment.items()})
        rank_of_test(function, *args)

    process = FORK.Process(target=body)
    process.start()
    return process


def rank_of_test(function, *args):
    """Call `function` in a process that was forked, and end it there: with its traceback, and without the test's own machinery."""
    torch.set_num_threads(torch.get_num_threads())  # its pool is made anew after a fork, which threads may not do at once
    gc.freeze()  # else a collection in a rank looks through all that the tests have imported, and copies its pages
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    multiprocessing.forkserver._forkserver._forkserver_pid = None  # that of the test's process is no child of this one
    try:
        function(*args)
    except BaseException:  # noqa: BLE001  told here
        traceback.print_exc()
        os._exit(1)  # while the error holds its frames: to free a group of ranks may wait for ranks that are gone
    os._exit(0)


def start(size, function, *args):
    """`function(*args)` on so many gloo ranks, as torchrun would start them; returns the processes in rank order."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [forked(function, *args, RANK=rank, LOCAL_RANK=rank, **place) for rank in range(size)]


def codes(processes):
    """The exit codes of all, each waited for."""
    for process in processes:
        process.join(LIMIT_S)
    return [process.exitcode for process in processes]


def fork(size, function, *args):
    """`function(*args)` on so many gloo ranks; fails where any of them does."""
    assert codes(start(size, function, *args)) == [0] * size


def run(size, function, *args):
    """What `function(*args)` returns on each rank. Fails when a rank does."""
    lines = [FORK.Pipe(duplex=False) for _ in range(size)]

    def body():
        lines[int(os.environ["RANK"])][1].send(function(*args))

    processes = start(size, body)
    answers = [reader.recv() if reader.poll(LIMIT_S) else None for reader, _ in lines]
    assert codes(processes) == [0] * size
    return answers


def is_alive(pid):
    """Whether a process runs: one that has ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:  # ESRCH too, where it ends while its file is read
        return False


def kill_inside(target, write):
    """Call `write(target, wait)` in a process that is killed once it waits there."""
    started, begun = os.pipe()
    pid = os.fork()
    if pid == 0:
        rank_of_test(write, target, lambda: (os.write(begun, b"."), signal.pause()))
    assert os.read(started, 1) == b"."
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(started)
    os.close(begun)
