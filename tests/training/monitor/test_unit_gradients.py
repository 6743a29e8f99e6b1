"""Units without a gradient: dead and saturated ones are named within 50 steps with their layer, and runs that learn are left alone."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from plait import files
from plait.families import registry
from plait.training.monitor.unit_gradients import UnitGradients, idle_shares
from tests import processes
from tests import toy_family as toy

SETTINGS = (
    "stages=[]",
    "trainable=[projector,vision,language]",
    "checkpoint.every_steps=null",
    "checkpoint.best=null",
    "evaluate=[]",
    "optim.ema=null",
    "train={global_batch: 16, steps: 50}",
    "model.width=16",
)


class Block(nn.Module):
    """A residual block, so that what it puts out is never constant."""

    def __init__(self, width, act):
        super().__init__()
        self.up, self.act, self.down = nn.Linear(width, 2 * width), act, nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(self.act(self.up(x)))


class Net(toy.Net):
    """The toy with a language model of two blocks."""

    act, plant = nn.GELU(), None

    def __init__(self, width, seed):
        super().__init__(width, seed)
        self.language = nn.Sequential(Block(width, self.act), Block(width, self.act), nn.Linear(width, 1))
        with torch.no_grad():
            if self.plant is not None:
                type(self).plant(self)


def warned(recipe, run, monkeypatch, *settings, **members):
    """The warnings of units in a run of a net with these members."""
    net = type("Planted", (Net,), members)
    put(monkeypatch, net)
    toy.train(recipe, run, *SETTINGS, *settings)
    return [line for row in rows(run) for line in row.get("warnings", []) if "get no gradient" in line]


def put(monkeypatch, net):
    changed = replace(toy.FAMILY, build=lambda section, directory, *, seed: net(section.width, seed))
    monkeypatch.setattr(registry, "load", lambda name: changed)


def rows(run):
    return files.read_rows(run / "metrics.jsonl")


@pytest.fixture
def recipe(monkeypatch, tmp_path):
    return toy.install(monkeypatch, tmp_path)


def dead(net):
    net.language[1].up.bias[:24] -= 100.0


def saturated(net):
    net.language[0].up.weight *= 3000.0


@pytest.mark.parametrize(
    ("act", "plant", "layer"),
    [(nn.ReLU(), dead, "language.1.up"), (nn.GELU(), dead, "language.1.up"), (nn.Tanh(), saturated, "language.0.up")],
)
def test_units_that_are_dead_or_saturated_are_named_with_their_layer(recipe, tmp_path, monkeypatch, act, plant, layer):
    (line,) = warned(recipe, tmp_path / "run", monkeypatch, act=act, plant=plant)
    share = rows(tmp_path / "run")[19]["idle/language"]
    assert (0.5 if plant is saturated else 0.75) <= share < 0.95
    told = f"step 20: {share:.0%} of the units of {layer} get no gradient from any sample: they are dead or saturated, "
    assert line.startswith(f"{told}whatever their input; ") and "--optim.components.language.lr=0.001 from an earlier checkpoint" in line


def test_units_that_die_in_training_at_too_high_a_rate_are_named_within_50_steps(recipe, tmp_path, monkeypatch):
    settings = ("optim.components.language.lr=3.0", "train.grad_clip=null")
    (line,) = warned(recipe, tmp_path / "run", monkeypatch, *settings, act=nn.ReLU())
    assert rows(tmp_path / "run")[0]["idle/language"] < 0.5 and "of the units of language." in line


@pytest.mark.parametrize(("act", "seed"), [(nn.ReLU(), 1), (nn.GELU(), 2), (nn.Tanh(), 3), (nn.SiLU(), 4), (nn.Sigmoid(), 5)])
def test_units_of_a_run_that_learns_are_left_alone(recipe, tmp_path, monkeypatch, act, seed):
    assert warned(recipe, tmp_path / "run", monkeypatch, f"seed={seed}", "track.every_steps=2", act=act) == []
    shares = [row[name] for row in rows(tmp_path / "run") for name in row if name.startswith("idle/")]
    assert len(shares) == 75 and max(shares) < 0.5


def sharded(recipe, run):
    toy.train(recipe, run, *SETTINGS, "distributed.strategy=fsdp")


def test_of_a_sharded_model_the_first_ranks_rows_are_looked_at(recipe, tmp_path, monkeypatch):
    put(monkeypatch, type("Planted", (Net,), {"act": nn.ReLU(), "plant": dead}))
    assert processes.codes(processes.start(2, sharded, recipe, tmp_path / "run")) == [0, 0]
    assert {row["idle/language"] for row in rows(tmp_path / "run") if "loss" in row} == {1.0}  # 16 of 32 rows, all among the dead 24


def test_shares_are_of_rows_far_below_their_layers_and_of_layers_far_below_all():
    torch.manual_seed(1)
    layer, faint, off = torch.randn(10, 8), 1e-5 * torch.randn(6, 8), torch.zeros(4, 8)
    layer[:3] *= 1e-6
    assert idle_shares([layer, faint, off]).tolist() == pytest.approx([0.3, 0.0, 1.0])
    assert idle_shares([layer.bfloat16(), faint]).tolist() == pytest.approx([0.3, 0.0])


def test_embeddings_experts_heads_and_small_layers_are_left_out():
    model = nn.ModuleDict({"embed": nn.Embedding(20, 9), "tied": nn.Linear(9, 20), "lm_head": nn.Linear(9, 20), "small": nn.Linear(9, 3)})
    model["mlp"] = nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(9, 9)]), "up": nn.Linear(4, 9)})
    model["tied"].weight = model["embed"].weight
    optimizer = torch.optim.SGD([{"params": [*model.parameters()], "component": "all", "lr": 0.1}])
    looked = UnitGradients(model, optimizer)
    assert [looked.names[id(value)] for _, value in looked.trained] == ["mlp.up"]
    looked.begin(lambda work: work())
    assert looked.figures() == {}, "no update was made"
    looked.begin(lambda work: work())
    for value in model.parameters():
        value.grad = torch.ones_like(value)
    model["mlp"]["up"].weight.grad[:3] = 0.0
    optimizer.step()
    assert looked.figures() == {"idle/all": pytest.approx(1 / 3), "idle_layer/all": "mlp.up"}
    optimizer.step()
    assert looked.figures() == {}, "nothing is looked at after the figures were taken"
