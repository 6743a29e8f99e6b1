"""`plait eval --against`: baselines on the same samples in one table, with paired differences, as JSON and as a page."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from plait import cli
from plait.commands.actions.evaluation.subject import Randomised, Saved
from plait.engine.parallel.distributed import Ranks
from plait.errors import PlaitError
from tests import processes
from tests.commands.test_ablations import RUN, TINY

CPU = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run that learned a little, and one without a world."""
    folder = tmp_path_factory.mktemp("against")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "c.yaml").write_text(RUN.replace("FAMILY", "theworld").replace("steps: 1", "steps: 12") + TINY["theworld"])
        assert cli.main(["train", "c.yaml", "--optim.lr=0.01"]) == 0
        assert cli.main(["train", "c.yaml", "--run=alone", "--model.world=off", "--train.steps=2"]) == 0
        (folder / "m.yaml").write_text(RUN.replace("FAMILY", "molmo") + TINY["molmo"])
        assert cli.main(["train", "m.yaml", "--run=molmo"]) == 0
    return folder


def test_baselines_are_measured_on_the_same_samples_in_one_table(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    command = ["eval", "run", "--bench=loss,accuracy", "--samples=8", "--against=base,random:projector,random:world,alone"]
    assert cli.main([*command, "--ablate=world"]) == 0
    out = capsys.readouterr().out
    (folder,) = (runs / "run/eval").glob("loss-step-00000012-ablate-world")
    told = json.loads((folder / "against.json").read_text())
    assert list(told["others"]) == ["base", "random:projector", "random:world", "alone"] and told["figure"] == "loss"
    own = told["measured"]["figures"]["loss"]
    for other in told["others"].values():
        gain = other["gains"]["loss"]
        assert gain["value"] == pytest.approx(other["figures"]["loss"] - own) and gain["low"] <= gain["value"] <= gain["high"]
    assert told["others"]["base"]["gains"]["loss"]["low"] > 0 and "the measured model beats base" in told["sentence"]
    assert "loss/world_off" in told["others"]["base"]["figures"] and "loss/world_off" not in told["others"]["alone"]["figures"]
    for shown in (out, (folder / "against.html").read_text()):
        assert "measured - it" in shown and "random:projector" in shown and "on - off" in shown and told["sentence"] in shown
    assert (runs / "run/eval/accuracy-step-00000012-ablate-world/against.json").is_file()
    assert cli.main([*command, "--ablate=world"]) == 0
    assert capsys.readouterr().out.count("nothing left to do") == 10


def test_a_model_that_cannot_be_measured_is_named_and_costs_no_other_its_table(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    shutil.copytree("alone", "torn")

    opened = Saved.build

    def build(self, *given, **named):
        if "torn" in str(self.run):
            raise PlaitError("its weights cannot be read")
        return opened(self, *given, **named)

    monkeypatch.setattr(Saved, "build", build)
    assert cli.main(["eval", "run", "--bench=loss", "--samples=8", "--against=torn,alone", "--out=kept"]) == 2
    shown = capsys.readouterr()
    assert shown.err.rstrip("\n").endswith("--against torn: its weights cannot be read; what is above is of alone")
    assert list(json.loads((runs / "kept/against.json").read_text())["others"]) == ["alone"]
    assert "measured - it" in shown.out


def test_a_loss_is_compared_sample_by_sample_without_an_ablation_too(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    assert cli.main(["eval", "run", "--bench=loss", "--samples=8", "--against=base"]) == 0
    told = json.loads((runs / "run/eval/loss-by-sample-step-00000012/against.json").read_text())
    assert told["others"]["base"]["gains"]["loss"]["low"] > 0 and "on - off" not in capsys.readouterr().out


def test_a_base_is_what_the_run_began_with(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    assert cli.main(["eval", "run", "--bench=accuracy", "--samples=8", "--against=base", "--out=out"]) == 0
    assert cli.main(["eval", "--base", "c.yaml", "--bench=accuracy", "--samples=8", "--out=base"]) == 0
    through = json.loads((runs / "out/against/base/predictions.json").read_text())
    assert through == json.loads((runs / "base/predictions.json").read_text())


def test_random_order_keeps_the_values_of_a_component_and_all_of_the_others(runs, monkeypatch):
    monkeypatch.chdir(runs)
    plain, random = (one.build(CPU, averaged=True, length=None)[0] for one in (Saved("run"), Randomised("run", "projector")))
    again = Randomised("run", "projector").build(CPU, averaged=True, length=None)[0]
    for component, parameters in plain.components().items():
        for name, value in parameters.items():
            other, same = random.components()[component][name], again.components()[component][name]
            assert torch.equal(other, same) and torch.equal(other.flatten().sort()[0], value.flatten().sort()[0])
            assert torch.equal(other, value) is (component != "projector" or value.unique().numel() == 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["run", "--against=random:eyes"],
            "--against random:eyes: the model has no component 'eyes': known: projector, vision, language, world",
        ),
        (["run", "--against=random:world_time"], "--against random:world_time: no weights of it are used: in random"),
        (["run", "--against=base,base"], "--against names 'base' twice"),
        (["run", "--against=molmo"], "--against molmo is a model of family 'molmo', and what is measured of 'theworld'"),
        (["run", "--against=gone"], "--against gone: 'gone' does not exist"),
        (["--base=c.yaml", "--against=base"], "--against base is for a checkpoint of a run; what --base measures has learned nothing yet"),
    ],
)
def test_a_wrong_model_gives_one_line_before_anything_is_measured(runs, monkeypatch, capsys, options, words):
    monkeypatch.chdir(runs)
    assert cli.main(["eval", "--bench=accuracy", "--out=nowhere", *options]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (runs / "nowhere").exists()


def test_several_benches_and_models_are_measured_by_several_ranks(runs):
    command = [
        sys.executable,
        "-m",
        "plait",
        "eval",
        "run",
        "--bench=loss,accuracy",
        "--samples=4",
        "--against=base",
        "--nproc=2",
        "--out=two",
    ]
    done = subprocess.run(command, cwd=runs, capture_output=True, text=True, timeout=processes.LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    for bench in ("loss", "accuracy"):
        told = json.loads((runs / "two" / bench / "against.json").read_text())
        assert len(told["others"]) == 1 and told["sentence"] in done.stdout


def test_untrained_is_the_model_that_the_chain_of_runs_began_with(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    for number, origin in enumerate(("run", "chain-0")):
        assert cli.main(["train", "c.yaml", f"--run=chain-{number}", f"--from={origin}", "--train.steps=1"]) == 0
    assert cli.main(["fork", "chain-1", "forked"]) == 0
    measured = ["--bench=loss", "--samples=4"]
    assert cli.main(["eval", "run", *measured, "--against=base", "--out=first"]) == 0
    untrained = json.loads((runs / "first/against.json").read_text())["others"]["base"]["figures"]
    for name in ("chain-1", "forked"):
        capsys.readouterr()
        assert cli.main(["eval", name, *measured, "--against=base,untrained", f"--out=of-{name}"]) == 0
        others = json.loads((runs / f"of-{name}/against.json").read_text())["others"]
        assert others["untrained"]["figures"] == untrained != others["base"]["figures"]
        out = capsys.readouterr().out
        assert f"  base is theworld of {name}, which began from {runs}/chain-0\n" in out
        assert f"  untrained is theworld of {runs}/run\n" in out
    (runs / "run").rename(runs / "away")
    assert cli.main(["eval", "chain-1", *measured, "--against=untrained", "--out=none"]) == 2
    before = "no run on disk, so that what it was before is not known; --against base needs none"
    told = f"--against untrained: {runs}/chain-0 began from {runs}/run, {before}"
    assert told in capsys.readouterr().err
    (runs / "away").rename(runs / "run")
