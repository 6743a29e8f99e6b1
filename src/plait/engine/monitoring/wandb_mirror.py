"""Weights & Biases from a process of its own that follows `metrics.jsonl`: a slow or dead network costs training nothing, at no time.

The child gets its orders as one JSON line on standard input, whose end is the run's. It reads the file, so no row waits in the trainer.
"""

import contextlib
import json
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
_NOT_OURS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # a stop is the trainer's to answer; it closes the line when it is ready
_SPELLED = {"nan", "inf", "-inf"}  # how metrics.jsonl writes them


class WandB:
    """The trainer's side. Rows reach W&B by way of `metrics.jsonl`, from where it ends now."""

    def __init__(self, run: Path, settings: Wandb, config: Mapping[str, Any], identity: str):
        metrics = run / "metrics.jsonl"
        start = {"project": settings.project, "entity": settings.entity, "name": settings.name or run.name, "config": dict(config)}
        start |= {"mode": os.environ.get("WANDB_MODE", settings.mode), "id": identity, "resume": "allow", "dir": str(run)}
        orders = {"start": start, "metrics": str(metrics), "from": metrics.stat().st_size if metrics.exists() else 0}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "plait.engine.monitoring.wandb_mirror"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "WANDB_SILENT": "true"},
            text=True,
            start_new_session=True,
        )
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has failed already, and said so
            self.process.stdin.write(json.dumps(orders) + "\n")
            self.process.stdin.flush()

    def row(self, row: Mapping[str, Any]) -> None:
        """The child finds it in the file."""

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """They stay here, in TensorBoard and as files of the run: only what is in `metrics.jsonl` travels."""

    def close(self) -> None:
        """Give the child some seconds to send what is left, then end it."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(_CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            print(f"W&B has not taken the last rows within {_CLOSE_TIMEOUT_S:g} s; metrics.jsonl has every row", file=sys.stderr)


def rows(file: IO[str], ended: threading.Event) -> Iterator[dict[str, Any]]:
    """Whole lines of a file that grows, until it has been read to its end after `ended`."""
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
    """What W&B draws: the row's numbers, apart from its step."""
    values = {name: float(value) if value in _SPELLED else value for name, value in row.items() if name != "step"}
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def _listen(ended: threading.Event) -> None:
    sys.stdin.read()
    ended.set()
    timer = threading.Timer(_ORPHAN_S, os._exit, (1,))
    timer.daemon = True
    timer.start()


def main() -> None:
    """Follow the file, and say in one line why, when that cannot be done."""
    for name in _NOT_OURS:
        signal.signal(name, signal.SIG_IGN)
    orders = json.loads(sys.stdin.readline())
    ended = threading.Event()
    threading.Thread(target=_listen, args=(ended,), daemon=True).start()
    try:
        import wandb

        session = wandb.init(**orders["start"], settings=wandb.Settings(silent=True))
        Path(orders["metrics"]).touch()
        with open(orders["metrics"], encoding="utf-8") as file:
            file.seek(orders["from"])
            for row in rows(file, ended):
                session.log(numbers(row), step=row["step"])
        session.finish()
    except Exception as error:  # noqa: BLE001  a mirror must not stop a run
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason += ": pip install 'plait[wandb]'" if isinstance(error, ModuleNotFoundError) else ""
        print(f"W&B is off for this run: {reason}; metrics.jsonl has every row", file=sys.stderr, flush=True)
        os._exit(1)  # its own threads may wait for a network that is gone


if __name__ == "__main__":
    main()
