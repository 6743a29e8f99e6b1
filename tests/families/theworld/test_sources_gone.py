"""An export that holds its pretrained parts is asked and measured where the places that its run had them from are gone."""

import json
import re
import shutil
from pathlib import Path

import pytest

from plait import cli
from plait.errors import PlaitError
from plait.families.theworld import towers
from plait.families.theworld.config import Config
from plait.theworld import TheWorld
from tests.commands.test_of_export import command
from tests.families.theworld.conftest import photo
from tests.families.theworld.pretrained.conftest import saved
from tests.families.theworld.pretrained.test_control import RECIPE

ASKED = ("--prompt=Which is faster?", "--image=clip/0.png", "--frames=clip", "--max-new-tokens=6")
OPTIONS = {"size": [32, 32], "objects": 2, "frames": 9, "horizon": 12, "speed": [0.03, 0.15], "tasks": ["faster"]}
SCENES = {"source": "scenes", "limit": 4, "options": OPTIONS}
DATA = (json.dumps([SCENES]), json.dumps([{**SCENES, "rollout": "futures"}]))
HELD, PINNED = "theworld-with-encoder", "theworld"


@pytest.fixture(scope="module")
def gone(make, directory, tmp_path_factory):
    """(A folder with whole exports of a run over a local Gemma and a local Wan, which are gone since; the run's losses before)."""
    folder = tmp_path_factory.mktemp("gone")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        saved(folder / "a/b", "wan21")
        make()[1].gemma.save_pretrained("a/b/gemma")
        shutil.copytree(directory / towers.TOKENIZER, "a/b/gemma", dirs_exist_ok=True)
        Path("clip").mkdir()
        for number in range(5):
            Path(f"clip/{number}.png").write_bytes(photo(number, (32, 32)))
        recipe = RECIPE.replace("preset: tiny\n", "").replace("world: {", "world: {source: a/b/wan21, ")
        recipe = recipe.replace("[projector, language, world]", "[projector, language]")
        Path("run.yaml").write_text(re.sub(r"  tiny: .*\n.*\n", "  base: a/b/gemma\n", recipe))
        assert cli.main(["train", "run.yaml", "--run=run"]) == 0
        assert cli.main(["data", "rollout", "run.yaml", "futures", "--with=copy", "--split=validation"]) == 0
        for layout in (HELD, PINNED):
            assert cli.main(["export", "run", layout, f"--to={layout}"]) == 0
        before = losses("run")
        Path("a").rename("elsewhere")
    return folder, before


def losses(name):
    """The loss of a run or an export on clips, and on futures of the run's encoder."""
    for number, data in enumerate(DATA):
        assert cli.main(["eval", name, "--bench=loss", f"--data={data}", f"--out=out/{name}/{number}"]) == 0
    return [json.loads(Path(f"out/{name}/{number}/metrics.json").read_text())["figures"] for number in range(len(DATA))]


def test_an_export_with_its_encoder_is_asked_and_measured_without_its_sources(gone, monkeypatch, capsys):
    folder, before = gone
    monkeypatch.chdir(folder)
    assert losses(HELD) == before and before[0] != before[1]
    answered = command(capsys, "generate", HELD, *ASKED)
    clip = [f"clip/{number}.png" for number in range(5)]
    assert answered == (0, TheWorld.from_pretrained(HELD).generate("clip/0.png", ASKED[0][9:], frames=clip, max_new_tokens=6))


def test_an_export_that_names_its_encoder_needs_that_and_no_gemma(gone, monkeypatch, capsys):
    folder, before = gone
    monkeypatch.chdir(folder)
    code, said = command(capsys, "generate", PINNED, *ASKED)
    assert code == 2 and said.startswith("plait: model.world.source: cannot load 'a/b/wan21' as a Hub name or a local directory: ")
    shutil.copytree("elsewhere/b/wan21", "a/b/wan21")
    assert losses(PINNED) == before
    shutil.rmtree("a")


def test_an_export_is_a_source_of_the_encoder_that_it_holds_and_of_no_gemma(gone, monkeypatch):
    folder, _ = gone
    monkeypatch.chdir(folder)
    config = Config(base="elsewhere/b/gemma", world={"source": HELD, "image_size": 16})
    theirs = Config(base="elsewhere/b/gemma", world={"source": "elsewhere/b/wan21", "image_size": 16})
    read, wanted = (towers.load_encoder(each, each.world, 0).state_dict() for each in (config, theirs))
    used = [name for name in wanted if ".decoder." not in name and ".post_quant_conv." not in name]
    assert read.keys() == wanted.keys() and all((read[name] == wanted[name]).all() for name in used)
    refused = f"model.world.source: {PINNED} is an export without a world encoder: it names a/b/wan21, so name that"
    with pytest.raises(PlaitError, match=refused):
        towers.encoder_settings(config, config.world.model_copy(update={"source": PINNED}))
    with pytest.raises(PlaitError, match=f"model.base: {HELD} is a whole model of theworld, not a Gemma: set `from: {HELD}`"):
        towers.load_gemma(Config(base=HELD, world=False), 0)
