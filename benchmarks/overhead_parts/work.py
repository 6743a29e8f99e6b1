"""The work that every loop of benchmarks/overhead.py does: model, samples, optimizer, schedule, clock."""

import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from plait.data.sources.contract import Source

BATCH, FEATURES, CLASSES, SAMPLES = 16, 32, 10, 4096
LR, BETAS, EPS, DECAY, CLIP, LOG_EVERY = 1e-3, (0.9, 0.95), 1e-8, 0.01, 1.0, 10
WARM = 50
"""Steps that are not counted: allocations, the optimizer's state, first files."""
SAME = 1e-3
"""Largest difference of weights at the end: the gradient of a sum over a count rounds unlike that of a mean, and Adam amplifies it."""

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


def repeated(loader: DataLoader, steps: int) -> Iterator[Batch]:
    """Epochs of the loader until `steps` batches are out."""
    step = 0
    while True:
        for batch in loader:
            if step == steps:
                return
            step += 1
            yield batch
