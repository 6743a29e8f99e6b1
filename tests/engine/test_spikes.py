"""Finite steps that stand out: found without false alarms, told, left out or gone back from, the same after a restart and on two ranks."""

import json
import math

import numpy as np
import pytest
import torch

from plait.assembly.configuration import open_config
from plait.assembly.data import open_training
from plait.engine.monitoring import spikes
from plait.engine.state import GROUPS, State
from plait.errors import Stopped
from plait.keys import rng
from plait.training.spikes import passes
from tests import processes, toy_family

SETTINGS = ("train.steps=110", "stages=[]", "evaluate=[]", "checkpoint.best=null", "checkpoint.every_steps=20", "guard.blindness=false")
STEP = 87
"""The step, from 1, that has the poisoned sample."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The toy's recipe with 10,000 samples, of which one, of step 87, has a target that is 100 times too large; runs by policy."""
    folder = tmp_path_factory.mktemp("spikes")
    with pytest.MonkeyPatch.context() as patched:
        recipe = toy_family.install(patched, folder)
        rows = [{"x": (x := rng("train", i).standard_normal(4).round(3).tolist()), "y": round(sum(x), 3)} for i in range(10_000)]
        poison(folder, rows, None)
        (view,) = open_config(recipe, [f"run={folder}", *SETTINGS]).stages
        index = open_training(view.config).order(view).ids(STEP - 1)[2].index
        poison(folder, rows, index)
        for policy in ("ignore", "tell", "skip", "rewind"):
            toy_family.train(recipe, folder / policy, *SETTINGS, f"guard.spikes={policy}")
        yield folder, recipe, f"jsonl:train.jsonl:{index}"


def poison(folder, rows, index):
    rows = [row | {"y": 100.0} if i == index else row for i, row in enumerate(rows)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def group(folder, name, step=110):
    return toy_family.at(folder, step).tensors(name)


def warned(folder):
    return [row for row in toy_family.figures(folder) if "warnings" in row]


def test_one_poisoned_sample_in_ten_thousand_is_named_and_the_run_goes_on_as_without_the_look(made):
    folder, _, sample = made
    (row,) = warned(folder / "tell")
    (line,) = row["warnings"]
    assert line.startswith(f"step {STEP} stands out: loss ")
    assert f"; sample {sample} (loss " in line and line.endswith(f"; spikes/step-{STEP:08d} has all")
    assert row["spike/loss"] > 1000 and row["step"] == STEP
    assert [row["step"] for row in toy_family.figures(folder / "tell") if "spike" in row] == [STEP]
    for name in ("weights", "moments", "ema"):
        assert toy_family.same(group(folder / "tell", name), group(folder / "ignore", name))
    assert not warned(folder / "ignore")


def test_a_rewind_ends_with_the_state_of_a_run_that_never_had_the_step(made):
    """Never had: the step is on the list of those to pass over before the run comes to it, and nobody looks at any other."""
    folder, recipe, _ = made
    without = folder / "without"
    with pytest.MonkeyPatch.context() as patched:
        toy_family_at(patched)
        toy_family.train(recipe, without, *SETTINGS, "guard.spikes=ignore", "train.steps=20")
        (without / "skipped.jsonl").write_bytes((folder / "rewind" / "skipped.jsonl").read_bytes())
        toy_family.train(recipe, without, *SETTINGS, "guard.spikes=ignore", allow_inexact=True)
    assert [json.loads(line)["step"] for line in (without / "skipped.jsonl").read_text().splitlines()] == [STEP - 1]
    for name in ("weights", "moments", "ema"):
        assert toy_family.same(group(folder / "rewind", name), group(without, name))
        assert toy_family.same(group(folder / "rewind", name), group(folder / "skip", name))  # the toy has no dropout
    assert not toy_family.same(group(folder / "rewind", "weights"), group(folder / "tell", "weights"))


def toy_family_at(patched):
    for name, value in (("load", toy_family.FAMILY), ("benches", toy_family.BENCHES), ("model_config", toy_family.Config)):
        patched.setattr(f"plait.families.registry.{name}", lambda _, value=value: value)


@pytest.mark.parametrize("policy", ["tell", "skip", "rewind"])
@pytest.mark.parametrize("cut", [80, 100])
def test_a_run_that_is_continued_before_or_after_a_spike_is_exact(made, tmp_path, monkeypatch, policy, cut):
    folder, recipe, _ = made
    toy_family_at(monkeypatch)
    for steps in (cut, 110):
        toy_family.train(recipe, tmp_path / "run", *SETTINGS, f"guard.spikes={policy}", f"train.steps={steps}", allow_inexact=True)
    for name in ("weights", "moments", "ema"):
        assert toy_family.same(group(tmp_path / "run", name), group(folder / policy, name))
    states = [toy_family.at(run, 110).manifest["state"] for run in (tmp_path / "run", folder / policy)]
    assert states[0]["recent"] == states[1]["recent"] and len(states[0]["recent"]["loss rises"]) > 90
    assert toy_family.figures(tmp_path / "run") == toy_family.figures(folder / policy)


@pytest.mark.parametrize(("policy", "strategy"), [("tell", "ddp"), ("rewind", "ddp"), ("skip", "fsdp")])
def test_two_ranks_find_the_same_sample(made, tmp_path, monkeypatch, policy, strategy):
    folder, recipe, sample = made
    toy_family_at(monkeypatch)
    processes.fork(2, toy_family.train, recipe, tmp_path, *SETTINGS, f"guard.spikes={policy}", f"distributed.strategy={strategy}")
    told = json.loads((tmp_path / "spikes" / f"step-{STEP:08d}" / "spike.json").read_text())
    assert told["cause"].startswith(f"sample {sample} (loss ")
    alone = json.loads((folder / policy / "spikes" / f"step-{STEP:08d}" / "spike.json").read_text())
    assert len(told["samples"]) == len(alone["samples"]) == 4
    assert told["replay"]["loss"] == pytest.approx(alone["replay"]["loss"], rel=1e-4)
    one, other = group(tmp_path, "weights"), group(folder / policy, "weights")
    assert all(torch.allclose(value, other[name], rtol=1e-4, atol=1e-6) for name, value in one.items())  # fp32: sums in another order
    norms = [[part["gradient_norm"] for part in [*box["modules"].values(), *box["samples"]]] for box in (told, alone)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4) and len(norms[0]) == 7
    assert f"; gradient norm {max(norms[0][3:]):.4g}, the others " in told["cause"]


def test_of_a_large_sharded_step_the_losses_alone_are_known_which_is_told(made, tmp_path, monkeypatch):
    _, recipe, sample = made
    toy_family_at(monkeypatch)
    monkeypatch.setattr(passes, "MOST_APART", 3)
    processes.fork(2, toy_family.train, recipe, tmp_path, *SETTINGS, "guard.spikes=skip", "distributed.strategy=fsdp")
    told = json.loads((tmp_path / "spikes" / f"step-{STEP:08d}" / "spike.json").read_text())
    assert told["cause"].startswith(f"sample {sample} (loss ")
    assert "; gradients of single samples are not known, as weights are sharded and the step has more than " in told["cause"]
    assert not any("gradient_norm" in row for row in told["samples"]) and told["replay"]["grad_norm"] is None


def test_a_box_has_the_steps_figures_its_replay_modules_and_samples(made):
    folder, _, sample = made
    told = json.loads((folder / "tell" / "spikes" / f"step-{STEP:08d}" / "spike.json").read_text())
    assert (told["step"], told["stage"], told["stage_step"]) == (STEP, "train", STEP - 1)
    assert told["replay"]["precision"] == "fp32"
    assert told["replay"]["loss"] == pytest.approx(told["figures"]["loss"], rel=1e-6)
    assert told["replay"]["grad_norm"] == pytest.approx(told["figures"]["grad_norm"], rel=1e-5)
    for module in ("projector", "vision", "language"):
        assert told["modules"][module]["gradient_norm"] == pytest.approx(told["figures"][f"grad_norm/{module}"], rel=1e-5)
    assert told["modules"]["language"]["weight_norm"] > 0
    worst = max(told["samples"], key=lambda row: row["gradient_norm"])
    assert worst["sample"] == sample and worst["loss"] > 5000
    losses = [row["loss"] for row in told["samples"]]
    assert sum(losses) / 4 == pytest.approx(told["replay"]["loss"])
    then, now = (told["replay"]["of_the_step_before"][when]["loss"] for when in ("then", "now"))
    assert now < 2 * then


@pytest.mark.parametrize("policy", ["tell", "rewind"])
def test_a_spike_is_an_alert_with_its_cause(made, tmp_path, monkeypatch, policy):
    _, recipe, sample = made
    toy_family_at(monkeypatch)
    hook = f"alert.command=cat >> {tmp_path}/told; echo >> {tmp_path}/told"
    toy_family.train(recipe, tmp_path / "run", *SETTINGS, f"guard.spikes={policy}", hook, "alert.on=[spike]")
    first = (tmp_path / "told").read_text().splitlines()[0]
    assert f"step {STEP} stands out: loss" in first and sample in first and "not finite" not in first


def test_so_many_boxes_are_written_and_further_spikes_are_told_with_their_samples(made, tmp_path, monkeypatch):
    _, recipe, sample = made
    toy_family_at(monkeypatch)
    toy_family.train(recipe, tmp_path, *SETTINGS, "guard.spike_boxes=0")
    ((line,),) = (row["warnings"] for row in warned(tmp_path))
    assert "not looked into, as guard.spike_boxes others were; samples jsonl:" in line and sample in line
    assert not (tmp_path / "spikes").exists()


def test_more_spikes_than_may_be_passed_over_stop_the_run(made, tmp_path, monkeypatch):
    _, recipe, sample = made
    toy_family_at(monkeypatch)
    toy_family.train(recipe, tmp_path / "run", *SETTINGS, "train.steps=20")
    (tmp_path / "run" / "skipped.jsonl").write_text('{"stage": "train", "step": 3}\n')
    with pytest.raises(
        Stopped, match=rf"step {STEP} stands out: .*{sample}.*; 1 steps were passed over before, all that guard\.non_finite_"
    ):
        toy_family.train(recipe, tmp_path / "run", *SETTINGS, "guard.spikes=rewind", "guard.non_finite_steps=1", allow_inexact=True)


def test_weights_that_an_update_has_damaged_are_at_fault_and_no_sample(made, tmp_path, monkeypatch):
    """After 60 steps at a sound rate, the run goes on at one that is 5,000 times as large."""
    _, recipe, _ = made
    toy_family_at(monkeypatch)
    toy_family.train(recipe, tmp_path, *SETTINGS, "train.steps=60")
    toy_family.train(recipe, tmp_path, *SETTINGS, "train.steps=64", "optim.lr=50.0", allow_inexact=True)
    line = warned(tmp_path)[0]["warnings"][0]
    assert "; the weights: the samples of the step before now have a loss of " in line
    assert "before the last update (lower optim.lr or train.grad_clip); spikes/step-" in line


def test_a_replay_that_does_not_fit_in_memory_costs_the_cause_alone(made, tmp_path, monkeypatch):
    folder, recipe, sample = made
    toy_family_at(monkeypatch)

    def full(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr("plait.training.spikes.passes.norms_by_module", full)  # after the passes, which have left gradients
    toy_family.train(recipe, tmp_path, *SETTINGS)
    ((line,),) = (row["warnings"] for row in warned(tmp_path))
    assert "; not known, as the replay failed: OutOfMemoryError: no room; spikes/step-" in line
    told = json.loads((tmp_path / "spikes" / f"step-{STEP:08d}" / "spike.json").read_text())
    assert told["figures"]["loss"] > 1000 and len(told["before"]["loss"]) == 25
    assert sample in [row["sample"] for row in told["samples"]]
    assert toy_family.same(group(tmp_path, "weights"), group(folder / "ignore", "weights"))


def test_a_box_that_cannot_be_written_costs_nothing_else(made, tmp_path, monkeypatch):
    folder, recipe, sample = made
    toy_family_at(monkeypatch)
    toy_family.train(recipe, tmp_path, *SETTINGS, "train.steps=60")
    (tmp_path / "spikes").write_text("a file")
    toy_family.train(recipe, tmp_path, *SETTINGS, allow_inexact=True)
    ((line,),) = (row["warnings"] for row in warned(tmp_path))
    assert f"; sample {sample} (loss " in line
    assert f"; spikes/step-{STEP:08d} cannot be written: Not a directory" in line
    assert toy_family.same(group(tmp_path, "weights"), group(folder / "ignore", "weights"))


def test_a_stage_is_compared_with_its_own_steps_and_an_older_checkpoint_begins_anew(made, tmp_path, monkeypatch):
    _, recipe, _ = made
    toy_family_at(monkeypatch)
    toy_family.train(recipe, tmp_path, "evaluate=[]", "checkpoint.best=null")
    last = toy_family.at(tmp_path, 16)
    assert [len(last.manifest["state"]["recent"][name]) for name in spikes.WATCHED] == [4, 4]
    state = State(toy_family.Net(4, 0))
    old = {name: value for name, value in last.manifest["state"].items() if name != "recent"}
    state.recent = {"loss": [1.0]}
    state.restore(old, {name: last.stored(name) for name in GROUPS})
    assert state.recent == {}


def alarms(values):
    recent = {}
    return [step for step, value in enumerate(values) if spikes.compare(recent, "loss", float(value))]


STEPS = np.arange(4000)
LEVELS = {
    "flat": 0 * STEPS,
    "a fast descent": np.log(0.5 + 5 * np.exp(-STEPS / 60)),
    "a gradient that grows from zero": np.log(1e-3 + 2 * (1 - np.exp(-STEPS / 40))),
    "a rate that restarts": np.log(1 + 0.6 * (STEPS >= 2000) * (1 - np.exp(-(STEPS - 2000) / 6)) * np.exp(-(STEPS - 2000) / 300)),
    "a level that wanders": 0.02 * np.cumsum(np.random.default_rng(7).standard_normal(4000)),
}


def noises(seed):
    draw = np.random.default_rng(seed)
    shares = draw.binomial(16, 0.05, 4000) / 16  # samples of a step from a source with ten times the loss
    return {
        "normal": 0.1 * draw.standard_normal(4000),
        "long tails": 0.2 * draw.laplace(size=4000),
        "skewed": 0.3 * draw.gumbel(size=4000),
        "unequal sources": np.log(1 + 9 * shares) + 0.07 * draw.standard_normal(4000),
        "one sample a step": np.log(np.where(draw.random(4000) < 0.1, 5.0, 1.0)) + 0.2 * draw.standard_normal(4000),
    }


@pytest.mark.parametrize("level", LEVELS)
def test_healthy_figures_raise_no_alarm(level):
    """60,000 steps a level, 300,000 together: of less than 1e-5 false alarms a step, none is expected in fixed draws."""
    for seed in range(3):
        for noise, values in noises(seed).items():
            assert alarms(np.exp(LEVELS[level] + values)) == [], (noise, seed)


@pytest.mark.parametrize(("noise", "times"), [("normal", 5), ("unequal sources", 500)])
def test_a_spike_is_found_in_noise_and_soon_after_another(noise, times):
    values = np.exp(LEVELS["a fast descent"] + noises(0)[noise])
    values[[100, 2000, 2010, 3500]] *= times
    assert alarms(values) == [100, 2000, 2010, 3500]


def test_a_new_level_is_told_and_then_usual():
    values = np.exp(noises(0)["normal"])
    values[2000:] *= 5
    found = alarms(values)
    assert found[0] == 2000 and len(found) < 8 and found[-1] < 2020


def test_figures_that_have_no_logarithm_are_passed_over():
    recent = {}
    for value in (0.0, -1.0, math.inf, math.nan):
        assert spikes.compare(recent, "loss", value) == ""
    assert recent == {}
    for _ in range(49):
        assert spikes.compare(recent, "loss", 2.0) == ""
    assert spikes.compare(recent, "loss", 2.5) == ""
    assert spikes.compare(recent, "loss", 2.7) == "loss 2.7 (the 25 steps before: median 2, at most 2.5)"


def test_nothing_stands_out_among_the_first_steps():
    values = [2.0] * 49
    values[40] = 1000.0
    assert alarms(values) == []
