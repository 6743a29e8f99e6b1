"""Runs that decide by themselves whether blocks are compiled."""

import json
import logging
import shutil

import pytest

from plait import cli
from plait.engine.compilation import choice
from tests import toy_family as toy

AUTO = "distributed={compile: auto, compile_backend: aot_eager}"


@pytest.fixture
def recipe(monkeypatch, tmp_path):
    return toy.install(monkeypatch, tmp_path)


def manifest(run, step):
    return json.loads((toy.at(run, step).folder / "manifest.json").read_text())


def test_on_a_cpu_a_run_is_as_without_and_says_why(recipe, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    plain = toy.figures(toy.train(recipe, tmp_path / "plain", only="projection"))
    assert toy.figures(toy.train(recipe, tmp_path / "auto", AUTO, only="projection")) == plain
    assert caplog.messages.count("distributed.compile is auto: blocks are not compiled, as the device is cpu") == 1
    assert "recompiles" not in plain[0]


def test_a_step_of_such_a_run_can_be_replayed(recipe, tmp_path, capsys):
    run = toy.train(recipe, tmp_path / "run", AUTO, only="projection")
    assert cli.main(["ckpt", "replay", str(run), "4"]) == 0
    assert "distributed.compile is auto: blocks are not compiled, as the device is cpu" in capsys.readouterr().out


# the compiler looks at .grad of activations while it traces, and hides its own warning only where warnings are no errors
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_run_that_goes_on_where_nothing_is_compiled_says_so(recipe, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    run = tmp_path / "run"
    with monkeypatch.context() as gpu:
        gpu.setattr(choice, "why_not", lambda config, device: None)
        toy.train(recipe, run, AUTO, "checkpoint.every_steps=2", only="projection")
    last = max(int(path.name[-8:]) for path in (run / "stage-1-projection").iterdir())
    shutil.rmtree(run / "stage-1-projection" / f"step-{last:08d}")
    assert manifest(run, last - 2)["compiled"] is True
    assert "distributed.compile is auto: blocks are compiled" in caplog.messages
    toy.train(recipe, run, AUTO, "checkpoint.every_steps=2", only="projection")
    assert manifest(run, last)["compiled"] is False
    assert (
        f"blocks were compiled up to step {last - 2} and are plain from here on: figures differ in their last digits; "
        "distributed.compile=true goes on as before"
    ) in caplog.messages
    assert not any("configuration changed" in line for line in caplog.messages)
