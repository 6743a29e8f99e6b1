"""What a training loop costs beside the training: microseconds per step of a bare PyTorch loop, plait, HF Trainer, accelerate, Fabric.

    OMP_NUM_THREADS=1 python benchmarks/overhead.py [--rounds 5] [--steps 500]

Equal work: one tiny model, one start, fused AdamW without decay on vectors, gradient clipping, a cosine schedule, float32, one process on
the CPU, batches of 16. All record their figures every 10 steps in TensorBoard files, plait in metrics.jsonl too; the bare loop is measured
without a record as well. plait also checks every step for numbers that are not finite or stand out. Fabric is measured where
lightning-fabric is installed. Measured twice: with ready batches, which is the loop alone (and then all must end at the same weights), and
each with its own loader, 0 workers, over the same samples in memory. The first steps are not counted. Rounds are interleaved, in another
order each, and the median is told: wall time, and processor time, which other programs on the machine disturb less. The table goes to the
screen, the figures to benchmarks/results/overhead.json.
"""

import argparse
import contextlib
import gc
import importlib.metadata
import io
import os
import platform
import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from overhead_parts import peers
from overhead_parts.work import BATCH, BETAS, CLIP, DECAY, EPS, LOG_EVERY, LR, SAME, SAMPLES, WARM, Batch, Clock, Net, Ready, Samples, ready
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import default_collate

from plait.config.schema import RunConfig
from plait.data.loading.loader import Loader, MicroBatch, StepBatch
from plait.data.order import Order, SampleId
from plait.engine.flops import Meter
from plait.engine.guards import Quarantine
from plait.engine.loop import Hook, Loop, Row
from plait.engine.loss import Loss
from plait.engine.monitoring.signals import Signals
from plait.engine.monitoring.spikes import SpikeWatch
from plait.engine.monitoring.tracking import Tracker, open_tracker
from plait.engine.parallel.distributed import Ranks
from plait.engine.state import State
from plait.files import write_json

RESULTS = Path(__file__).resolve().parent / "results" / "overhead.json"


class CrossEntropy(Loss):
    """The same loss by plait's contract: a sum, and a weight."""

    coefficients = {"answer": 1.0}  # noqa: RUF012

    def weights(self, batch: Batch) -> Batch:
        return {"answer": torch.tensor(float(len(batch["labels"])), dtype=torch.float64)}

    def sums(self, model: nn.Module, batch: Batch) -> Batch:
        return {"answer": F.cross_entropy(model(batch["x"]), batch["labels"], reduction="sum")}


class Inputs:
    """A family's side of plait's loader."""

    def encode(self, sample: dict[str, Any], key: int) -> dict[str, Tensor]:
        return {"x": sample["x"], "labels": sample["labels"]}

    def collate(self, examples: list[dict[str, Tensor]]) -> Batch:
        return default_collate(examples)


def recording(tracker: Tracker) -> Hook:
    """Record every 10th row, as a stage does."""

    def record(state: State, row: Row) -> None:
        if state.stage_step % LOG_EVERY == 0:
            tracker.row(row)

    return record


def plait(net: Net, batches: Ready | None, samples: Samples, clock: Clock, folder: Path) -> None:
    config = RunConfig.model_validate(
        {
            "family": "bench",
            "train": {"steps": clock.steps, "global_batch": BATCH, "grad_clip": CLIP},
            "optim": {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": DECAY},
            "track": {"every_steps": LOG_EVERY},
        }
    )
    state = State(net)
    state.begin({"net": dict(net.named_parameters())}, config.optim)
    ranks = Ranks(0, 1, torch.device("cpu"))
    with contextlib.closing(open_tracker(folder, config, "bench", state)) as tracker:
        loop = Loop(
            stage="train",
            state=state,
            loss=CrossEntropy(),
            config=config,
            ranks=ranks,
            quarantine=Quarantine(folder / "quarantine.jsonl", 0.01),
            hooks=[recording(tracker), lambda state, row: clock.tick(state.step)],
            stop=Signals(),
            mark=lambda part: None,
            sources=["memory"],
            skipped=frozenset(),
            spikes=SpikeWatch(state, config.guard, ranks, folder, "train", lambda what, row, batch: ""),
            meter=Meter(ranks.device, config.train.precision),
        )
        if batches is not None:
            ids = [SampleId(0, i, 0) for i in range(BATCH)]
            loop.run([StepBatch(step, [MicroBatch(batch, ids, False)], [], 0.0) for step, batch in enumerate(batches)], clock.steps)
            return
        order = Order([SAMPLES], [1.0], 0, BATCH)
        with Loader([samples], order, Inputs(), seed=0, workers=0, stop_step=clock.steps) as loader:
            loop.run(loader, clock.steps)


PEERS = {"plait": plait, **peers.PEERS}


def measure(name: str, samples: Samples, batches: Ready | None, steps: int) -> tuple[dict[str, float], Tensor]:
    """One run from the same start; its times per step and its final weights."""
    torch.manual_seed(0)
    net, clock = Net(), Clock(steps)
    samples.for_plait = name == "plait"
    gc.collect()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        PEERS[name](net, batches, samples, clock, Path(folder))
    return clock.took, torch.cat([value.detach().flatten() for value in net.parameters()])


def compare(title: str, samples: Samples, batches: Ready | None, steps: int, rounds: int) -> dict[str, Any]:
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in PEERS}
    for number in range(rounds):
        names = list(PEERS)
        random.Random(number).shuffle(names)
        ends = {}
        for name in names:
            took, ends[name] = measure(name, samples, batches, steps)
            figures[name].append(took)
        if batches is not None:
            apart = {name: float((end - ends["bare loop"]).abs().max()) for name, end in ends.items()}
            assert max(apart.values()) < SAME, f"not the same work: final weights differ from the bare loop's by {apart}"
    medians = {name: {kind: statistics.median(took[kind] for took in figures[name]) for kind in ("wall", "cpu")} for name in PEERS}
    return {"title": title, "rounds": figures, "median": medians, "ratio": ratios(medians)}


def ratios(medians: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    base = medians["bare loop"]
    return {name: {kind: value / base[kind] for kind, value in took.items()} for name, took in medians.items()}


def show(row: dict[str, Any]) -> None:
    print(f"\n{row['title']}\n  {'':18s} {'wall, us/step':>28s} {'ratio':>7s} {'cpu, us/step':>14s} {'ratio':>7s}")
    for name, median in row["median"].items():
        walls: Sequence[float] = [took["wall"] for took in row["rounds"][name]]
        wall = f"{median['wall']:.0f} ({min(walls):.0f} to {max(walls):.0f})"
        ratio = row["ratio"][name]
        print(f"  {name:18s} {wall:>28s} {ratio['wall']:7.2f} {median['cpu']:14.0f} {ratio['cpu']:7.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=500)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    samples = Samples()
    rows = [
        compare("the loop alone, batches ready in memory", samples, ready(samples, asked.steps), asked.steps, asked.rounds),
        compare("with its own loader, 0 workers", samples, None, asked.steps, asked.rounds),
    ]
    for row in rows:
        show(row)
    if "Fabric" not in PEERS:
        print("\nlightning-fabric is not installed, and its rows are left out: pip install lightning-fabric")
    installed = {d.name: d.version for d in importlib.metadata.distributions()}
    versions = {name: installed[name] for name in ("torch", "transformers", "accelerate", "lightning-fabric") if name in installed}
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), **versions}
    setting = {"steps": asked.steps, "not_counted": WARM, "batch": BATCH, "parameters": sum(p.numel() for p in Net().parameters())}
    write_json(RESULTS, {"machine": machine, "setting": setting, "unit": "microseconds per step", "rows": rows})


if __name__ == "__main__":
    main()
