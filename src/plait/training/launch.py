"""Start `plait train` as processes that can be killed: fresh ones, several under torchrun, or forked from one that has imported everything.

A forked one is a process of its own like any other; what it leaves out is the interpreter's start and the imports.
"""

import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, Protocol

from plait.errors import PlaitError

SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
"""What torchrun passes on to its ranks: its own default, and the signal that SLURM is asked to send before the time limit."""

_RANKS_ONLY = ("--nproc", "--max-restarts", "--shutdown-timeout")


def torchrun(ranks: int, max_restarts: int = 0) -> list[str]:
    """The command that runs plait on so many ranks of this machine, by torchrun (agent.py). plait's own arguments follow.

    They come after `--`, or torchrun takes --run=DIR for a short form of its own --run-path.
    """
    options = ["--standalone", f"--nproc-per-node={ranks}", f"--max-restarts={max_restarts}"]
    return [sys.executable, "-m", "plait.training.torchrun", *options, "-m", "--", "plait"]


def spread(ranks: int, max_restarts: int, shutdown_timeout_s: int | None, arguments: Sequence[str]) -> NoReturn:
    """Replace this process by torchrun with `ranks` processes of this command: signals reach it directly, and nothing stands between.

    What newer versions of torchrun call --signals-to-handle and --shutdown-timeout goes through its environment, which older ones ignore.
    """
    if "WORLD_SIZE" in os.environ:
        raise PlaitError(f"--nproc={ranks} was given to a rank that torchrun started; leave --nproc away, or start without torchrun")
    threads = str(max(1, (os.cpu_count() or 1) // ranks))
    defaults = {"OMP_NUM_THREADS": threads, "PET_SIGNALS_TO_HANDLE": SIGNALS}
    timeout = {"PET_SHUTDOWN_TIMEOUT": str(shutdown_timeout_s)} if shutdown_timeout_s else {}
    os.execve(sys.executable, [*torchrun(ranks, max_restarts), *_own(arguments)], {**defaults, **os.environ, **timeout})


def _own(arguments: Sequence[str]) -> list[str]:
    """The arguments without those about ranks."""
    kept, skip = [], False
    for item in arguments:
        if not skip and item.partition("=")[0] not in _RANKS_ONLY:
            kept.append(item)
        skip = not skip and item in _RANKS_ONLY  # its value is the next one
    return kept


class Process(Protocol):
    """A started command. `poll` gives its exit code once it has ended: 0, 75, ..., or minus the number of the signal that killed it."""

    pid: int

    def poll(self) -> int | None: ...
    def signal(self, number: int) -> None: ...


class Launcher(Protocol):
    """Starts `plait` with arguments; its output goes to the end of `log`."""

    ranks: int

    def start(self, arguments: Sequence[str], log: Path) -> Process: ...
    def close(self) -> None: ...


class _Fresh:
    def __init__(self, command: Sequence[str], log: Path, ranks: int):
        self.ranks = ranks
        with open(log, "ab") as out:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        self.pid = self.process.pid
        self.poll = self.process.poll

    def signal(self, number: int) -> None:
        """To the process; SIGKILL to every rank, as the end of a machine does."""
        below = descendants(self.pid) if self.ranks > 1 and number == signal.SIGKILL else []
        self.process.send_signal(number)
        for pid in below:
            end(pid)


class Fresh:
    """`python -m plait ...` anew each time, under torchrun when there are several ranks."""

    def __init__(self, ranks: int = 1):
        self.ranks = ranks
        self.command = torchrun(ranks) if ranks > 1 else [sys.executable, "-m", "plait"]

    def start(self, arguments: Sequence[str], log: Path) -> Process:
        """A new process."""
        return _Fresh([*self.command, *arguments], log, self.ranks)

    def close(self) -> None:
        """Nothing to let go."""


class Warm:
    """`plait ...` in processes forked from a server that has imported `modules`. One at a time."""

    ranks = 1

    def __init__(self, modules: Sequence[str]):
        self.pid, self.code = 0, None  # type: int, int | None
        code = f"from plait.training.launch import serve; serve({list(modules)!r})"
        self.server = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)

    def start(self, arguments: Sequence[str], log: Path) -> "Warm":
        """Have the server fork; the handle is this object."""
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.write(json.dumps([list(arguments), str(log), os.getcwd()]).encode() + b"\n")
        self.pid = int(self.server.stdout.readline())
        self.code = None
        return self

    def poll(self) -> int | None:
        """The exit code that the server has told by now."""
        out = self.server.stdout
        assert out is not None
        if self.code is None and select.select([out], [], [], 0)[0]:
            self.code = int(out.readline())
        return self.code

    def signal(self, number: int) -> None:
        """To the forked process."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def close(self) -> None:
        """End the server."""
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()


def serve(modules: Sequence[str]) -> None:
    """Import `modules`; then, for every line on standard input, fork `plait` and write its process id and its exit code."""
    for name in modules:
        importlib.import_module(name)
    answer = os.fdopen(os.dup(1), "w", buffering=1)
    while line := os.read(0, 1 << 16):
        arguments, log, folder = json.loads(line)
        pid = os.fork()
        if pid == 0:
            answer.close()
            os._exit(_become(arguments, log, folder))
        answer.write(f"{pid}\n")
        answer.write(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n")


def _become(arguments: list[str], log: str, folder: str) -> int:
    os.setsid()
    os.chdir(folder)
    for descriptor, path, how in ((0, os.devnull, os.O_RDONLY), (1, log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)):
        os.dup2(os.open(path, how, 0o644), descriptor)
    os.dup2(1, 2)
    sys.argv = ["plait", *arguments]
    code = 1
    try:
        runpy.run_module("plait", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001  the process ends here, as it would with this traceback
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def descendants(pid: int) -> list[int]:
    """The processes below `pid`, where /proc tells (Linux); elsewhere none."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found, waiting = [], [pid]
    while waiting:
        above = waiting.pop()
        below = [child for child, parent in parents.items() if parent == above]
        found += below
        waiting += below
    return found


def data_workers(pid: int) -> list[int]:
    """The data worker processes below `pid`: those that multiprocessing has spawned."""
    found = []
    for child in descendants(pid):
        with contextlib.suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return sorted(found)


def end(pid: int) -> None:
    """SIGKILL one process that may have ended by itself."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
