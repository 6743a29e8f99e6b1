"""The learning monitor: faults that were planted are named within 50 steps, and runs that learn are left alone."""

import contextlib
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from plait import files
from plait.engine.checkpoints import checkpoint
from plait.families import registry
from plait.training.monitor import learning
from plait.training.monitor.learning import Learning, Samples, measure, positions
from plait.training.monitor.rules import Rules
from tests import toy_family as toy

PLAIN = (
    "stages=[]",
    "trainable=[projector,vision,language]",
    "checkpoint.every_steps=null",
    "checkpoint.best=null",
    "evaluate=[]",
    "optim.ema=null",
    "train.global_batch=16",
    "guard.no_gradient=continue",
    "model.width=8",
)
STEPS = 50


@pytest.fixture
def recipe(monkeypatch, tmp_path):
    return toy.install(monkeypatch, tmp_path)


def warned(recipe, run, *settings):
    """The warnings in the rows of a run of 50 steps."""
    toy.train(recipe, run, *PLAIN, f"train.steps={STEPS}", *settings)
    return [line for row in files.read_rows(run / "metrics.jsonl") for line in row.get("warnings", [])]


def put(monkeypatch, net=toy.Net, **members):
    changed = replace(toy.FAMILY, **{"build": lambda section, directory, *, seed: net(section.width, seed), **members})
    monkeypatch.setattr(registry, "load", lambda name: changed)


@pytest.mark.parametrize("seed", range(10))
def test_a_run_that_learns_is_left_alone(recipe, tmp_path, seed):
    settings = (f"seed={seed}", "evaluate=[{bench: loss, every_steps: 10}]", f"optim.lr={(1e-2, 1e-3, 3e-4)[seed % 3]}")
    assert warned(recipe, tmp_path / "run", *settings, f"track.every_steps={1 + seed % 4}") == []


def test_a_connector_without_a_rate_is_named_with_a_better_one(recipe, tmp_path):
    (line,) = warned(recipe, tmp_path / "run", "optim.components.projector.lr=1e-10")
    assert line.startswith("step 20: projector does not learn: an update moves it by ")
    assert (
        line.endswith("e-09 of its size, at a rate of 1e-10; --optim.components.projector.lr=0.01")
        or "--optim.components.projector.lr=0.01" in line
    )


@pytest.mark.parametrize(("every", "step"), [(20, 40), (25, 50)])
def test_a_fault_is_named_within_fifty_steps_where_rows_are_far_apart_too(recipe, tmp_path, every, step):
    settings = ("optim.components.projector.lr=1e-10", f"track.every_steps={every}", "train.steps=100")
    (line,) = warned(recipe, tmp_path / "run", *settings)
    assert line.startswith(f"step {step}: projector does not learn: ")


def test_a_connector_without_a_rate_is_named_while_rates_warm_up(recipe, tmp_path):
    warming = ("optim.schedule={name: cosine, warmup_steps: 100}", "train.steps=200")
    lines = warned(recipe, tmp_path / "run", "optim.components.projector.lr=1e-10", "track.every_steps=25", *warming)
    assert lines[0].startswith("step 50: projector does not learn: ")
    assert warned(recipe, tmp_path / "healthy", "track.every_steps=25", *warming) == []


def test_a_connector_that_is_frozen_by_mistake_is_named(recipe, tmp_path):
    (line,) = warned(recipe, tmp_path / "run", "trainable=[vision,language]")
    cure = '--trainable=["projector", "vision", "language"]'
    assert line == f"step 1: projector is frozen as it was drawn at random, and no stage before has trained it; {cure}"


def test_a_connector_that_an_earlier_stage_has_trained_may_be_frozen(recipe, tmp_path):
    stages = "stages=[{name: a, trainable: [projector]}, {name: b, trainable: [language]}]"
    toy.train(recipe, tmp_path / "run", *PLAIN, "train.steps=10", stages)
    assert not any("warnings" in row for row in files.read_rows(tmp_path / "run/metrics.jsonl"))


def test_a_component_that_is_torn_about_is_named(recipe, tmp_path):
    lines = warned(recipe, tmp_path / "run", "optim.components.language={lr: 1.0, weight_decay: 0.9}")
    assert any(
        "language is torn about: each update moves it by " in line and "--optim.components.language.lr=0.1" in line for line in lines
    )


def test_a_part_that_drifts_faster_than_its_connector_is_named(recipe, tmp_path):
    rates = ("optim.components.projector.lr=1e-5", "optim.components.language.lr=1e-3", "optim.components.vision.lr=1e-5")
    (line,) = warned(recipe, tmp_path / "run", *rates)
    assert "language moves " in line and " times as fast as projector, which leads to it (" in line and "has 100 times its rate" in line


class Cut(toy.Net):
    """The toy, whose answer does not depend on its tower."""

    def forward(self, batch):
        return self.language(torch.tanh(self.projector(0.0 * torch.tanh(self.vision(batch["x"])))))[:, 0]


def test_a_component_without_a_gradient_is_named(recipe, tmp_path, monkeypatch):
    put(monkeypatch, Cut)
    lines = warned(recipe, tmp_path / "run")
    assert any("vision gets no gradient: its norm is 0.0e+00 of " in line for line in lines)


class Dead(toy.Net):
    """The toy with a tower whose units are all off."""

    def __init__(self, width, seed):
        super().__init__(width, seed)
        self.vision = nn.Sequential(nn.Linear(4, width), nn.ReLU())
        nn.init.constant_(self.vision[0].bias, -100.0)


def test_dead_units_are_named(recipe, tmp_path, monkeypatch):
    put(monkeypatch, Dead)
    lines = warned(recipe, tmp_path / "run")
    assert any("100% of the units that vision puts out are constant, whatever its input; " in line for line in lines)


def test_a_layer_that_begins_at_zero_has_not_grown_without_end(recipe, tmp_path, monkeypatch):
    class Net(toy.Net):
        def __init__(self, width, seed):
            super().__init__(width, seed)
            nn.init.zeros_(self.projector.weight)
            nn.init.zeros_(self.projector.bias)

    put(monkeypatch, Net)
    assert not [line for line in warned(recipe, tmp_path / "run", "track.every_steps=1") if "has grown to" in line]


def test_outputs_that_grow_without_end_are_named(recipe, tmp_path, monkeypatch):
    class Growing(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x) * 1.3**self.calls

    class Net(toy.Net):
        def __init__(self, width, seed):
            super().__init__(width, seed)
            self.projector = Growing(width, width)

    put(monkeypatch, Net)
    lines = warned(recipe, tmp_path / "run")
    assert any("what projector puts out has grown to " in line and "what reads it saturates" in line for line in lines)


def test_a_gradient_that_is_almost_all_clipped_is_named(recipe, tmp_path, monkeypatch):
    class Loud(toy.Loss):
        def __init__(self, section):
            self.coefficients = {"error": 1e6}

    put(monkeypatch, Loss=Loud)
    lines = warned(recipe, tmp_path / "run", "optim.lr=1e-5")
    assert any("of which train.grad_clip leaves 0.0%: is the loss of the right scale? --optim.lr=3.3e-06" in line for line in lines)


def test_samples_that_are_learned_by_heart_are_named(recipe, tmp_path):
    few = f"data.train=[{{source: jsonl, path: {tmp_path}/train.jsonl, limit: 4}}]"
    settings = (few, "train.global_batch=4", "model.width=256", "evaluate=[{bench: loss, every_steps: 5}]", "optim.lr=3e-2")
    lines = warned(recipe, tmp_path / "run", *settings, "train.grad_clip=null")
    assert any("the model learns its samples by heart: their loss is " in line and "--checkpoint.best=loss" in line for line in lines)


@pytest.mark.parametrize(("loss", "held_out", "told"), [(0.9, 6.1, True), (0.9, 5.9, False), (1.5, 6.1, False), (1.5, 6.7, True)])
def test_a_wide_gap_needs_no_more_than_a_rise(loss, held_out, told):
    """Held-out losses: 6, then twice this one."""
    view = SimpleNamespace(index=1, config=SimpleNamespace(track=SimpleNamespace(every_steps=10), train=SimpleNamespace(grad_clip=None)))
    resolved = SimpleNamespace(config=SimpleNamespace(stages=[], from_=None))
    rules = Rules(resolved, view, [], [], start=0)
    rules({"stage": 1, "step": 10, "lr/language": 1e-3, "loss": loss})
    lines = [line for value in (6.0, held_out, held_out) for line in rules({"stage": 1, "step": 10, "eval/loss": value})]
    assert bool(lines) == told and all("learns its samples by heart" in line for line in lines)


def test_figures_are_norms_of_updates_over_norms_of_weights(tmp_path):
    weight = torch.arange(1.0, 7.0).view(2, 3)
    watched = Learning({"part": [weight, torch.full((2,), 2.0)]}, tmp_path / "start.safetensors", continues=False)
    start = torch.cat([weight.flatten(), torch.full((2,), 2.0)])
    watched.begin()
    weight += 1.0
    watched.output("part", torch.tensor([[1.0, 3.0]] * 8 + [[3.0, 3.0]] * 8))
    figures = watched.figures()
    assert figures["update/part"] == pytest.approx(math.sqrt(6) / float(start.norm()))
    assert figures["moved/part"] == figures["update/part"]
    assert (figures["activation/part"], figures["dead/part"]) == (pytest.approx(math.sqrt((5 + 9) / 2)), 0.5)
    watched.begin()
    weight += 1.0
    figures = watched.figures()
    assert figures["moved/part"] == pytest.approx(math.sqrt(24) / float(start.norm()))
    assert figures["update/part"] < figures["moved/part"] and "dead/part" not in figures
    assert watched.figures() == {}, "no step was watched since"
    assert not (tmp_path / "start.safetensors").exists()
    watched.keep()
    again = Learning({"part": [weight, torch.full((2,), 2.0)]}, tmp_path / "start.safetensors", continues=True)
    again.begin()
    assert again.figures() == {"update/part": 0.0, "moved/part": figures["moved/part"]}


def test_a_start_that_does_not_fit_or_cannot_be_read_is_noted_anew(tmp_path):
    path = tmp_path / "learning/start.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"nonsense")
    for size in (3, 4):
        watched = Learning({"part": [torch.ones(size)]}, path, continues=True)
        watched.begin()
        assert watched.figures() == {"update/part": 0.0, "moved/part": 0.0}
        watched.keep()
    assert load_file(path)["part"].tolist() == [1.0] * 4


def test_a_stage_is_held_to_its_first_step_whatever_is_recorded(recipe, tmp_path):
    every, fifth = (toy.train(recipe, tmp_path / f"every-{n}", *PLAIN, "train.steps=10", f"track.every_steps={n}") for n in (1, 5))
    moved = [{row["step"]: row["moved/projector"] for row in files.read_rows(run / "metrics.jsonl")} for run in (every, fifth)]
    assert moved[1] == {step: moved[0][step] for step in (5, 10)}


def test_a_run_that_is_killed_after_the_first_step_of_a_stage_knows_where_the_stage_began(recipe, tmp_path):
    def killed(state, row):
        raise KeyboardInterrupt

    every = [*PLAIN, "train.steps=3", "track.every_steps=1", "checkpoint.every_steps=1"]
    straight = toy.train(recipe, tmp_path / "straight", *every)
    for _ in range(2):
        with contextlib.suppress(KeyboardInterrupt):
            toy.train(recipe, tmp_path / "killed", *every, hooks=(killed,))
    toy.train(recipe, tmp_path / "killed", *every)
    assert toy.figures(tmp_path / "killed") == toy.figures(straight)


def test_a_sample_of_weights_is_evenly_spread_and_no_larger_than_it_needs_to_be(monkeypatch):
    monkeypatch.setattr(learning, "SAMPLED", 8)
    samples = Samples([[torch.arange(16.0).view(4, 4), torch.arange(8.0)], [torch.arange(6.0).view(2, 3).T]])
    assert samples.sizes == [9, 6]
    first, second = samples.split(samples.values())
    assert first.tolist() == [0, 3, 6, 9, 12, 15, 0, 3, 6] and sorted(second.tolist()) == [0, 1, 2, 3, 4, 5]


def test_a_sample_follows_weights_that_were_moved_in_memory():
    weight = nn.Parameter(torch.ones(3))
    samples = Samples([[weight]])
    before = samples.values()
    with torch.no_grad():
        weight += 1.0
        assert (before.tolist(), samples.values().tolist()) == ([1.0] * 3, [2.0] * 3)
    weight.data = torch.full((3,), 5.0)
    assert samples.values().tolist() == [5.0] * 3


def test_outputs_are_looked_at_side_by_side_as_each_by_itself():
    torch.manual_seed(1)
    outputs = [positions(3.0 * torch.randn(2, 40, 5)), positions(torch.randn(64, 3)), positions(torch.relu(torch.randn(64, 9)))]
    outputs[0][:, 2:4] = 7.0
    together = measure(outputs).view(2, -1).T
    for rows, (scale, dead) in zip(outputs, together.tolist(), strict=True):
        assert scale == pytest.approx(float(rows.double().square().mean().sqrt()), rel=1e-5)  # sums in float32
        assert dead == pytest.approx(float((rows.double().std(0, correction=0) <= 1e-3 * scale).double().mean()))
    assert together[0, 1] == pytest.approx(2 / 5)


def test_an_output_of_pictures_has_its_units_second_and_few_positions_say_nothing():
    pictures = torch.zeros(2, 3, 4, 4)
    pictures[:, 1] = torch.arange(32.0).view(2, 4, 4)
    rows = positions(pictures)
    assert rows.shape == (32, 3) and measure([rows])[1] == pytest.approx(2 / 3)
    assert positions(torch.ones(7, 3)) is None and positions(torch.ones(())) is None and positions(torch.ones(9)) is None
    assert len(positions(torch.ones(1000, 2, 3))) == len(positions(torch.ones(2, 3, 40, 40))) == 64


@pytest.mark.parametrize("shape", [(640, 3), (4, 160, 3), (80, 2, 4, 1), (3, 5, 20, 12)])
def test_positions_are_copies_from_all_over_an_output(shape):
    value = torch.arange(float(torch.Size(shape).numel())).view(shape)
    rows = positions(value)
    units = (value.flatten(2).movedim(1, -1) if len(shape) > 3 else value).reshape(-1, rows.shape[1])
    wanted = [units.tolist().index(row) for row in rows.tolist()]
    assert wanted == sorted(set(wanted)) and wanted[-1] >= 0.7 * len(units)
    value.zero_()
    assert rows.abs().sum() > 0


def test_a_killed_run_has_the_figures_of_one_that_was_not_and_repeats_no_warning(recipe, tmp_path):
    settings = (*PLAIN, "trainable=[vision,language]", "checkpoint.every_steps=7", "train.steps=20")
    straight = toy.train(recipe, tmp_path / "straight", *settings)
    killed = toy.train(recipe, tmp_path / "killed", *settings, "train.steps=14")
    toy.train(recipe, killed, *settings)
    assert len(checkpoint.published(killed)) == len(checkpoint.published(straight)) == 3
    assert toy.figures(killed) == toy.figures(straight)
    assert sum("warnings" in row for row in toy.figures(killed)) == 1


def test_rules_ignore_other_stages_and_rows_without_figures():
    view = SimpleNamespace(index=2, config=SimpleNamespace(track=SimpleNamespace(every_steps=1)))
    rules = Rules(None, view, ["projector"], [], start=0)
    assert rules({"stage": 1, "step": 3, "lr/projector": 1.0, "loss": 1.0}) == rules({"stage": 2, "step": 3, "blind/own": 1.0}) == []
    assert rules({"stage": 2, "step": 3, "loss_by/lr/caption": 1.0}) == [], "a source may be called lr"
