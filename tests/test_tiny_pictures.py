"""`configs/nanodit/tiny.yaml` by the commands at its head, and the scoring of its pictures in `benchmarks/nanodit_scenes.py`."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from plait import cli
from plait.data.synthetic.lexicon import COLOURS, SHAPES

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "configs/nanodit/tiny.yaml"


@pytest.fixture(scope="module")
def scenes():
    """The benchmark as a module."""
    spec = importlib.util.spec_from_file_location("nanodit_scenes", ROOT / "benchmarks/nanodit_scenes.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def words(scenes, text: str) -> set[str]:
    return {word for word, said in zip((*COLOURS, *SHAPES), scenes.named(text).tolist(), strict=True) if said}


def test_a_caption_names_colours_and_shapes_in_any_number(scenes) -> None:
    assert words(scenes, "there are two large red crosses and a small blue hexagon") == {"red", "cross", "blue", "hexagon"}
    assert words(scenes, "A picture of a small orange cross above a ring.") == {"orange", "cross", "ring"}
    assert words(scenes, "small stars at the top left") == {"star"}


def test_a_picture_is_right_where_all_that_is_asked_is_found(scenes) -> None:
    asked = torch.stack([scenes.named(text) for text in ("a red circle", "a red ring and a blue star", "a pink heart", "a pink heart")])
    seen = torch.stack([scenes.named(text) for text in ("a red circle", "a red star", "a pink and cyan heart", "a ring")]).bool()
    report = scenes.score(seen, asked)
    assert report["colour"]["right"] == 0.5 and report["colour"]["exactly"] == 0.25  # blue is missing, cyan is too many, nothing is pink
    assert report["shape"]["right"] == 0.5 and report["shape"]["exactly"] == 0.5
    assert report["colour"]["guessing"] == pytest.approx(2 / 12, abs=1e-4)  # red for the first in the second, pink in the third
    low, high = report["colour"]["interval"]
    assert (low, high) == (0.15, 0.85)  # Wilson's of 2 in 4


def test_the_commands_of_the_recipe_make_shards_a_run_and_a_picture(tmp_path: Path, monkeypatch) -> None:
    head = re.sub(r"\\\n#\s+", "", RECIPE.read_text())
    shard, train, generate = (shlex.split(line)[1:] for line in re.findall(r"#\s+(plait .+)", head))
    folder = tmp_path / "checkout"
    (folder / "configs/nanodit").mkdir(parents=True)
    (folder / "configs/nanodit/tiny.yaml").write_text(RECIPE.read_text())
    monkeypatch.chdir(folder)
    assert cli.main([word if not word.startswith("--limit=") else "--limit=40" for word in shard]) == 0
    assert cli.main([*train, "--train.steps=2", "--evaluate=[]", "--data.workers=0"]) == 0
    assert cli.main([*generate, "--steps=2"]) == 0
    size = next(word.partition("=")[2] for word in generate if word.startswith("--size="))
    (picture,) = (folder / "runs/nanodit-tiny/generated").glob("*-seed-0-*.png")
    with Image.open(picture) as drawn:
        assert "x".join(map(str, drawn.size)) == size
