"""A toy of each contract: a two-part model, its weighted loss, and batches made of numbered samples."""

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import nn

from plait.config.schema import RunConfig
from plait.engine.flops import Meter
from plait.engine.guards import Quarantine
from plait.engine.loop import Loop
from plait.engine.loss import Loss
from plait.engine.monitoring.signals import Signals
from plait.engine.parallel.distributed import Ranks
from plait.engine.state import State
from plait.keys import rng

ALONE = Ranks(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class Id:
    source: int
    index: int
    epoch: int


class Net(nn.Module):
    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.tower = nn.Linear(4, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, batch):
        return self.head(torch.tanh(self.tower(batch["x"])))[:, 0]

    def components(self):
        named = dict(self.named_parameters())
        return {part: {name: value for name, value in named.items() if name.startswith(part)} for part in ("tower", "head")}


class SquaredError(Loss):
    """Sum over supervised samples of w (f(x) - y)^2, over sum w."""

    coefficients = {"error": 1.0}  # noqa: RUF012
    counts = ("tokens",)
    amounts = ("tokens", "error")

    def weights(self, batch):
        return {"error": batch["w"].double().sum(), "tokens": torch.tensor(float(len(batch["w"])), dtype=torch.float64)}

    def by_sample(self, batch):
        return {"tokens": torch.ones(len(batch["w"])), "error": batch["w"].double()}

    def sums(self, model, batch):
        return {"error": (batch["w"] * (model(batch) - batch["y"]) ** 2).sum()}


def examples(indices, dtype=torch.float32):
    x = torch.stack([torch.from_numpy(rng("x", i).standard_normal(4)).to(dtype) for i in indices])
    w = torch.tensor([1 + i % 3 for i in indices], dtype=dtype)
    return {"x": x, "y": x.sum(1).sin(), "w": w}


def micro(indices, padding=False, dtype=torch.float32):
    return SimpleNamespace(batch=examples(indices, dtype), ids=[Id(0, i, 0) for i in indices], padding=padding)


def step_batch(step, micros):
    return SimpleNamespace(step=step, micro=micros, bad=[], wait_s=0.0)


def make_config(**changes) -> RunConfig:
    base = {"family": "toy", "train": {"steps": 100, "global_batch": 16}, "optim": {"lr": 0.01, "schedule": {"name": "constant"}}}
    return RunConfig.model_validate({**base, **changes})


def make_state(config, trainable=("tower", "head"), seed=0) -> State:
    net = Net(seed)
    state = State(net)
    state.begin({part: net.components()[part] for part in trainable}, config.optim)
    return state


def make_loop(state, loss, config, ranks, quarantine, hooks=(), **others) -> Loop:
    """A loop whose other collaborators do nothing, unless they are given."""
    default = {"stage": "toy", "stop": Signals(), "mark": lambda part: None, "sources": (), "skipped": frozenset(), "spikes": None}
    given = {**default, "meter": Meter(ranks.device, config.train.precision), **others}
    return Loop(state=state, loss=loss, config=config, ranks=ranks, quarantine=Quarantine(quarantine, 0.01), hooks=hooks, **given)
