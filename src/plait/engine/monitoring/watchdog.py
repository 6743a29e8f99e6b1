"""End a run that hangs, and report which rank is late, before the collective that the others wait in times out.

Each rank watches itself, from a thread: without a heartbeat for too long, it writes the stacks of all its threads to
RUN/heartbeat/rank-N.stacks, reads the heartbeats of the other ranks, and ends the process. In a hang no rank has heartbeats, so all stacks
are written. A rank that holds Python's lock, where none of its threads can run, is ended by a process beside it (watchdog_process.py), and
in its first seconds by faulthandler's timer. Time in which the rank is stopped (SIGSTOP, a suspended job) is no hang and does not count.
"""

import contextlib
import faulthandler
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from plait.engine.monitoring import beats, heartbeat, watchdog_process
from plait.engine.monitoring.heartbeat import Heartbeat
from plait.engine.monitoring.reporter import EVERY_RANK
from plait.engine.parallel.distributed import Ranks
from plait.errors import Stopped

SETTING_UP = ("start", "stage")
"""Phases in which models are read and compiled: they may take PATIENCE times the timeout."""
PATIENCE = 3

_RANKS_SHOWN = 8
_STACKS_SIGNAL = signal.SIGRTMIN + 7 if sys.platform == "linux" else signal.SIGUSR2  # SLURM and others send SIGUSR1 and SIGUSR2
_POLLS = 20  # per timeout
_POLL_MAX_S = 5.0
_OTHER_RANKS_S = 2 * _POLL_MAX_S  # for the other ranks to time out too and write their stacks, at most

log = logging.getLogger(__name__)


class Watchdog:
    """Context manager: ends this rank after `timeout_s` without a heartbeat (None: never); sends it SIGTERM if torchrun is gone."""

    def __init__(self, heartbeat: Heartbeat, ranks: Ranks, timeout_s: float | None) -> None:
        self.heartbeat, self.ranks, self.timeout_s = heartbeat, ranks, timeout_s
        self.stacks: IO[str] | None = None
        self.parent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self.process: subprocess.Popen[bytes] | None = None
        """The program that ends this rank when none of its threads can; started at the first look, so that short runs have none."""
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="plait-watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self.stacks = stacks_of(self.heartbeat.run, self.heartbeat.rank).open("w", encoding="utf-8")
        if self.timeout_s is not None:  # before the thread's first look, for which Python's lock may never be free
            faulthandler.dump_traceback_later(self._allowed_s(self.timeout_s) + self.poll_s, exit=True, file=self.stacks)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            self.process.wait()
            faulthandler.unregister(_STACKS_SIGNAL)
        if self.stacks is not None:
            self.stacks.close()

    def allow(self, timeout_s: float | None) -> None:
        """Set how many seconds this rank may be without a heartbeat from now on (None: no limit). Called at the start of each stage."""
        self.timeout_s = timeout_s

    @property
    def poll_s(self) -> float:
        """Seconds between two looks at the heartbeat: a twentieth of the timeout, at most 5."""
        return min(_POLL_MAX_S, self.timeout_s / _POLLS) if self.timeout_s else _POLL_MAX_S

    def _watch(self) -> None:
        silent_s, seen, looked_s = 0.0, self.heartbeat.last_s, time.monotonic()
        while not self._left.wait(self.poll_s):
            if self.parent is not None and os.getppid() != self.parent:
                self.parent = None
                os.kill(os.getpid(), signal.SIGTERM)  # torchrun is gone, which would restart or end this rank: save and stop
            now_s = time.monotonic()
            silent_s += min(now_s - looked_s, 2 * self.poll_s)  # more went by while the process was stopped
            if self.heartbeat.last_s != seen:
                silent_s, seen = min(silent_s, now_s - self.heartbeat.last_s), self.heartbeat.last_s
            looked_s = now_s
            allowed_s = self._allowed_s(self.timeout_s) if self.timeout_s is not None else None
            self._tell(allowed_s)
            if allowed_s is not None and silent_s > allowed_s:
                self._end(allowed_s)

    def _allowed_s(self, timeout_s: float) -> float:
        """Return how long the rank may be without a heartbeat in its present phase."""
        return timeout_s * (PATIENCE if self.heartbeat.name in SETTING_UP else 1)

    def _tell(self, allowed_s: float | None) -> None:
        """Tell the process beside this rank that its threads run, and how long they may be silent; starts it if need be."""
        if self.process is None:
            if allowed_s is None:
                faulthandler.cancel_dump_traceback_later()
                return
            assert self.stacks is not None
            faulthandler.register(_STACKS_SIGNAL, self.stacks, all_threads=True)
            command = [sys.executable, "-I", "-S", watchdog_process.__file__, str(os.getpid()), str(int(_STACKS_SIGNAL))]
            self.process = subprocess.Popen([*command, f"rank {self.heartbeat.rank}"], stdin=subprocess.PIPE)
            faulthandler.cancel_dump_traceback_later()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # somebody killed it
            self.process.stdin.write(f"{'inf' if allowed_s is None else allowed_s} {self.poll_s}\n".encode())
            self.process.stdin.flush()

    def _end(self, allowed_s: float) -> None:
        """Write the stacks, report which rank is late, and end the process."""
        assert self.stacks is not None
        faulthandler.dump_traceback(self.stacks)  # past the file's buffer
        run = self.heartbeat.run
        last = [beats.read(run, rank) for rank in range(self.ranks.size)]
        here = os.environ.get("LOCAL_WORLD_SIZE") == str(self.ranks.size)  # process ids of other machines mean nothing
        stopped = [rank for rank, beat in enumerate(last) if here and beat and watchdog_process.is_stopped(beat["pid"])]
        log.error(f"plait: rank {self.heartbeat.rank}: {describe_hang(last, allowed_s, run, stopped)}", extra=EVERY_RANK)
        ends_s = time.monotonic() + min(_OTHER_RANKS_S, allowed_s)
        while time.monotonic() < ends_s:  # the first to end would take the others with it before their stacks are written
            self._tell(allowed_s)  # or the process beside this rank takes the wait for a held lock
            time.sleep(self.poll_s)
        os._exit(Stopped.exit_code)


def collectives_s(timeouts_s: list[float | None]) -> float | None:
    """Return a timeout of collectives (s), longer than the watchdog of any stage (`timeouts_s`). None (torch's default) if one is None."""
    limits = [limit for limit in timeouts_s if limit is not None]
    return 2 * PATIENCE * max(limits) if len(limits) == len(timeouts_s) else None


def stacks_of(run: Path, rank: int) -> Path:
    """Return the path, RUN/heartbeat/rank-N.stacks, of the stack traces that a hanging rank writes."""
    return heartbeat.path_of(run, rank).with_suffix(".stacks")


def describe_hang(beats: list[dict[str, Any] | None], allowed_s: float, run: Path, stopped: Sequence[int] = ()) -> str:
    """Return a line on a hang: the late ranks, their phase, where the stacks are. `beats`: each rank's last heartbeat, or None.

    `allowed_s`: how long nothing was done. `stopped`: ranks whose process a signal (SIGSTOP) has stopped; the others wait for those.
    """
    fewest = min((beat["beat"] for beat in beats if beat), default=0)
    late = [*stopped] or [rank for rank, beat in enumerate(beats) if beat is None or beat["beat"] == fewest]
    first = beats[late[0]]
    part = f" ({first['part']})" if first and first["part"] else ""
    phase = f"{first['phase']}{part} after step {first['step']}" if first else "its start"
    shown = ", ".join(map(str, late[:_RANKS_SHOWN]))
    shown += f" and {len(late) - _RANKS_SHOWN} more" if len(late) > _RANKS_SHOWN else ""
    who = "every rank" if len(late) == len(beats) > 1 else f"rank{'s' * (len(late) > 1)} {shown}"
    many = len(late) > 1 and who != "every rank"
    what = f"{'were' if many else 'was'} stopped by a signal (SIGSTOP)" if stopped else f"{'are' if many else 'is'} late"
    return (
        f"{who} {what}: in {phase}, with nothing done for "
        f"{allowed_s:g} s (guard.hang_timeout_s); what each rank does is in {run / 'heartbeat'}/rank-*.stacks; the same command continues"
    )
