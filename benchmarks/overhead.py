"""What a training loop costs beside the training: microseconds per step of a bare PyTorch loop, plait, HF Trainer and accelerate.

    OMP_NUM_THREADS=1 python benchmarks/overhead.py [--rounds 5] [--steps 500]

Equal work: one tiny model, one start, fused AdamW without decay on vectors, gradient clipping, a cosine schedule, float32, one process on
the CPU, batches of 16. All but the bare loop record their figures every 10 steps, as they do by default, in TensorBoard files (plait in
metrics.jsonl too); plait also checks every step for numbers that are not finite or stand out. Measured twice: with ready batches, which is
the loop alone (and then all must end at the same weights), and each with its own loader, 0 workers, over the same samples in memory.
The first steps are not counted. Rounds are interleaved, in another order each, and the median is told: wall time, and processor time, which
other programs on the machine disturb less. The table goes to the screen, the figures to benchmarks/results/overhead.json.
"""

import argparse
import contextlib
import gc
import io
import math
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, default_collate
from transformers import Trainer, TrainerCallback, TrainingArguments

from plait.config.schema import RunConfig
from plait.data.loading.loader import Loader, MicroBatch, StepBatch
from plait.data.order import Order, SampleId
from plait.data.sources.contract import Source
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

BATCH, FEATURES, CLASSES, SAMPLES = 16, 32, 10, 4096
LR, BETAS, EPS, DECAY, CLIP, LOG_EVERY = 1e-3, (0.9, 0.95), 1e-8, 0.01, 1.0, 10
WARM = 50
"""Steps that are not counted: allocations, the optimizer's state, first files."""
SAME = 1e-3
"""Largest difference of weights at the end: the gradient of a sum over a count rounds unlike that of a mean, and Adam amplifies it."""
RESULTS = Path(__file__).resolve().parent / "results" / "overhead.json"

Batch = dict[str, Tensor]


class Net(nn.Module):
    """A residual MLP of 16 parameter tensors."""

    def __init__(self, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for _ in range(depth)
        )
        self.last = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


class WithLoss(nn.Module):
    """What HF Trainer wants: a model that returns its own loss."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(self.net(x), labels)}


class Clock:
    """Wall and processor time of the steps after the first ones, per step in microseconds."""

    def __init__(self, steps: int) -> None:
        self.steps, self.began = steps, (0.0, 0.0)
        self.took = {"wall": math.nan, "cpu": math.nan}

    def tick(self, step: int) -> None:
        """Call after every step, counted from 1."""
        if step == WARM:
            self.began = (time.perf_counter(), time.process_time())
        elif step == self.steps:
            ended = (time.perf_counter(), time.process_time())
            wall, cpu = ((b - a) / (self.steps - WARM) * 1e6 for a, b in zip(self.began, ended, strict=True))
            self.took = {"wall": wall, "cpu": cpu}


class Samples(Dataset, Source):
    """Samples in memory. As a source it serves plait's loader, as a map-style dataset the others'."""

    name, fingerprint = "memory", "memory"

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(1)
        self.x = torch.randn(SAMPLES, FEATURES, generator=draw)
        self.rows = [{"x": x, "labels": x[:CLASSES].argmax()} for x in self.x]
        self.named = [row | {"id": str(i), "images": [], "messages": [], "fields": {}} for i, row in enumerate(self.rows)]
        self.for_plait = False

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return self.named[i] if self.for_plait else self.rows[i]


class Ready(list):
    """Ready batches, once through."""


def ready(samples: Samples, steps: int) -> Ready:
    """The first `steps` batches, made before the clock starts."""
    rows = samples.rows
    return Ready(default_collate([rows[(step * BATCH + i) % SAMPLES] for i in range(BATCH)]) for step in range(steps))


def optimizer_of(net: nn.Module) -> torch.optim.AdamW:
    matrices = {"params": [value for value in net.parameters() if value.ndim >= 2], "weight_decay": DECAY}
    vectors = {"params": [value for value in net.parameters() if value.ndim < 2], "weight_decay": 0.0}
    return torch.optim.AdamW([matrices, vectors], lr=LR, betas=BETAS, eps=EPS, fused=True)


def cosine(step: int, steps: int) -> float:
    return (1 + math.cos(math.pi * step / steps)) / 2


def repeated(loader: DataLoader, steps: int):
    """Epochs of the loader until `steps` batches are out."""
    step = 0
    while True:
        for batch in loader:
            if step == steps:
                return
            step += 1
            yield batch


def bare(net: Net, batches: Ready | None, samples: Samples, clock: Clock, folder: Path) -> None:
    """What one writes by hand."""
    if batches is None:
        batches = repeated(DataLoader(samples, BATCH, shuffle=True, drop_last=True), clock.steps)
    optimizer, parameters = optimizer_of(net), list(net.parameters())
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = LR * cosine(step, clock.steps)
        F.cross_entropy(net(batch["x"]), batch["labels"]).backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.tick(step + 1)


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


class Ticking(TrainerCallback):
    """Tells the clock after every step of HF Trainer."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_end(self, args, state, control, **_) -> None:
        self.clock.tick(state.global_step)


class ReadyTrainer(Trainer):
    """HF Trainer over ready batches."""

    batches: Ready

    def get_train_dataloader(self) -> Any:
        return self.batches


def trainer(net: Net, batches: Ready | None, samples: Samples, clock: Clock, folder: Path) -> None:
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "events")
    settings = TrainingArguments(
        output_dir=str(folder),
        max_steps=clock.steps,
        per_device_train_batch_size=BATCH,
        learning_rate=LR,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        adam_epsilon=EPS,
        weight_decay=DECAY,
        max_grad_norm=CLIP,
        lr_scheduler_type="cosine",
        optim="adamw_torch_fused",
        logging_steps=LOG_EVERY,
        report_to=["tensorboard"],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        dataloader_drop_last=True,
        remove_unused_columns=False,
    )
    kind = Trainer if batches is None else ReadyTrainer
    one = kind(WithLoss(net), settings, train_dataset=samples, data_collator=default_collate, callbacks=[Ticking(clock)])
    if batches is not None:
        one.batches = batches
    one.train()


def with_accelerate(net: Net, batches: Ready | None, samples: Samples, clock: Clock, folder: Path) -> None:
    """The loop of accelerate's own documentation."""
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(folder))
    accelerator.init_trackers("bench")
    optimizer = optimizer_of(net)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, clock.steps))
    model, optimizer, schedule = accelerator.prepare(net, optimizer, schedule)
    if batches is None:
        loader = accelerator.prepare(DataLoader(samples, BATCH, shuffle=True, drop_last=True))
        batches = repeated(loader, clock.steps)
    for step, batch in enumerate(batches):
        with accelerator.accumulate(model):
            loss = F.cross_entropy(model(batch["x"]), batch["labels"])
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if (step + 1) % LOG_EVERY == 0:
            accelerator.log({"loss": loss.item(), "grad_norm": norm.item(), "lr": schedule.get_last_lr()[0]}, step=step + 1)
        clock.tick(step + 1)
    accelerator.end_training()


PEERS: dict[str, Callable[[Net, Ready | None, Samples, Clock, Path], None]] = {
    "bare loop": bare,
    "plait": plait,
    "accelerate": with_accelerate,
    "HF Trainer": trainer,
}


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
    print(f"\n{row['title']}\n  {'':12s} {'wall, us/step':>28s} {'ratio':>7s} {'cpu, us/step':>14s} {'ratio':>7s}")
    for name, median in row["median"].items():
        walls: Sequence[float] = [took["wall"] for took in row["rounds"][name]]
        wall = f"{median['wall']:.0f} ({min(walls):.0f} to {max(walls):.0f})"
        ratio = row["ratio"][name]
        print(f"  {name:12s} {wall:>28s} {ratio['wall']:7.2f} {median['cpu']:14.0f} {ratio['cpu']:7.2f}")


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
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "accelerate": accelerate.__version__}
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), **versions}
    setting = {"steps": asked.steps, "not_counted": WARM, "batch": BATCH, "parameters": sum(p.numel() for p in Net().parameters())}
    write_json(RESULTS, {"machine": machine, "setting": setting, "unit": "microseconds per step", "rows": rows})


if __name__ == "__main__":
    main()
