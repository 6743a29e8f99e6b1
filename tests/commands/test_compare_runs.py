"""`plait compare` shows runs side by side, and `plait prove` takes a run by every name of its checkpoints."""

import re

import pytest

from plait import cli
from plait.assembly import checkpoint_specs
from plait.commands.prove import prove
from plait.errors import PlaitError
from tests import toy_family as toy


@pytest.fixture
def made(tmp_path, monkeypatch):
    """The recipe of the toy, and two runs of it that differ in their learning rate."""
    monkeypatch.chdir(tmp_path)
    recipe = toy.install(monkeypatch, tmp_path)
    for name, rate in (("low", "1e-3"), ("high", "1e-2")):
        toy.train(recipe, name, f"optim.lr={rate}")
    return recipe


def table(text):
    return {cells[0]: cells[1:] for cells in (re.split(r"\s{2,}", line.strip()) for line in text.splitlines())}


def losses(run, stage):
    rows = [row for row in toy.figures(run) if "eval/loss" in row]
    return [(row["eval/loss"], row["step"]) for row in rows if row["stage"] == stage]


def test_two_learning_rates_are_compared_in_one_command(made, tmp_path, capsys):
    capsys.readouterr()
    assert cli.main(["compare", "low", "high"]) == 0
    rows = table(capsys.readouterr().out)
    assert rows["low"] == ["high"], "the head"
    assert rows["optim.lr"] == ["0.001", "0.01"]
    assert [name for name in rows if "." in name] == ["optim.lr"], "the only setting that differs"
    for number, stage in ((1, "projection"), (3, "language")):
        assert rows[f"{stage} steps"] == ["6 of 6", "6 of 6"]
        best = [min(losses(tmp_path / run, number)) for run in ("low", "high")]
        assert rows[f"{stage} best loss"] == [f"{value:.4g} at step {step}" for value, step in best]
        assert rows[f"{stage} last loss"] == [f"{losses(tmp_path / run, number)[-1][0]:.4g}" for run in ("low", "high")]
        assert all(re.fullmatch(r"\d:\d\d:\d\d", cell) for cell in rows[f"{stage} time"])


def test_three_runs_are_compared_and_what_one_has_not_is_a_dash(made, tmp_path, capsys):
    toy.train(made, "short", "train.steps=4", "optim.lr=1e-3", only="projection")
    capsys.readouterr()
    assert cli.main(["compare", "low", "high", "short"]) == 0
    rows = table(capsys.readouterr().out)
    assert rows["optim.lr"] == ["0.001", "0.01", "0.001"]
    assert rows["train.steps"] == ["6", "6", "4"]
    assert rows["projection steps"] == ["6 of 6", "6 of 6", "4 of 4"]
    assert rows["vision steps"] == ["6 of 6", "6 of 6", "-"]


def test_runs_that_cannot_be_compared_are_one_line(made, capsys):
    for words, line in (
        (["low", "./low"], "low is given twice: a run is compared with others"),
        (["low", "nowhere"], "nowhere is no run directory: it has no config.yaml"),
    ):
        capsys.readouterr()
        assert cli.main(["compare", *words]) == 2
        assert capsys.readouterr().err == f"plait: {line}\n"
    assert cli.main(["compare", "low"]) == 2
    assert "the following arguments are required: RUN" in capsys.readouterr().err


@pytest.mark.parametrize("spec", ["low", "low@4", "low/vision", "low/vision@best", "low/latest", "low/stage-1-projection/step-00000002"])
def test_prove_takes_every_name_of_a_checkpoint(spec, made, monkeypatch, capsys):
    taken = []
    monkeypatch.setattr(prove, "prove", lambda resolved, **_: taken.append(resolved.config))
    assert cli.main(["prove", spec, "--steps=2"]) == 0, capsys.readouterr().err
    assert [(config.optim.lr, str(config.run)) for config in taken] == [(0.001, "low")]


def test_prove_says_which_checkpoint_or_file_there_is_not(made, capsys):
    missing = {"low@5": "low has no checkpoint at step '5'; it has 2, 4, 6", "lo@4": "'lo@4' does not exist; did you mean low?"}
    for spec, said in missing.items():
        capsys.readouterr()
        assert cli.main(["prove", spec]) == 2
        assert said in capsys.readouterr().err
    assert cli.main(["prove", "nowhere.yaml"]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err
    assert checkpoint_specs.run_named("nowhere.yaml") is None
    with pytest.raises(PlaitError, match="at step '7'"):
        checkpoint_specs.run_named("low@7")
