"""`plait fork` refuses what `plait train` would refuse of the fork, before there is a folder; what it makes, `plait train` continues."""

import pytest

from plait import cli
from tests import toy_family as toy


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """A run whose checkpoint at step 2 has never trained `language`."""
    folder = tmp_path_factory.mktemp("fork")
    with pytest.MonkeyPatch.context() as patch:
        recipe = toy.install(patch, folder)
        yield toy.train(recipe, folder / "run", "evaluate=[]", "checkpoint.best=null", "train.steps=2")


@pytest.mark.parametrize(
    ("spec", "setting", "said"),
    [
        ("@2", "seed=5", "the frozen weights are not those that"),
        ("@4", "seed=5", "or another seed than 5"),
        ("@4", "model.width=5", "the frozen weights are not those that"),
        ("@4", "stages=[]", "is of stage 2, but the configuration has 1 stages"),
        ("@4", "data.train=[{source: jsonl, path: nowhere.jsonl}]", "there is no file"),
        ("@2", "stages.1.data.train=[{source: jsonl, path: nowhere.jsonl}]", "there is no file"),
        ("@4", "stages.1.trainable=[nosuch]", "trainable names 'nosuch', which is no component of this model"),
        ("@4", "adapters={vision: {targets: [x]}}", "adapters.vision is in no stage's trainable"),
        ("@4", "stages.2.trainable=[language.lora]", "trainable names 'language.lora', the adapters of language, and there are none"),
        ("@4", "optim.components.nosuch.lr=1e-3", "optim.components names 'nosuch'"),
        ("@4", "checkpoint.best=loss", "no bench of evaluate gives a figure 'loss'; they give none"),
        ("@4", "evaluate=[{bench: nosuch}]", "evaluate names bench 'nosuch', which is unknown; known: loss"),
    ],
)
def test_what_train_would_refuse_the_fork_refuses_and_makes_no_folder(parent, tmp_path, capsys, spec, setting, said):
    assert cli.main(["fork", f"{parent}{spec}", str(tmp_path / "new"), f"--{setting}"]) == 2
    printed = capsys.readouterr()
    assert said in printed.err and len(printed.err.splitlines()) == 1
    assert "continue it" not in printed.out and list(tmp_path.iterdir()) == []


def test_a_fork_that_loses_something_lists_it_and_the_command_that_goes_on(parent, tmp_path, capsys):
    assert cli.main(["fork", f"{parent}@6", str(tmp_path / "new"), "--model.width=5"]) == 0  # everything was trained: none is frozen
    said = capsys.readouterr().out.splitlines()
    assert any(line.startswith("  inexact: weights of projector: drop 2") for line in said)
    assert said[-1] == f"continue it: plait train {tmp_path / 'new'} --allow-inexact"
    assert cli.main(["train", str(tmp_path / "new")]) == 2
    assert "this start is inexact" in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["seed=5", "optim.lr=1e-3", "data.validation=[]"])
def test_a_fork_that_is_made_is_continued(parent, tmp_path, capsys, setting):
    assert cli.main(["fork", f"{parent}@6", str(tmp_path / "new"), f"--{setting}"]) == 0
    assert capsys.readouterr().out.endswith(f"continue it: plait train {tmp_path / 'new'}\n")
    assert cli.main(["train", str(tmp_path / "new")]) == 0


def test_a_fork_gets_adapters_that_its_parent_had_not_and_loses_those_of_another_rank(parent, tmp_path, capsys):
    adapted = ["--adapters.language.rank=2", "--stages.2.trainable=[language.lora]"]
    assert cli.main(["fork", f"{parent}@4", str(tmp_path / "wrong"), *adapted, "--adapters.language.targets=x"]) == 2
    assert "adapters.language.targets: 'x' is no linear layer of language" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert cli.main(["fork", f"{parent}@4", str(tmp_path / "new"), *adapted]) == 0
    assert cli.main(["train", str(tmp_path / "new")]) == 0
    capsys.readouterr()
    assert cli.main(["fork", f"{tmp_path / 'new'}@6", str(tmp_path / "other"), "--adapters.language.rank=3"]) == 0
    assert "inexact: weights of language.lora: drop 2" in capsys.readouterr().out
