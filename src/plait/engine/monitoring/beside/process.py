"""A process beside a run that talks to a network or another program, so that training never waits for either.

It gets its settings as one JSON line on standard input, then further lines, and its end when that is closed: the run has ended, or was
killed. What it has to say goes back as JSON lines on its standard output, which the run's own log shows. `SideProcess` is the run's end,
`Inbox` that of the process.
"""

import contextlib
import json
import logging
import math
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any, NoReturn

CLOSE_TIMEOUT_S = 15.0
"""Seconds for what is left to be sent, when the run ends."""
_ORPHAN_S = 60.0  # for the same, when the trainer was killed
_RESTARTS = 3  # of a process that was killed
# The trainer handles these signals, and closes standard input when it is ready to stop.
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
_READ_BYTES = 1 << 16

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Words:
    """How messages name a side process. `does`: "sends metrics to W&B". `keeps`: what is safe, "metrics.jsonl has every row".

    `late`: what it has not done at its end, "W&B has not taken the last rows"; `lost`: what may be missing then, "W&B may lack rows".
    `end`: what holds when it is late, None: what `keeps` says.
    """

    does: str
    keeps: str
    late: str
    lost: str
    end: str | None = None


class SideProcess:
    """Starts `python -m MODULE` with `settings` (JSON values), in a session of its own; signals to stop do not end it."""

    def __init__(self, module: str, settings: Mapping[str, Any], words: Words, environment: Mapping[str, str]) -> None:
        self.words = words
        self._command, self._settings = [sys.executable, "-m", module], dict(settings)
        self._environment = {**os.environ, **environment}
        self._restarts = _RESTARTS
        self._unread = b""
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self._environment,
            start_new_session=True,
            bufsize=0,
        )
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has failed already
            waiting = memoryview(json.dumps(self._settings).encode() + b"\n")
            while waiting:
                waiting = waiting[process.stdin.write(waiting) or 0 :]
        os.set_blocking(process.stdin.fileno(), False)
        os.set_blocking(process.stdout.fileno(), False)
        return process

    def look(self) -> None:
        """Log what the process has said; where a signal ended it, start another with the same settings, three times at most."""
        self._log_said()
        code = self.process.poll()
        if code is None or code >= 0 or not self._restarts:  # with a code of its own it has said what fails
            return
        self._end_group()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._unread = b""
        self._restarts -= 1
        again = "it is started again" if self._restarts else "it is started a last time"
        log.warning(f"the process that {self.words.does} was killed by signal {-code}: {again}; {self.words.keeps}")
        self.process = self._start()

    def send(self, line: Mapping[str, Any]) -> bool:
        """Write a line to the process; returns whether it took it. Never waits: a process that is gone or stopped takes none."""
        self.look()
        assert self.process.stdin is not None
        body = json.dumps(line).encode() + b"\n"
        try:
            return self.process.stdin.write(body) == len(body)  # a line is shorter than what a pipe takes whole or not at all
        except OSError:
            return False

    def close(self, *, patient: bool = False) -> None:
        """Close the standard input of the process, give it some seconds to end, then kill it. `patient`: as long as it takes."""
        self.look()
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        code = self._wait(math.inf if patient else time.monotonic() + CLOSE_TIMEOUT_S)
        if code is None:
            self._end_group()
            self.process.wait()
            self._log_said()
            log.warning(f"{self.words.late} within {CLOSE_TIMEOUT_S:g} s; {self.words.end or self.words.keeps}")
        elif code < 0:
            self._end_group()
            log.warning(f"the process that {self.words.does} was killed by signal {-code}: {self.words.lost}")
        assert self.process.stdout is not None
        self.process.stdout.close()

    def kill(self) -> None:
        """Kill the process, and what it has started."""
        self._end_group()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def leave(self) -> "subprocess.Popen[bytes]":
        """Close the pipes to the process, which ends by itself when it has no more to do, and return it."""
        self.look()
        assert self.process.stdin is not None and self.process.stdout is not None
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        return self.process

    def _wait(self, deadline: float) -> int | None:
        """Wait for the process to end, and log what it says; returns its exit code, None at the deadline (monotonic clock)."""
        while True:
            left = deadline - time.monotonic()
            try:
                code = self.process.wait(max(0.0, min(left, 0.2)))
            except subprocess.TimeoutExpired:
                code = None
            self._log_said()
            if code is not None or left <= 0:
                return code

    def _end_group(self) -> None:
        """Kill what the process started, such as a service of wandb's, and close the pipe to it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def _log_said(self) -> None:
        """Log the whole lines that the process has written since the last look."""
        assert self.process.stdout is not None
        with contextlib.suppress(BlockingIOError):
            while read := os.read(self.process.stdout.fileno(), _READ_BYTES):
                self._unread += read
        *lines, self._unread = self._unread.split(b"\n")
        for line in lines:
            said = json.loads(line)
            log.log(logging.WARNING if said["warning"] else logging.INFO, said["text"])


class Inbox:
    """The side of the process: its `settings`, and the lines that come. Signals that ask a run to stop are ignored from now on.

    Standard output becomes /dev/null for what libraries print there; `say` alone writes to the run. `orphan_s`: how long the process may
    go on when the run has closed standard input, or was killed; None: as long as it has work.
    """

    def __init__(self, orphan_s: float | None = _ORPHAN_S) -> None:
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        self._out: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf-8")
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
        self.settings: dict[str, Any] = json.loads(sys.stdin.readline())
        self.ended = threading.Event()
        """Set when the run has closed standard input, or was killed."""
        self._orphan_s = orphan_s
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._let_go, daemon=True).start()

    def _let_go(self) -> None:
        """Wait until the run no longer listens, and write standard error to nowhere then: what reads the run's would wait for its end."""
        listening = select.poll()
        listening.register(self._out.fileno(), 0)
        if any(flags & (select.POLLERR | select.POLLHUP) for _, flags in listening.poll()):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)

    def _read(self) -> None:
        for line in sys.stdin:
            if line.endswith("\n"):
                self._lines.put(json.loads(line))
        self.ended.set()
        self._lines.put(None)
        if self._orphan_s is not None:
            timer = threading.Timer(self._orphan_s, os._exit, (1,))
            timer.daemon = True
            timer.start()

    def next(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        """Return the next line, None when there will be none. Raises TimeoutError where none has come in `timeout_s`; None: waits on."""
        try:
            return self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError from None

    def say(self, text: str, *, warning: bool) -> None:
        """Have the run log a line, as a warning or as information. Where the run is gone, nobody reads it."""
        with contextlib.suppress(OSError):
            self._out.write(json.dumps({"text": text, "warning": warning}) + "\n")
            self._out.flush()

    def give_up(self, text: str) -> NoReturn:
        """Say a last line, as a warning, and end the process at once: a library's threads may wait for a dead network."""
        self.say(text, warning=True)
        os._exit(1)
