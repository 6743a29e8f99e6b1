"""Runs with another optimizer than AdamW, and what becomes of moments where it changes."""

import json
import shutil

import pytest

from plait.errors import PlaitError
from tests import toy_family as toy


@pytest.fixture
def recipe(monkeypatch, tmp_path):
    return toy.install(monkeypatch, tmp_path)


@pytest.fixture
def parent(recipe, tmp_path):
    """A run of one stage by AdamW, of all components."""
    return toy.train(recipe, tmp_path / "parent", "stages=[]", "trainable=['*']")


def kinds(run, step):
    return {tuple(name.rpartition(".")[::2]) for name in toy.at(run, step).tensors("moments")}


def test_a_stage_may_train_by_muon_and_goes_on_to_the_bit(recipe, tmp_path, capsys):
    settings = ["stages.1.optim={name: muon, muon: {momentum: 0.9}}"]
    run = toy.train(recipe, tmp_path / "run", *settings)
    told = "moments of 1 parameters are of another optimizer than theirs now, and begin anew: projector.weight"
    assert capsys.readouterr().out.count(told) == 1
    assert {kind for name, kind in kinds(run, 12) if name == "projector.weight"} == {"momentum_buffer"}
    assert {kind for name, kind in kinds(run, 12) if name == "projector.bias"} == {"exp_avg", "exp_avg_sq", "step"}
    copy = shutil.copytree(run, tmp_path / "copy")
    for step in (18, 16, 14, 12, 10):
        (folder,) = [path for path in copy.rglob(f"step-{step:08d}") if path.is_dir()]
        shutil.rmtree(folder)
    again = toy.train(copy, copy)
    assert all(toy.same(toy.at(again, 18).tensors(group), toy.at(run, 18).tensors(group)) for group in ("weights", "ema", "moments"))
    assert toy.figures(again) == toy.figures(run)


def test_a_run_that_changes_its_optimizer_is_told_what_it_loses(parent):
    settings = ["optim.name=muon", "train.steps=8"]
    with pytest.raises(PlaitError, match=r"optim\.name"):
        toy.train(parent, parent, *settings)
    toy.train(parent, parent, *settings, allow_inexact=True)
    (*_, last) = [json.loads(line) for line in (parent / "migrations.jsonl").read_text().splitlines()]
    assert last["inexact"] == [f"moments of {part}: drop 1 ({part}.weight)" for part in ("language", "projector", "vision")]
    found = {(row["verdict"], row["component"], row["tensors"]) for row in last["rows"] if row["group"] == "moments"}
    assert found == {(verdict, part, 1) for part in ("projector", "vision", "language") for verdict in ("keep", "initialise", "drop")}


def test_a_run_begun_from_one_of_another_optimizer_leaves_its_moments_behind(recipe, parent, tmp_path, capsys):
    run = toy.train(recipe, tmp_path / "new", f"from={parent}", "stages=[]", "trainable=['*']", "train.steps=1", "optim.name=muon")
    assert "moments of 3 parameters are left behind: optim.name is muon here" in capsys.readouterr().out
    assert "begin anew" not in (run / "migrations.jsonl").read_text()
    assert toy.at(run, 1).tensors("moments")["vision.bias.step"] == 7  # of the parent's six steps, and its own
