"""`plait eval --base`: the model of a configuration before its first step, kept apart from runs and from other models."""

import json

import pytest

from plait import cli
from plait.engine.checkpoints import checkpoint
from tests.test_cli import CONFIG


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG + "evaluate: [{bench: loss, every_steps: 1}]\n")
    return path


def measured(folder):
    """The metrics of the one result below a folder."""
    (path,) = folder.rglob("metrics.json")
    return json.loads(path.read_text())


def test_the_base_is_measured_without_a_run_and_again_only_where_it_changed(recipe, tmp_path, capsys):
    line = ["eval", "--base", "run.yaml", "--bench", "accuracy", "--run=new"]
    assert cli.main(line) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "theworld of new, weights before the first step"
    metrics = measured(tmp_path / "new-base")
    assert (metrics["step"], metrics["checkpoint"], metrics["count"]) == (0, "theworld of new", 8)
    assert not (tmp_path / "new").exists()
    assert cli.main(line) == 0
    assert "nothing left to do" in capsys.readouterr().out
    assert cli.main([*line, "--model.world=off"]) == 0
    assert "nothing left to do" not in capsys.readouterr().out
    assert len([*(tmp_path / "new-base").rglob("metrics.json")]) == 2


def test_a_base_is_what_a_run_of_its_configuration_begins_with(recipe, tmp_path):
    assert cli.main(["eval", "--base", "run.yaml", "--bench", "loss", "--run=new"]) == 0
    assert cli.main(["train", "run.yaml", "--run=new", "--optim.lr=1e-30", "--optim.weight_decay=0", "--optim.schedule.name=constant"]) == 0
    assert cli.main(["eval", "new", "--bench", "loss"]) == 0
    trained = json.loads((tmp_path / "new/eval/loss-step-00000002/metrics.json").read_text())
    assert measured(tmp_path / "new-base")["figures"] == pytest.approx(trained["figures"], rel=1e-6)
    assert cli.main(["eval", "--base", "run.yaml", "--bench", "loss", "--run=new"]) == 0  # beside the run's own figures now
    assert len([*(tmp_path / "new/eval").glob("loss-base-*")]) == 1
    assert cli.main(["train", "run.yaml", "--run=new", "--optim.lr=1e-30", "--optim.weight_decay=0", "--optim.schedule.name=constant"]) == 0


def test_a_base_that_starts_from_other_weights_has_them(recipe, tmp_path, capsys):
    assert cli.main(["train", "run.yaml", "--run=first", "--optim.lr=0.01"]) == 0
    assert cli.main(["eval", "first", "--bench", "loss"]) == 0
    first = json.loads((tmp_path / "first/eval/loss-step-00000002/metrics.json").read_text())["figures"]
    assert cli.main(["eval", "--base", "run.yaml", "--bench", "loss", "--run=second", "--from=first"]) == 0
    assert measured(tmp_path / "second-base")["figures"] == first
    assert cli.main(["train", "run.yaml", "--run=second", "--from=first"]) == 0  # nothing of the measurement is in its way
    assert checkpoint.published(tmp_path / "second")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("eval --bench loss", "give either a checkpoint (RUN, RUN@STEP, RUN/STAGE, RUN/STAGE@best or a step folder) or --base CONFIG"),
        ("eval x --base run.yaml --bench loss", "give either a checkpoint (RUN, RUN@STEP, RUN/STAGE, RUN/STAGE@best or a step folder)"),
        ("eval --base run.yaml --bench loss --raw", "--raw and --ema-length choose between weights that were trained; --base has none"),
        ("eval --base run.yaml --bench loss --sed 3", "command line: sed is not a key: did you mean seed?"),
        ("eval --base run.yaml --bench accurcy", "--bench 'accurcy' is unknown: did you mean accuracy?"),
        ("eval --base gone.yaml --bench loss", "gone.yaml: no such file"),
    ],
)
def test_a_wrong_call_gives_one_line(recipe, capsys, line, message):
    assert cli.main(line.split()) == 2
    assert capsys.readouterr().err.startswith(f"plait: {message}")
