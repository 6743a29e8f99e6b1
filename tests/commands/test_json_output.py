"""`--json` of every verb that has it: standard output is one JSON object with the keys that the help names, and nothing else."""

import json
import logging
import shlex

import pytest

from plait import cli
from plait.commands import command_line
from plait.commands.command import actions
from plait.engine.monitoring.json_output import show_json
from tests.test_cli import CONFIG

LINES = {
    ("recipes",): "recipes",
    ("config",): "config small.yaml",
    ("plan",): "plan small.yaml",
    ("eval",): "eval first --bench loss,accuracy --against base,second --samples=4",
    ("stages",): "stages first",
    ("runs",): "runs .",
    ("why",): "why first",
    ("report",): "report first second",
    ("compare",): "compare first second",
    ("ckpt", "inspect"): "ckpt inspect first",
    ("ckpt", "verify"): "ckpt verify first",
    ("ckpt", "diff"): "ckpt diff first second",
    ("ckpt", "prune"): "ckpt prune first",
    ("doctor",): "doctor",
    ("upgrade-check",): "upgrade-check first",
    ("verify",): "verify first",
    ("data", "step"): "data step first 2",
    ("data", "inspect"): "data inspect small.yaml --samples=2 --figures=20",
}
"""A command line of each verb that takes `--json`."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the configuration small.yaml and two runs of it, `first` and `second`."""
    folder = tmp_path_factory.mktemp("json")
    (folder / "small.yaml").write_text(CONFIG)
    measure = ["--evaluate=[{bench: loss}]", "--guard.forgetting=null", "--guard.blindness=false"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for run, rate in (("first", "1e-3"), ("second", "2e-3")):
            assert cli.main(["train", "small.yaml", f"--run={run}", f"--optim.lr={rate}", *measure]) == 0
    return folder


def helps():
    """The keys that the help of `--json` names, of each verb that has it, by the verb's words."""
    _, parsers = command_line.build_parsers()
    found = {}
    for words, parser in parsers.items():
        for action in actions(parser):
            if "--json" in action.option_strings:
                found[words] = action.help.removeprefix("as one JSON object: ")
    return found


def test_every_verb_with_the_switch_is_tried():
    assert set(helps()) == set(LINES)


@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_standard_output_is_one_object_with_the_keys_of_the_help(words, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    code = cli.main([*shlex.split(LINES[words]), "--json"])
    out, err = capsys.readouterr()
    told = json.loads(out)
    named = [key.strip() for key in helps()[words].partition(", a list")[0].split(",")]
    assert list(told) == named or set(told) == set(named)
    assert code == (1 if words == ("doctor",) and told["cures"] else 0), err


def test_eval_has_the_figures_of_each_bench_and_of_the_models_beside_it(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert cli.main([*shlex.split(LINES["eval",]), "--json"]) == 0
    out, err = capsys.readouterr()
    loss, accuracy = json.loads(out)["results"]
    assert (loss["bench"], accuracy["bench"]) == ("loss", "accuracy")
    assert loss["figures"]["loss"] == pytest.approx(json.loads((folder / loss["folder"] / "metrics.json").read_bytes())["loss"])
    assert list(accuracy["against"]["others"]) == ["base", "second"]
    assert "written to" in err, "what is told on the way goes to standard error"
    assert cli.main(["eval", "first", "--bench=accuracy", "--samples=4", "--json"]) == 0
    assert "against" not in json.loads(capsys.readouterr().out)["results"][0], "the file is of an earlier call"


def test_the_next_verb_writes_to_standard_output_again(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert cli.main(["stages", "first", "--json"]) == 0
    capsys.readouterr()
    logging.getLogger("plait").info("of a program that goes on")
    assert capsys.readouterr().out == "of a program that goes on\n"
    assert cli.main(["stages", "first"]) == 0
    out, err = capsys.readouterr()
    assert (out.startswith("stage 1 train: done"), err) == (True, "")


def test_a_stage_and_a_comparison_are_told_in_numbers(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert cli.main(["stages", "first", "--json"]) == 0
    (stage,) = json.loads(capsys.readouterr().out)["stages"]
    assert (stage["done"], stage["planned"], stage["held_out"][0]["name"]) == (2, 2, "loss")
    assert cli.main(["compare", "first", "second", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["settings"] == {"optim.lr": ["0.001", "0.002"]}
    assert [run["train"]["done"] for run in told["stages"]] == [2, 2]
    assert cli.main(["ckpt", "diff", "first", "second", "--json"]) == 0
    moved = json.loads(capsys.readouterr().out)
    assert [row["component"] for row in moved["components"]] == ["projector", "vision", "language"]
    assert "world" in moved["frozen"] and moved["differences"] == ["config optim.lr: 0.001 -> 0.002"]
    assert all(0 < row["moved"] < 1 for row in moved["components"])


def test_a_damaged_checkpoint_is_in_the_object_and_ends_with_one_line(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    run = folder / "damaged"
    assert cli.main(["train", "small.yaml", f"--run={run.name}"]) == 0
    (weights,) = run.glob("stage-1-train/step-*/weights*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    capsys.readouterr()
    assert cli.main(["ckpt", "verify", run.name, "--json"]) == 1
    out, err = capsys.readouterr()
    assert list(json.loads(out)["damaged"]) == [str(weights.parent.relative_to(folder))]
    assert err.splitlines()[-1].startswith("plait: damaged has")


def test_numbers_that_json_cannot_say_are_null(caplog):
    with caplog.at_level("INFO"):
        show_json({"loss": float("nan"), "by": [{"best": float("inf"), "name": "x"}], "steps": 3})
    assert json.loads(caplog.messages[-1]) == {"loss": None, "by": [{"best": None, "name": "x"}], "steps": 3}
