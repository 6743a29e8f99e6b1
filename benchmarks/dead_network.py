"""What a network that swallows everything costs a run: time per step with W&B and alerts on, against the same run without them.

    OMP_NUM_THREADS=1 python benchmarks/dead_network.py [--rounds 5] [--steps 400]

A server on loopback, a process of its own, takes every connection and never answers. The run is a tiny molmo on drawn scenes, recorded at
every step; W&B (the package itself, online) and an alert at every tenth step, through apprise, talk to that server. Rounds are interleaved.
The first seconds are not counted: the processes beside the run start in them. Told are the medians of the rounds, each of the fastest tenth
of its steps, which other programs on the machine disturb least: wall time, and processor time of the trainer; and whether both runs end at
the same weights. Figures go to benchmarks/results/dead_network.json.
"""

import argparse
import contextlib
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml

from plait.assembly.configuration import open_config
from plait.engine.checkpoints import checkpoint, integrity
from plait.engine.monitoring.beside import process
from plait.engine.monitoring.tracking import Tracker
from plait.engine.state import State
from plait.files import write_json
from plait.training import run
from plait.training.run_context import TrainOptions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results" / "dead_network.json"
WARM_S = 15.0
"""Seconds that are not counted: W&B and apprise are imported in them."""
RECIPE = {
    "family": "molmo",
    "preset": "debug",
    "data": {"train": [{"source": "scenes", "limit": 256, "options": {"size": [32, 32], "objects": [1, 2]}}], "workers": 0},
    "trainable": ["connector", "language"],
    "train": {"global_batch": 4},
    "evaluate": [],
    "checkpoint": {"every_steps": None},
    "track": {"every_steps": 1},
}
DEAD = {"track": {"every_steps": 1, "wandb": {"project": "dead"}}, "alert": {"urls": ["$ALERT_URL"], "on": ["plateau", "finish"]}}


class Clock:
    """A hook of the run: milliseconds of wall and of processor time per counted step."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.at = (0.0, 0.0)
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def __call__(self, state: State, row: dict[str, Any]) -> None:
        now = (time.perf_counter(), time.process_time())
        if time.monotonic() - self.began > WARM_S and self.at[0]:
            self.wall.append(1e3 * (now[0] - self.at[0]))
            self.cpu.append(1e3 * (now[1] - self.at[1]))
        self.at = now


def fastest(times: list[float]) -> float:
    """Return the time that a tenth of the steps do not exceed."""
    return statistics.quantiles(times, n=10)[0]


def trained(folder: Path, steps: int, changes: dict[str, Any]) -> tuple[Clock, dict[str, torch.Tensor]]:
    """Train once; return the clock and the weights at the end."""
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(RECIPE | changes | {"run": str(folder), "train": {"global_batch": 4, "steps": steps}}))
    clock = Clock()
    run.train(open_config(path), TrainOptions(hooks=(clock,)))
    return clock, integrity.locate(checkpoint.published(folder)[0]).tensors("weights")


@contextlib.contextmanager
def dead_network() -> Iterator[None]:
    """Send W&B and alerts to a server that never answers, with an alert at every tenth recorded step."""
    record = Tracker.row

    def row(tracker: Tracker, values: dict[str, Any]) -> None:
        record(tracker, values)
        if values["step"] % 10 == 0:
            tracker.tell("plateau", f"step {values['step']}")

    server = "import sys; from tests import loopback\nwith loopback.swallowing() as port: print(port, flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", server]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as hole_process:
        assert hole_process.stdout is not None
        port = int(hole_process.stdout.readline())
        hole = {"WANDB_MODE": "online", "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": f"http://127.0.0.1:{port}"}
        with mock.patch.dict(os.environ, hole | {"ALERT_URL": f"json://127.0.0.1:{port}/x"}), mock.patch.object(Tracker, "row", row):
            yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400)
    given = parser.parse_args()
    process.CLOSE_TIMEOUT_S = 2.0
    took: dict[str, list[tuple[float, float]]] = {"alone": [], "dead network": []}
    same = []
    with tempfile.TemporaryDirectory() as place:
        for number in range(given.rounds):
            weights = []
            for name in sorted(took, reverse=bool(number % 2)):
                with dead_network() if name == "dead network" else contextlib.nullcontext():
                    clock, last = trained(Path(place) / f"{number}-{name.split()[0]}", given.steps, DEAD if name == "dead network" else {})
                took[name].append((fastest(clock.wall), fastest(clock.cpu)))
                weights.append(last)
            same.append(all(torch.equal(value, weights[1][key]) for key, value in weights[0].items()))
            print(number, {name: [f"{value:.3f}" for value in rounds[-1]] for name, rounds in took.items()}, same[-1], flush=True)
    medians = {name: [statistics.median(values) for values in zip(*rounds, strict=True)] for name, rounds in took.items()}
    ratios = [[dead / alone for dead, alone in zip(b, a, strict=True)] for a, b in zip(took["alone"], took["dead network"], strict=True)]
    wall, cpu = (statistics.median(values) for values in zip(*ratios, strict=True))
    figures = {
        "command": f"python benchmarks/dead_network.py --rounds {given.rounds} --steps {given.steps}",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}",
        "ms_per_step": {name: {"wall": values[0], "cpu": values[1]} for name, values in medians.items()},
        "ratio": {"wall": wall, "cpu": cpu},
        "equal_weights": all(same),
    }
    write_json(RESULTS, figures)
    print(figures)


if __name__ == "__main__":
    main()
