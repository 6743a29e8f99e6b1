"""A folder that a run's frozen encoder is read from gets other weights: every command that reads a checkpoint refuses, as training does."""

import json
import re
from pathlib import Path

import pytest
import torch

from plait import cli
from plait.errors import PlaitError
from plait.theworld import TheWorld
from tests.commands.test_ablations import RUN, TINY
from tests.families.theworld.pretrained.conftest import saved, wan21
from tests.families.theworld.pretrained.test_control import RECIPE


def command(capsys, *words):
    """The exit code of a command, and all that it says."""
    capsys.readouterr()
    code = cli.main(list(map(str, words)))
    said = capsys.readouterr()
    return code, (said.out + said.err).strip()


def test_a_checkpoint_is_not_opened_over_another_frozen_encoder(tmp_path, capsys):
    model, source = saved(tmp_path, "wan21")
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(RECIPE.replace("[projector, language, world]", "[projector, language]"))
    code, said = command(capsys, "train", recipe, f"--run={run}", f"--model.world.source={source}")
    assert code == 0, said
    torch.manual_seed(4)
    wan21().save_pretrained(tmp_path / "wan21" / "vae")
    line = rf"plait: the frozen weights are not those that {re.escape(str(run))}/\S+/step-\d+ was trained against: [^\n]*wan21[^\n]*"
    ask = ("eval", run, "--bench=loss", "--samples=4")
    asked = ("generate", run, "--prompt=Which is faster?")
    for words in (ask, asked, ("export", run, tmp_path / "out", "--to=theworld-with-encoder"), ("eval", run, "--bench=accuracy")):
        code, said = command(capsys, *words)
        assert code == 2 and re.fullmatch(line, said.splitlines()[-1]), said
    assert not (tmp_path / "out").exists() and not list(run.glob("eval/*/metrics.json"))
    with pytest.raises(PlaitError, match="the frozen weights are not those that"):
        TheWorld.from_pretrained(run)
    model.save_pretrained(tmp_path / "wan21" / "vae")
    assert command(capsys, *ask)[0] == 0
    (report,) = run.glob("eval/*/metrics.json")
    before = json.loads(report.read_text())["figures"]
    assert "nothing left to do" in command(capsys, *ask)[1] and json.loads(report.read_text())["figures"] == before


@pytest.mark.parametrize(("family", "part"), [("theworld", "projector"), ("molmo", "connector"), ("nanodit", None)])
def test_frozen_parts_of_another_seed_are_refused_in_every_family(tmp_path, monkeypatch, capsys, family, part):
    monkeypatch.chdir(tmp_path)
    recipe = RUN.replace("FAMILY", family) + TINY[family]
    Path("c.yaml").write_text(recipe + (f"trainable: [{part}]\n" if part else ""))
    assert command(capsys, "train", "c.yaml")[0] == 0
    for copy in Path("run").glob("stage-*/step-*/run-config.yaml") if part else ():
        copy.unlink()
    kept = Path("run/config.yaml")
    kept.write_text(re.sub(r"(?m)^seed: 0$", "seed: 1", kept.read_text()))
    code, said = command(capsys, "eval", "run", "--bench=loss")
    if part is None:  # all of it was trained: nothing is compared
        assert code == 0, said
    else:
        line = r"plait: the frozen weights are not those that run/\S+ was trained against: .* another seed than 1"
        assert code == 2 and re.search(line, said), said
