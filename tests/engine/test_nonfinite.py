"""A sample that makes the loss infinite, by policy: stopped at, skipped, gone back from; the same on two ranks, or after a restart."""

import json

import pytest
import torch

from plait.engine import nonfinite
from plait.errors import Stopped
from plait.training import run
from tests import processes, toy_family

SHORT = ("train.steps=6", "stages=[]", "evaluate=[]", "checkpoint.best=null", "checkpoint.every_steps=2", "seed=3")


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """The toy's recipe with two samples whose squared error is beyond float32."""
    path = toy_family.install(monkeypatch, tmp_path)
    rows = (tmp_path / "train.jsonl").read_text().splitlines()
    for index in (3, 17):
        rows[index] = json.dumps(json.loads(rows[index]) | {"y": 1e39})
    (tmp_path / "train.jsonl").write_text("\n".join(rows) + "\n")
    return path


def rows(folder):
    return [row for row in toy_family.figures(folder) if "loss" in row]


def skipped(folder):
    return [row["step"] for row in rows(folder) if row.get("skipped") == 1]


@pytest.fixture
def bad_steps(recipe, tmp_path):
    """The steps, from 1, of the six that hold the samples."""
    toy_family.train(recipe, tmp_path / "skip", *SHORT, "guard.non_finite=skip")
    found = skipped(tmp_path / "skip")
    assert len(found) == 2
    return found


def test_stop_says_which_samples_and_leaves_statistics_of_every_module(recipe, bad_steps, tmp_path):
    with pytest.raises(Stopped, match=rf"step {bad_steps[0]} is not finite \(loss = inf.*stopped before the update; samples 0:\d+@0 "):
        toy_family.train(recipe, tmp_path / "run", *SHORT)
    told = json.loads((tmp_path / "run" / "non-finite" / f"step-{bad_steps[0]:08d}.json").read_text())
    assert len(told["samples"]) == 4
    assert told["modules"]["vision"]["gradients_not_finite"] == 20
    assert float(told["modules"]["language"]["weight_max"]) > 0


def test_skip_ends_the_step_without_an_update_and_counts_it(recipe, bad_steps, tmp_path):
    states = [toy_family.at(tmp_path / "skip", step) for step in (2, 4, 6)]
    assert all(value.isfinite().all() for value in states[-1].tensors("weights").values())
    assert states[-1].manifest["state"]["totals"] == {"samples": 24.0, "skipped": 2.0}
    updates = {int(value) for name, value in states[-1].tensors("moments").items() if name.endswith(".step")}
    assert updates == {6 - len(bad_steps)}


def test_rewind_goes_back_to_the_checkpoint_and_past_the_step(recipe, bad_steps, tmp_path, capsys):
    toy_family.train(recipe, tmp_path / "run", *SHORT, "guard.non_finite=rewind")
    said = capsys.readouterr().out
    for step in bad_steps:
        assert f"step {step} is not finite (loss = inf" in said
    assert said.count(": back to the newest checkpoint, and past this step from there; samples 0:") == 2
    assert skipped(tmp_path / "run") == bad_steps
    one, other = (toy_family.at(folder, 6) for folder in (tmp_path / "run", tmp_path / "skip"))
    assert toy_family.same(one.tensors("weights"), other.tensors("weights"))  # the toy has no dropout: passing over is skipping
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_rewind_is_exact_when_the_run_is_continued(recipe, bad_steps, tmp_path):
    for steps in (bad_steps[0], 6):
        toy_family.train(recipe, tmp_path / "run", *SHORT, "guard.non_finite=rewind", f"train.steps={steps}", allow_inexact=True)
    assert toy_family.same(toy_family.at(tmp_path / "run", 6).tensors("weights"), toy_family.at(tmp_path / "skip", 6).tensors("weights"))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("policy", ["skip", "rewind"])
def test_two_ranks_pass_over_the_same_steps(recipe, bad_steps, tmp_path, policy, strategy):
    settings = (f"guard.non_finite={policy}", f"distributed.strategy={strategy}")
    processes.fork(2, toy_family.train, recipe, tmp_path / "run", *SHORT, *settings)
    assert skipped(tmp_path / "run") == bad_steps
    alone, together = (toy_family.at(folder, 6).tensors("weights") for folder in (tmp_path / "skip", tmp_path / "run"))
    assert all(torch.allclose(value, together[name], rtol=1e-5, atol=1e-7) for name, value in alone.items())  # fp32: sums in another order


@pytest.mark.parametrize("policy", ["skip", "rewind"])
def test_more_steps_than_allowed_stop_the_run(recipe, bad_steps, tmp_path, policy):
    with pytest.raises(Stopped, match=r"; 1 steps were passed over before, all that guard\.non_finite_steps allows: look at the data"):
        toy_family.train(recipe, tmp_path / "run", *SHORT, f"guard.non_finite={policy}", "guard.non_finite_steps=1")
    assert run.Rewind is nonfinite.Rewind
