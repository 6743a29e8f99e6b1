"""What a network that swallows everything costs a run with W&B, alerts, pushes to the Hub and a mirror.

    pip install s3fs
    OMP_NUM_THREADS=1 python benchmarks/dead_network.py [--seconds 60] [--blocks 100] [--runs 5] [--steps 1500]

A server on loopback, a process of its own, takes every connection and never answers; W&B (the package itself, online), alerts through
apprise, pushes by huggingface_hub and a mirror at s3:// talk to it. First, in processor time, which other programs disturb little: that of
the trainer for a recorded step, with W&B and alerts and without (the median of 3,000), and the share of one core that their processes take
once they have started, while ten rows a second come. Second one run of a tiny nanodit with all four, whose processes are halted for every
other block of 25 steps: the median time of a step in a block while they work, over that in the block before it. Third whole runs with a
checkpoint every hundred steps, alone and with all four, in turns: the median time of a step, by the clock and by the trainer's processor
time, and their ratios, of which the median and the extremes are told, for a machine that does nothing else. The first steps are not
counted, in which the processes beside the run start. Weights are compared. `--seconds 0`, `--blocks 0` and `--runs 0` leave a part out, and
its figures as they were. The mirror is left out where s3fs is not installed, which the figures say; it is not read at the start, where a
dead network ends the run in a line. Figures go to benchmarks/results/dead_network.json. That rows are the same is held by
tests/training/test_black_hole.py.
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import platform
import signal
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

from plait.assembly.configuration import open_config
from plait.commands.actions.publishing import beside as pushing
from plait.config.sections.alert import Alert
from plait.config.sections.track import Wandb
from plait.engine.checkpoints import checkpoint
from plait.engine.monitoring.alerts import Alerts
from plait.engine.monitoring.beside import process, trackers
from plait.engine.monitoring.beside.shown import KeptPictures
from plait.engine.monitoring.tracking import Tracker
from plait.files import write_json
from plait.training import run as training
from plait.training.launch import descendants
from plait.training.run_context import TrainOptions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "dead_network.json"
START_S, ROWS = 25.0, 3000
UNCOUNTED = 0.3
"""Share of a run's steps at its start that is not counted."""
BLOCK = 25
"""Steps for which the processes beside a run work, or stand still."""
TALKING = ["track.wandb={project: dead}", "alert=[$ALERT_URL]", "alert.on=[finish, warning]", "hub={repo: someone/dead, push: every_save}"]
RECIPE = """
family: nanodit
data: {{train: [{{source: scenes, limit: 64, options: {{size: [32, 32], objects: [1, 2], tasks: [caption]}}}}], workers: 0}}
train: {{steps: {steps}, global_batch: 8}}
checkpoint: {{every_steps: 100, keep: 2, reference: false, best: null}}
model: {{space: pixels, depth: 2, hidden: 96, heads: 4, patch: 4, image_size: 32, text: words, text_dim: 32, words: 64, image_dim: 0,
        dropout: {{neither: 0.1, text_only: 0.0, image_only: 0.0}}}}
track: {{tensorboard: false, every_steps: 10}}
guard: {{blindness: false, forgetting: null}}
"""
ROW = {f"figure/{number}": 1.0 * number for number in range(40)}
SERVER = "import sys; from tests import loopback\nwith loopback.swallowing() as port: print(port, flush=True); sys.stdin.read()"


@contextlib.contextmanager
def dead_network() -> Iterator[int]:
    """Point W&B and $ALERT_URL at a server that never answers; yield the server's process id."""
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        url = f"http://127.0.0.1:{port}"
        hole = {"WANDB_MODE": "online", "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": url, "ALERT_URL": f"json://127.0.0.1:{port}/x"}
        hole |= {"HF_ENDPOINT": url, "HF_TOKEN": "hf_" + "0" * 30}
        hole |= {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_EC2_METADATA_DISABLED": "true"}
        with mock.patch.dict(os.environ, hole):
            yield server.pid


def microseconds(tracker: Tracker) -> float:
    """Return the median processor time of a recorded step in this process."""
    took = []
    for step in range(ROWS):
        row = {**ROW, "step": step}
        began = time.process_time()
        tracker.advance(row)
        tracker.row(row)
        took.append(1e6 * (time.process_time() - began))
    return statistics.median(took)


def processor_s(pids: list[int]) -> float:
    """Return the processor time that processes have taken."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def beside_a_run(seconds: float, place: Path, server: int) -> dict[str, Any]:
    """Return what W&B and alerts take of the trainer's processor time, and of a core beside it."""
    alone, run = place / "alone", place / "run"
    alone.mkdir()
    run.mkdir()
    alerts = Alerts(run, Alert(urls=["$ALERT_URL"], on=["plateau"]))
    tracker = Tracker(run, [KeptPictures(run), trackers.wandb_mirror(run, Wandb(project="dead"), {}, "abc123")], alerts=alerts)
    alerts.tell("plateau", "the first")
    time.sleep(START_S)
    beside = [pid for pid in descendants(os.getpid()) if pid != server]
    start_s, began = processor_s(beside), time.monotonic()
    step = 0
    while (passed := time.monotonic() - began) < seconds:
        step += 1
        tracker.row({**ROW, "step": step})
        if step % 50 == 0:
            alerts.tell("plateau", f"step {step}")
        time.sleep(0.1)
    share = (processor_s(beside) - start_s) / passed
    of_a_row = {"alone": microseconds(Tracker(alone, [])), "with both": microseconds(tracker)}
    tracker.close()
    alerts.process.close()
    processes = {"count": len(beside), "start_processor_s": start_s, "share_of_a_core": share}
    return {"trainer_us_per_recorded_step": of_a_row, "processes": processes}


Moment = tuple[float, float]
"""The clock and this process's processor time, in seconds."""


def talking() -> list[str]:
    """Return the overrides of a run with all that talks to the network; the mirror where s3fs is installed."""
    return [*TALKING, *(["checkpoint.mirror=s3://dead/run"] if importlib.util.find_spec("s3fs") else [])]


def halted_in_turns(blocks: int, place: Path, server: int) -> dict[str, Any]:
    """Return how much longer a step takes while the processes beside its run work than while they are halted, over `blocks` pairs."""
    recipe, first = place / "turns.yaml", 1000
    last = first + 2 * BLOCK * blocks
    recipe.write_text(RECIPE.format(steps=last), encoding="utf-8")

    def turn(state: Any, _: Any) -> None:
        if first <= state.step < last and (state.step - first) % BLOCK == 0:  # at the end they work
            works = (state.step - first) // BLOCK % 2
            for pid in {*descendants(os.getpid())} - {server}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT if works else signal.SIGSTOP)

    moments = moments_of(recipe, place / "turns", server, *talking(), hook=turn)[first:]
    ratios: dict[str, list[float]] = {}
    for i, name in enumerate(("clock_ms", "processor_ms")):
        times = [after[i] - before[i] for before, after in itertools.pairwise(moments)]
        halves = [statistics.median(times[at + 2 : at + BLOCK]) for at in range(0, len(times) - BLOCK + 1, BLOCK)]
        ratios[name] = sorted(halves[at + 1] / halves[at] for at in range(0, len(halves) - 1, 2))
    return {
        "command": f"python benchmarks/dead_network.py --seconds 0 --runs 0 --blocks {blocks}",
        "load_at_the_end": os.getloadavg()[0],
        "ratio_median": {name: statistics.median(values) for name, values in ratios.items()},
        "ratio_interval_95": {name: list(interval_of_median(values)) for name, values in ratios.items()},
    }


def interval_of_median(ordered: list[float]) -> tuple[float, float]:
    """Return the order statistics that hold the median of what `ordered` is drawn from with 95 %."""
    reach = 0.98 * len(ordered) ** 0.5
    return ordered[max(0, int(len(ordered) / 2 - reach))], ordered[min(len(ordered) - 1, int(len(ordered) / 2 + reach))]


def moments_of(recipe: Path, run: Path, server: int, *overrides: str, hook: Any = None) -> list[Moment]:
    """Train, and return the moment at the end of each step, before which `hook` is called. The processes beside the run are killed."""
    moments: list[Moment] = []
    resolved = open_config(recipe, [f"run={run}", *overrides])
    pushes = [pushing.Pushes(run, resolved, resolved.config.hub)] if resolved.config.hub is not None else []
    beside = [*pushes, *([hook] if hook else [])]
    training.train(resolved, TrainOptions(hooks=(*beside, lambda state, row: moments.append((time.monotonic(), time.process_time())))))
    for side in pushes:
        side.leave()  # at its end a run waits for ten minutes without success, which is not measured
    for pid in {*descendants(os.getpid())} - {server}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return moments


def trained(recipe: Path, run: Path, server: int, *overrides: str) -> dict[str, float]:
    """Train, and return the median milliseconds of a step, by the clock and by this process's processor time."""
    moments = moments_of(recipe, run, server, *overrides)
    steps = [*itertools.pairwise(moments)][int(UNCOUNTED * len(moments)) :]
    return {
        name: 1e3 * statistics.median(after[i] - before[i] for before, after in steps)
        for i, name in enumerate(("clock_ms", "processor_ms"))
    }


def whole_runs(rounds: int, steps: int, place: Path, server: int) -> dict[str, Any]:
    """Return the medians of runs with and without all that talks to the network, in turns, and whether their weights are equal."""
    recipe = place / "recipe.yaml"
    recipe.write_text(RECIPE.format(steps=steps), encoding="utf-8")
    medians: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    equal, load = True, os.getloadavg()[0]
    for turn in range(rounds):
        for dead in (False, True) if turn % 2 else (True, False):
            medians[dead].append(trained(recipe, place / f"{turn}-{dead}", server, *(talking() if dead else ())))
        weights = [checkpoint.read(checkpoint.published(place / f"{turn}-{dead}")[0]).tensors("weights") for dead in (False, True)]
        equal &= weights[0].keys() == weights[1].keys() and all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    ratios = {name: sorted(b[name] / a[name] for a, b in zip(medians[False], medians[True], strict=True)) for name in medians[True][0]}
    return {
        "command": f"python benchmarks/dead_network.py --seconds 0 --blocks 0 --runs {rounds} --steps {steps}",
        "with": [line.partition("=")[0] for line in talking()],
        "load_at_the_beginning": load,
        "alone": medians[False],
        "with_all": medians[True],
        "ratio_median": {name: statistics.median(values) for name, values in ratios.items()},
        "ratio_least_most": {name: [values[0], values[-1]] for name, values in ratios.items()},
        "weights_equal": equal,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=100)
    parser.add_argument("--steps", type=int, default=1500)
    given = parser.parse_args()
    process.CLOSE_TIMEOUT_S = 1.0
    torch.set_num_threads(1)
    figures: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    figures |= {"machine": f"{os.cpu_count()} cores, {platform.machine()}"}
    with tempfile.TemporaryDirectory() as place, dead_network() as server:
        if given.seconds:
            figures |= {"command": f"python benchmarks/dead_network.py --seconds {given.seconds:g} --blocks 0 --runs 0"}
            figures |= beside_a_run(given.seconds, Path(place), server)
        if given.blocks:
            figures["halted_in_turns"] = halted_in_turns(given.blocks, Path(place), server)
        if given.runs:
            figures["whole_runs"] = whole_runs(given.runs, given.steps, Path(place), server)
    write_json(RESULTS, figures)
    print(figures)


if __name__ == "__main__":
    main()
