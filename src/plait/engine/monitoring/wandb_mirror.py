"""The mirror to Weights & Biases: a child process that follows `metrics.jsonl`, so that a slow or dead network never delays training.

The child gets its settings as one JSON line on standard input, which is closed when the run ends. It reads the file, so no row waits in
the trainer. In the child, `main` is the program: what it writes goes to standard error directly.
W&B's own count of steps only grows, and drops rows of a step that a run repeats; so each row has its `step` as a value, against which
charts are drawn, and W&B counts rows.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from plait.config.schema import Wandb

_CLOSE_TIMEOUT_S = 15.0  # for the last rows, when the run ends
_ORPHAN_S = 60.0  # for the same, when the trainer was killed
_LOOK_EVERY_S = 0.5
_RESTARTS = 3  # of a child that was killed
# The trainer handles these signals, and closes the mirror's standard input when it is ready to stop.
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
_NOT_FINITE = ("nan", "inf", "-inf")  # as metrics.jsonl writes them

log = logging.getLogger(__name__)


class WandB:
    """Mirrors metrics to Weights & Biases: starts a child process, which sends the rows that `metrics.jsonl` gains from now on.

    `run`: the run directory. `settings`: project, entity, name and mode (`track.wandb`). `config`: the run's configuration, shown at W&B.
    `identity`: the run's id at W&B.
    """

    def __init__(self, run: Path, settings: Wandb, config: Mapping[str, Any], identity: str) -> None:
        metrics = run / "metrics.jsonl"
        start = {"project": settings.project, "entity": settings.entity, "name": settings.name or run.name, "config": dict(config)}
        start |= {"mode": os.environ.get("WANDB_MODE", settings.mode), "id": identity, "resume": "allow", "dir": str(run)}
        self._settings = {"start": start, "metrics": str(metrics), "from": metrics.stat().st_size if metrics.exists() else 0}
        self._restarts = _RESTARTS
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "plait.engine.monitoring.wandb_mirror"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "WANDB_SILENT": "true"},
            text=True,
            start_new_session=True,
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has failed already, and said so
            process.stdin.write(json.dumps(self._settings) + "\n")
            process.stdin.flush()
        return process

    def row(self, row: Mapping[str, Any]) -> None:
        """Start the child process again if it was killed. `row` is not used: the child reads rows from `metrics.jsonl`."""
        self._restart_killed()

    def _restart_killed(self) -> None:
        """Start another child, some times, where a signal ended this one. It sends this start's rows anew: the same points."""
        code = self.process.poll()
        if code is None or code >= 0 or not self._restarts:  # with a code of its own it has said what fails
            return
        self._end_group()
        self._restarts -= 1
        again = "it is started again" if self._restarts else "it is started a last time"
        log.warning(f"the process that sends metrics to W&B was killed by signal {-code}: {again}; metrics.jsonl has every row")
        self.process = self._start()

    def _end_group(self) -> None:
        """Kill what the child started, such as wandb's own service, and close the pipe to it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Do nothing: pictures stay in TensorBoard and in files of the run, only what is in `metrics.jsonl` is sent."""

    def close(self) -> None:
        """Give the child process some seconds to send the remaining rows, then kill it."""
        self._restart_killed()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            code = self.process.wait(_CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._end_group()
            self.process.wait()
            log.warning(f"W&B has not taken the last rows within {_CLOSE_TIMEOUT_S:g} s; metrics.jsonl has every row")
        else:
            if code < 0:
                self._end_group()
                log.warning(f"the process that sends metrics to W&B was killed by signal {-code}: W&B may lack rows of metrics.jsonl")


def rows(file: IO[str], ended: threading.Event) -> Iterator[dict[str, Any]]:
    """Yield the lines of a growing JSON Lines file as dicts; once `ended` is set, stop at the file's end."""
    part = ""
    while True:
        last = ended.is_set()
        while line := file.readline():
            part += line
            if part.endswith("\n"):
                yield json.loads(part)
                part = ""
        if last:
            return
        ended.wait(_LOOK_EVERY_S)


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a row of metrics that W&B plots: without `step` and strings, but with "nan" and "inf" as floats."""
    values = {name: float(value) if value in _NOT_FINITE else value for name, value in row.items() if name != "step"}
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def _wait_for_end(ended: threading.Event) -> None:
    """Set `ended` when standard input is closed, and end the process some time later."""
    sys.stdin.read()
    ended.set()
    timer = threading.Timer(_ORPHAN_S, os._exit, (1,))
    timer.daemon = True
    timer.start()


def main() -> None:
    """Send rows that `metrics.jsonl` gains to W&B until standard input closes: the program of the process that `WandB` starts.

    Standard input begins with a line of JSON, {"start": the arguments of wandb.init, "metrics": path of metrics.jsonl, "from": the byte to
    begin at}. Any failure becomes one line on standard error.
    """
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    settings = json.loads(sys.stdin.readline())
    ended = threading.Event()
    threading.Thread(target=_wait_for_end, args=(ended,), daemon=True).start()
    try:
        import wandb

        session = wandb.init(**settings["start"], settings=wandb.Settings(silent=True))
        session.define_metric("step")
        session.define_metric("*", step_metric="step")
        metrics = Path(settings["metrics"])
        metrics.touch()
        with metrics.open(encoding="utf-8") as file:
            file.seek(settings["from"])
            for row in rows(file, ended):
                session.log({"step": row["step"], **numbers(row)})
        session.finish()
    except Exception as error:  # noqa: BLE001  a mirror must not stop a run
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason += ": pip install 'plait[wandb]'" if isinstance(error, ModuleNotFoundError) else ""
        sys.stderr.write(f"W&B is off for this run: {reason}; metrics.jsonl has every row\n")  # whole lines are never held back
        os._exit(1)  # W&B's threads may wait for a network that is gone


if __name__ == "__main__":
    main()
