"""Ends a run that hangs, and says who is late: before the collective that the other ranks wait in gives up, which would tell nobody.

Each rank watches itself, from a thread: silent for too long, it writes the stacks of all its threads to RUN/heartbeat/rank-N.stacks, reads
the heartbeats of the others, and ends the process. In a hang every rank falls silent, so all stacks are there; healthy ranks read nothing.
A rank that holds Python's lock, where no thread of its own can run, is ended by faulthandler's timer, which needs no lock.
"""

import faulthandler
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from plait.engine.monitoring import heartbeat
from plait.engine.monitoring.heartbeat import Heartbeat
from plait.engine.parallel.distributed import Ranks
from plait.errors import Stopped

SETTING_UP = ("start", "stage")
"""Phases in which models are read and compiled: they may take longer."""
PATIENCE = 3
"""How many times longer."""

_LOOKS = 20  # per time allowed
_POLL_MAX_S = 5.0
_LAST_WORDS_S = 2 * _POLL_MAX_S  # for the other ranks to fall silent too and write their stacks, at most


class Watchdog:
    """Watches one rank while entered. `timeout_s` None: it only ends the rank, as asked, when torchrun is gone."""

    def __init__(self, heart: Heartbeat, ranks: Ranks, timeout_s: float | None):
        self.heart, self.ranks, self.timeout_s = heart, ranks, timeout_s
        self.parent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="plait-watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self.stacks = open(stacks_of(self.heart.run, self.heart.rank), "w", encoding="utf-8")
        self._arm()  # before the thread's first look, for which Python's lock may never be free
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self.stacks.close()

    @property
    def poll_s(self) -> float:
        """How often it looks."""
        return min(_POLL_MAX_S, self.timeout_s / _LOOKS) if self.timeout_s else _POLL_MAX_S

    def _watch(self) -> None:
        while not self._left.wait(self.poll_s):
            if self.parent is not None and os.getppid() != self.parent:
                self.parent = None
                os.kill(os.getpid(), signal.SIGTERM)  # nobody is left to start this rank again or to end it: save and stop
            allowed_s = self._arm()
            if allowed_s is not None and time.monotonic() - self.heart.last_s > allowed_s:
                self._end(allowed_s)

    def _arm(self) -> float | None:
        """Have faulthandler end this rank should nothing else be able to; returns how long the rank may be silent now."""
        if self.timeout_s is None:
            faulthandler.cancel_dump_traceback_later()
            return None
        allowed_s = self.timeout_s * (PATIENCE if self.heart.name in SETTING_UP else 1)
        faulthandler.dump_traceback_later(allowed_s + self.poll_s, exit=True, file=self.stacks)
        return allowed_s

    def _end(self, allowed_s: float) -> None:
        faulthandler.dump_traceback(self.stacks)
        self.stacks.flush()
        beats = [heartbeat.read(self.heart.run, rank) for rank in range(self.ranks.size)]
        print(f"plait: rank {self.heart.rank}: {told(beats, allowed_s, self.heart.run)}", file=sys.stderr, flush=True)
        time.sleep(min(_LAST_WORDS_S, allowed_s))  # the first to end would take the others with it before their stacks are written
        os._exit(Stopped.exit_code)


def collectives_s(timeouts_s: list[float | None]) -> float | None:
    """How long collectives may wait where ranks are watched with these limits: longer than any. None: as long as torch lets them."""
    limits = [limit for limit in timeouts_s if limit is not None]
    return 2 * PATIENCE * max(limits) if len(limits) == len(timeouts_s) else None


def stacks_of(run: Path, rank: int) -> Path:
    """Where the stacks of a rank that hung are."""
    return heartbeat.path_of(run, rank).with_suffix(".stacks")


def told(beats: list[dict[str, Any] | None], allowed_s: float, run: Path) -> str:
    """One line: which ranks have the fewest beats, in what, and where everyone's stacks are."""
    fewest = min((beat["beat"] for beat in beats if beat), default=0)
    late = [rank for rank, beat in enumerate(beats) if beat is None or beat["beat"] == fewest]
    first = beats[late[0]]
    part = f" ({first['part']})" if first and first["part"] else ""
    place = f"{first['phase']}{part} after step {first['step']}" if first else "its start"
    whose = ", ".join(map(str, late[:8])) + (f" and {len(late) - 8} more" if len(late) > 8 else "")
    who = "every rank is" if len(late) == len(beats) > 1 else f"rank{'s' * (len(late) > 1)} {whose} {'are' if len(late) > 1 else 'is'}"
    return (
        f"{who} late: in {place}, with nothing done for {allowed_s:g} s (guard.hang_timeout_s); what each rank does is in "
        f"{run / 'heartbeat'}/rank-*.stacks; the same command continues"
    )
