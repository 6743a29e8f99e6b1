"""A family small enough that a run of three stages takes a fraction of a second: y from four numbers, through three linear parts."""

import json
from typing import ClassVar

import torch
from torch import nn

from plait.assembly.configuration import open_config
from plait.commands.prove import compare
from plait.config.schema import ModelSection
from plait.engine import loss
from plait.engine.checkpoints import checkpoint, integrity
from plait.families import registry
from plait.families.contract import Family
from plait.keys import rng
from plait.training import run
from plait.training.figures import intervals
from plait.training.monitor.learning import LOOKS
from plait.training.monitor.look_budget import FIRST_STEPS

SMALL = """
family: theworld
data:
  train: [{{source: jsonl, path: {folder}/train.jsonl}}]
  validation: [{{source: jsonl, path: {folder}/held.jsonl}}]
  workers: 0
stages:
  - {{name: projection, trainable: [projector]}}
  - {{name: vision, trainable: [projector, vision]}}
  - {{name: language, trainable: [language]}}
train: {{steps: 6, global_batch: 4}}
optim: {{lr: 1.0e-2, schedule: {{name: constant}}, ema: {{decay: 0.5}}}}
checkpoint: {{every_steps: 2, keep: 9, best: loss, async_save: false}}
evaluate: [{{bench: loss, every_steps: 2}}]
track: {{every_steps: 1, tensorboard: false}}
"""


class Config(ModelSection):
    layouts: ClassVar[dict[str, str]] = {"hf": "those of theworld, in whose place it is put"}
    width: int = 4


class Net(nn.Module):
    def __init__(self, width, seed):
        super().__init__()
        torch.manual_seed(seed % 2**63)
        self.vision, self.projector, self.language = nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, batch):
        return self.language(torch.tanh(self.projector(torch.tanh(self.vision(batch["x"])))))[:, 0]


class Inputs:
    def __init__(self, section, assets, *, max_tokens, pad, train):
        pass

    def encode(self, sample, key):
        return sample["fields"]["x"], sample["fields"]["y"]

    def collate(self, examples):
        return {"x": torch.tensor([x for x, _ in examples]), "y": torch.tensor([y for _, y in examples])}


class Loss(loss.Loss):
    def __init__(self, section):
        self.coefficients = {"error": 1.0}

    def weights(self, batch):
        return {"error": torch.tensor(float(len(batch["y"])), dtype=torch.float64)}

    def sums(self, model, batch):
        return {"error": ((model(batch) - batch["y"]) ** 2).sum()}


def components(model):
    named = dict(model.named_parameters())
    return {part: {name: value for name, value in named.items() if name.startswith(part)} for part in ("projector", "vision", "language")}


FAMILY = Family(
    name="theworld",
    Config=Config,
    prepare=lambda section, directory, texts: directory.mkdir(parents=True, exist_ok=True),
    build=lambda section, directory, *, seed: Net(section.width, seed),
    base=lambda section: [{"part": "toy", "name": "drawn from the seed", "revision": None}],
    components=components,
    blocks=lambda model: [model.vision, model.projector, model.language],
    Inputs=Inputs,
    Loss=Loss,
)
BENCHES = {}
DRAWS = 40
"""Sets of rows that a bootstrap draws: 400 would take half of the time of a run."""


def install(monkeypatch, folder):
    """Put the toy in theworld's place, and write its data and recipe; returns the recipe."""
    monkeypatch.setattr(registry, "load", lambda name: FAMILY)
    monkeypatch.setattr(registry, "benches", lambda name: BENCHES)
    monkeypatch.setattr(registry, "model_config", lambda name: Config)
    monkeypatch.setattr(intervals, "DRAWS", DRAWS)
    monkeypatch.setenv("PLAIT_CACHE", str(folder / "cache"))
    for name, count in (("train", 30), ("held", 8)):
        rows = [{"x": (x := rng(name, i).standard_normal(4).round(3).tolist()), "y": round(sum(x), 3)} for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = folder / "recipe.yaml"
    recipe.write_text(SMALL.format(folder=folder))
    return recipe


def train(recipe, folder, *overrides, **options):
    """`plait train`, in this process."""
    path = recipe / "config.yaml" if recipe.is_dir() else recipe
    resolved = open_config(path, [f"run={folder}", *overrides])
    return run.train(resolved, run.TrainOptions(**options))


def at(folder, step):
    """The run's checkpoint at this step."""
    (found,) = [path for path in checkpoint.published(folder) if path.name == f"step-{step:08d}"]
    return integrity.locate(found)


def same(one, other):
    """Whether two groups of tensors agree to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def figures(folder):
    """The rows of metrics.jsonl without what clocks say, which after 50 steps say too whether a step is looked at."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    by_clock = [compare.CLOCK | ({name for name in row if name.startswith(LOOKS)} if row["step"] > FIRST_STEPS else set()) for row in rows]
    return [
        {name: value for name, value in row.items() if name == "recompiles" or name not in without}
        for row, without in zip(rows, by_clock, strict=True)
    ]
