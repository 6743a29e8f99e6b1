"""Keep a run's page up to date while it trains (`track.report_every_steps`), in a process of its own.

What goes wrong with the page is a warning: the run goes on.
"""

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from plait.config.resolved import Resolved
from plait.engine.loop import Hook
from plait.engine.state import State
from plait.errors import command

log = logging.getLogger(__name__)

_NICENESS = 10
_LONGEST_S = 600.0
"""Seconds that the last page may take before it is given up."""


_left: list[subprocess.Popen[bytes]] = []
"""Processes that write on after the run has ended, kept here as Python warns of those that are dropped."""


class Refresh:
    """A hook of the loop that starts `plait report RUN` every so many steps, unless one is at work still.

    `every_steps`: by the number of a stage, in steps of it; None: the page is not refreshed in it.
    """

    def __init__(self, run: Path, every_steps: Mapping[int, int | None]) -> None:
        self.run, self.every_steps = run, every_steps
        self.called, self.told = False, False
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None

    def __call__(self, state: State, row: Mapping[str, Any]) -> None:
        """Start a page where one is due after the step of `row`."""
        every = self.every_steps.get(state.stage)
        self.called = True
        if every is not None and state.stage_step % every == 0 and (self._process is None or self._process.poll() is not None):
            self._end(0)
            self._start("--no-plan")

    def finish(self) -> None:
        """Write the last page and wait for it; nothing where no step was taken."""
        if self.called:
            self._end(_LONGEST_S)
            self._start()
            self._end(_LONGEST_S)

    def leave(self) -> None:
        """Start a last page and do not wait for it; nothing where no step was taken."""
        if self.called:
            self._end(0)
            self._start("--no-plan")
            if self._process is not None:
                _left.append(self._process)
            if self._errors is not None:
                self._errors.close()

    def _start(self, *options: str) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed when the process has ended
        try:
            words = [sys.executable, "-m", "plait", "report", str(self.run), *options]
            self._process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._errors, start_new_session=True
            )
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, self._process.pid, _NICENESS)
        except OSError as error:
            self._process = None
            self._warn(str(error))

    def _end(self, wait_s: float) -> None:
        """Wait so long for the page that is being written, and say, once a start, if it failed."""
        process, errors = self._process, self._errors
        self._process = self._errors = None
        if errors is None:
            return
        with errors:
            if process is None:
                return
            try:
                code = process.wait(wait_s) if wait_s else process.poll()
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                self._warn(f"it took more than {wait_s:g} s")
                return
            if code:
                errors.seek(0)
                lines = errors.read().decode(errors="backslashreplace").strip().splitlines()
                self._warn(lines[-1] if lines else f"exit code {code}")

    def _warn(self, reason: str) -> None:
        if not self.told:
            self.told = True
            log.warning(
                f"the page of the run could not be written: {reason}; training goes on, and `{command('report', self.run)}` tries again"
            )


@contextlib.contextmanager
def refreshed(resolved: Resolved) -> Iterator[tuple[Hook, ...]]:
    """Yield hooks that refresh the page of a run while the block trains it; write it once more at its end.

    () where no stage sets `track.report_every_steps`, and on every rank but the first.
    """
    every = {view.index: view.config.track.report_every_steps for view in resolved.stages}
    if not any(every.values()) or os.environ.get("RANK", "0") != "0":
        yield ()
        return
    page = Refresh(Path(str(resolved.config.run)), every)
    try:
        yield (page,)
    except BaseException:  # such as a signal, after which a launcher allows some seconds
        page.leave()
        raise
    page.finish()
