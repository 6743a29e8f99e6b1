"""Start `plait` as processes that can be killed: new ones, several under torchrun, or forks of a server with all imported.

A forked process skips the interpreter's start and the imports; in all else it is like a new one.
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
"""Signals that torchrun forwards to its ranks: its default ones, and the one that SLURM is asked to send before the time limit."""

_RANK_OPTIONS = ("--nproc", "--max-restarts", "--shutdown-timeout")


def torchrun(ranks: int, max_restarts: int = 0) -> list[str]:
    """Return the command that runs plait on `ranks` ranks of this machine under torchrun; append plait's arguments to it.

    `max_restarts`: how often all ranks are restarted when one dies. The command ends in `-- plait`: without the `--`, torchrun would read
    --run=DIR as an abbreviation of its --run-path.
    """
    options = ["--standalone", f"--nproc-per-node={ranks}", f"--max-restarts={max_restarts}"]
    return [sys.executable, "-m", "plait.training.torchrun", *options, "-m", "--", "plait"]


def exec_torchrun(ranks: int, max_restarts: int, shutdown_timeout_s: int | None, arguments: Sequence[str]) -> NoReturn:
    """Replace this process (exec) by torchrun with `ranks` processes of the same plait command, so that signals reach torchrun directly.

    `arguments`: the command line without "plait"; options about ranks are removed. `max_restarts`: how often all ranks are restarted when
    one dies. `shutdown_timeout_s`: seconds in which ranks may save after a signal; None: torchrun's default. Raises PlaitError if this
    process is itself a rank of torchrun.
    """
    if "WORLD_SIZE" in os.environ:
        raise PlaitError(f"--nproc={ranks} was given to a rank that torchrun started; leave --nproc away, or start without torchrun")
    threads = str(max(1, (os.cpu_count() or 1) // ranks))
    ignores_hangup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # by nohup; torchrun would end the ranks all the same
    passed_on = SIGNALS.replace("SIGHUP,", "") if ignores_hangup else SIGNALS
    defaults = {"OMP_NUM_THREADS": threads, "PET_SIGNALS_TO_HANDLE": passed_on}
    timeout = {"PET_SHUTDOWN_TIMEOUT": str(shutdown_timeout_s)} if shutdown_timeout_s else {}
    os.execve(sys.executable, [*torchrun(ranks, max_restarts), *_without_rank_options(arguments)], {**defaults, **os.environ, **timeout})


def _without_rank_options(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of each rank: all but those about ranks."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument.partition("=")[0] not in _RANK_OPTIONS:
            kept.append(argument)
        skip = not skip and argument in _RANK_OPTIONS  # its value is the next argument
    return kept


class Process(Protocol):
    """A started `plait` process, possibly torchrun with ranks below it. `pid`: its process id."""

    pid: int

    def poll(self) -> int | None:
        """Return the exit code once the process has ended, else None. 75: it saved and stopped; negative: minus its signal."""

    def signal(self, number: int) -> None:
        """Send the signal `number`, such as signal.SIGTERM; do nothing if the process has ended."""


class Launcher(Protocol):
    """Starts `plait` on `ranks` ranks: as new processes (class `Fresh`) or forked from a server process (class `Warm`)."""

    ranks: int

    def start(self, arguments: Sequence[str], log: Path) -> Process:
        """Start `plait` with command-line arguments such as ["train", "c.yaml"]; append its output to the file `log`; do not wait."""

    def close(self) -> None:
        """Release what the launcher keeps between starts, such as a server process; called once, after the last start."""


class _FreshProcess:
    def __init__(self, command: Sequence[str], log: Path, ranks: int) -> None:
        self.ranks = ranks
        with log.open("ab") as out:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.poll()

    def signal(self, number: int) -> None:
        """Send a signal to the process; SIGKILL also to every rank below it, as when a machine fails."""
        ranks = descendants(self.pid) if self.ranks > 1 and number == signal.SIGKILL else []
        self.process.send_signal(number)
        for pid in ranks:
            kill(pid)


class Fresh:
    """Launcher that runs `python -m plait ...` as a new process each time; under torchrun where `ranks` is above 1."""

    def __init__(self, ranks: int = 1) -> None:
        self.ranks = ranks
        self.command = torchrun(ranks) if ranks > 1 else [sys.executable, "-m", "plait"]

    def start(self, arguments: Sequence[str], log: Path) -> Process:
        """Start `plait` as a new process with these arguments; append its output to the file `log`; return its handle."""
        return _FreshProcess([*self.command, *arguments], log, self.ranks)

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


class Warm:
    """Launcher that forks `plait ...` from a server process that has imported `modules`. It is also the `Process`: one runs at a time."""

    ranks = 1

    def __init__(self, modules: Sequence[str]) -> None:
        self.pid = 0
        self.code: int | None = None
        program = f"from plait.training.launch import serve; serve({list(modules)!r})"
        self.server = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)

    def start(self, arguments: Sequence[str], log: Path) -> "Warm":
        """Let the server fork `plait` with these arguments; append its output to the file `log`; return this object as its handle."""
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.write(json.dumps([list(arguments), str(log), str(Path.cwd())]).encode() + b"\n")
        self.pid = int(self.server.stdout.readline())
        self.code = None
        return self

    def poll(self) -> int | None:
        """Return the exit code once the forked process has ended, else None."""
        out = self.server.stdout
        assert out is not None
        if self.code is None and select.select([out], [], [], 0)[0]:
            self.code = int(out.readline())
        return self.code

    def signal(self, number: int) -> None:
        """Send the signal `number` to the forked process; do nothing where it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def close(self) -> None:
        """Wait for the forked process to end, then end the server."""
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()


def serve(modules: Sequence[str]) -> None:
    """Run the server process of `Warm`: import `modules`, then fork `plait` for each line on standard input, until that is closed.

    A line is a JSON list [arguments, path of the log, working directory]; the answers, a line each: process id, and at its end exit code.
    """
    for name in modules:
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    while line := os.read(0, 1 << 16):
        arguments, log, folder = json.loads(line)
        pid = os.fork()
        if pid == 0:
            answers.close()
            os._exit(_run_forked(arguments, log, folder))
        answers.write(f"{pid}\n")
        answers.write(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n")


def _run_forked(arguments: list[str], log: str, folder: str) -> int:
    """Run `plait` in this forked process, as a new one would: own session, output to `log`; returns its exit code."""
    os.setsid()
    os.chdir(folder)
    for descriptor, path, flags in ((0, os.devnull, os.O_RDONLY), (1, log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)):
        os.dup2(os.open(path, flags, 0o644), descriptor)
    os.dup2(1, 2)
    sys.argv = ["plait", *arguments]
    code = 1
    try:
        runpy.run_module("plait", run_name="__main__", alter_sys=True)
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:  # noqa: BLE001  the process ends here, as it would with this traceback
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def descendants(pid: int) -> list[int]:
    """Return the ids of all processes that `pid` or its children started, from /proc (Linux); [] on other systems."""
    parents = _parents()
    below: list[int] = []
    waiting = [pid]
    while waiting:
        above = waiting.pop()
        children = [child for child, parent in parents.items() if parent == above]
        below += children
        waiting += children
    return below


def children(pid: int) -> list[int]:
    """Return the ids of the processes that `pid` itself started, those that have ended unseen included; [] on other systems than Linux."""
    return [child for child, parent in _parents().items() if parent == pid]


def _parents() -> dict[int, int]:
    """Return {process id: that of the process which started it}, from /proc (Linux)."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    return parents


def data_workers(pid: int) -> list[int]:
    """Return the process ids of the data-loading workers that `pid` started through multiprocessing's fork server."""
    workers: set[int] = set()
    for child in descendants(pid):
        with contextlib.suppress(OSError):
            if b"multiprocessing.forkserver" in Path(f"/proc/{child}/cmdline").read_bytes():
                workers.update(descendants(child))
    return sorted(workers)


def kill(pid: int) -> None:
    """Send SIGKILL to process `pid`; do nothing where it has ended by itself."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
