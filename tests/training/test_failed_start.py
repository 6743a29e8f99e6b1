"""A start that fails leaves nothing behind: no run, no lock, no folder made for it, and nothing beside the user's data."""

import sys

import pytest

from plait import cli
from plait.config import signed
from plait.engine.loop import Loop
from plait.errors import PlaitError

from .. import toy_family as toy


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    return toy.install(monkeypatch, tmp_path)


@pytest.fixture
def broken(monkeypatch):
    """The model cannot be built."""

    def build(*_, **__):
        raise PlaitError("the Hub did not give it")

    monkeypatch.setattr("plait.training.run.build_model", build)


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "cache" not in path.parts)


@pytest.mark.parametrize("run", ["run", "runs/deep/run"])
def test_a_start_whose_model_cannot_be_built_leaves_nothing(recipe, tmp_path, broken, run):
    before = everything(tmp_path)
    with pytest.raises(PlaitError, match="the Hub did not give it"):
        toy.train(recipe, tmp_path / run)
    assert everything(tmp_path) == before


def test_a_start_without_its_data_leaves_nothing(recipe, tmp_path, capsys):
    before = everything(tmp_path)
    code = cli.main(["train", str(recipe), f"--run={tmp_path}/runs/a", "--data.train.0.path=nowhere.jsonl"])
    assert (code, everything(tmp_path)) == (2, before)
    assert "nowhere.jsonl" in capsys.readouterr().err


def test_a_start_whose_first_step_fails_leaves_nothing(recipe, tmp_path, monkeypatch):
    before = everything(tmp_path)

    def fail(*_, **__):
        raise RuntimeError("the device is gone")

    monkeypatch.setattr("plait.engine.loop.Loop.step", fail)
    with pytest.raises(RuntimeError, match="the device is gone"):
        toy.train(recipe, tmp_path / "run")
    assert everything(tmp_path) == before


def test_a_folder_that_was_there_stays(recipe, tmp_path, broken):
    (tmp_path / "run").mkdir()
    with pytest.raises(PlaitError):
        toy.train(recipe, tmp_path / "run")
    assert (tmp_path / "run").is_dir() and everything(tmp_path / "run") == []


def test_an_empty_folder_in_which_the_run_was_to_lie_stays(recipe, tmp_path, broken):
    (tmp_path / "runs").mkdir()
    with pytest.raises(PlaitError):
        toy.train(recipe, tmp_path / "runs" / "deep" / "run")
    assert (tmp_path / "runs").is_dir() and everything(tmp_path / "runs") == []


def test_another_run_that_begins_beside_it_is_left_alone(recipe, tmp_path, monkeypatch):
    def build(*_, **__):
        (tmp_path / "runs" / "other").mkdir()
        raise PlaitError("no")

    monkeypatch.setattr("plait.training.run.build_model", build)
    with pytest.raises(PlaitError, match="no"):
        toy.train(recipe, tmp_path / "runs" / "a")
    assert everything(tmp_path / "runs") == ["other"]


def test_a_run_that_saved_something_outlives_a_start_that_fails(recipe, tmp_path, monkeypatch, request):
    toy.train(recipe, tmp_path / "run", "train.steps=3")
    kept = [name for name in everything(tmp_path / "run") if "manifest" in name]
    request.getfixturevalue("broken")
    with pytest.raises(PlaitError):
        toy.train(recipe, tmp_path / "run", "train.steps=3")
    assert kept and [name for name in everything(tmp_path / "run") if "manifest" in name] == kept


def test_restart_without_data_leaves_the_old_run_in_its_place(recipe, tmp_path):
    toy.train(recipe, tmp_path / "run", "train.steps=3")
    (tmp_path / "train.jsonl").rename(tmp_path / "elsewhere.jsonl")
    with pytest.raises(PlaitError, match=r"train\.jsonl"):
        toy.train(recipe, tmp_path / "run", "train.steps=3", restart=True)
    assert (tmp_path / "run" / "config.yaml").is_file() and not (tmp_path / "run.before-1").exists()


def test_training_writes_nothing_beside_the_data(recipe, tmp_path):
    before = everything(tmp_path)
    toy.train(recipe, tmp_path / "run", "train.steps=3")
    assert [name for name in everything(tmp_path) if name.partition("/")[0] != "run"] == before
    assert [path.name.partition("-")[0] for path in sorted((tmp_path / "cache" / "index").iterdir())] == ["held.jsonl", "train.jsonl"]


def test_a_project_that_moves_with_its_data_is_continued_exactly(recipe, tmp_path, monkeypatch, capsys):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    for file in ("train.jsonl", "held.jsonl"):
        (tmp_path / file).rename(tmp_path / "one" / file)
    (tmp_path / "one" / "recipe.yaml").write_text(recipe.read_text().replace(f"{tmp_path}/", ""))
    toy.train(tmp_path / "one" / "recipe.yaml", tmp_path / "one" / "run", "train.steps=3")
    (tmp_path / "one").rename(tmp_path / "two" / "one")
    capsys.readouterr()
    toy.train(tmp_path / "two" / "one" / "recipe.yaml", tmp_path / "two" / "one" / "run", "train.steps=6")
    assert "data     exact: jsonl:train.jsonl" in capsys.readouterr().out


def test_a_restart_that_fails_leaves_the_old_run_under_its_name(recipe, tmp_path, capsys):
    toy.train(recipe, tmp_path / "run")
    before, body = everything(tmp_path), (tmp_path / "run" / "metrics.jsonl").read_bytes()
    again = ["train", str(recipe), f"--run={tmp_path / 'run'}", "--restart"]
    assert cli.main([*again, "--checkpoint.best=nothing"]) == 2
    assert everything(tmp_path) == before and (tmp_path / "run" / "metrics.jsonl").read_bytes() == body
    assert f"the start failed, and the old run is {tmp_path / 'run'} again" in capsys.readouterr().out
    assert cli.main(again) == 0
    assert (tmp_path / "run.before-1" / "metrics.jsonl").read_bytes() == body


def settings_of(run):
    return (run / "config.yaml").read_bytes(), (run / "migrations.jsonl").exists()


@pytest.mark.parametrize("setting", ["--trainable=[lost]", "--optim.name=adamw8bit"])
def test_a_continued_start_that_fails_leaves_the_settings_that_the_run_has(recipe, tmp_path, monkeypatch, capsys, setting):
    monkeypatch.setitem(sys.modules, "torchao", None)
    run = toy.train(recipe, tmp_path / "run", "stages=[]", "train.steps=4")
    before, again = settings_of(run), ["train", str(recipe), f"--run={run}", "--stages=[]"]
    assert cli.main([*again, "--train.steps=6", "--allow-inexact", setting]) == 2
    assert f"the start ended before a step, and the configuration of {run} is the one before" in capsys.readouterr().out
    assert settings_of(run) == before
    assert cli.main([*again, "--train.steps=6"]) == 0, capsys.readouterr().err
    assert b"steps: 6" in settings_of(run)[0]


def test_settings_are_the_runs_from_the_first_step_on(recipe, tmp_path, monkeypatch):
    """Whatever ends a start before it, a kill among them, leaves those before; a run that fails later keeps those it went on with."""
    run = toy.train(recipe, tmp_path / "run", "stages=[]", "train.steps=4")
    before, seen = settings_of(run)[0], []

    def step(loop, *rest, usual=Loop.step, **more):
        seen.append(settings_of(run)[0])
        if len(seen) == 2:
            raise RuntimeError("the device is gone")
        return usual(loop, *rest, **more)

    monkeypatch.setattr(Loop, "step", step)
    with pytest.raises(RuntimeError, match="the device is gone"):
        toy.train(recipe, run, "stages=[]", "train.steps=9", "checkpoint.every_steps=100")
    assert seen[0] == before != seen[1] == settings_of(run)[0]
    assert b"steps: 9" in seen[1] and signed.is_as_written(run / "config.yaml")


def test_settings_of_a_start_that_has_nothing_left_to_do_are_the_runs(recipe, tmp_path):
    run = toy.train(recipe, tmp_path / "run", "stages=[]", "train.steps=4")
    toy.train(recipe, run, "stages=[]", "train.steps=4", "checkpoint.keep=7")
    assert b"keep: 7" in settings_of(run)[0]
