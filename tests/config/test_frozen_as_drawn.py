"""A language model or head that is drawn at random and that no stage trains is told before the run, with the override that trains it."""

import json

import pytest

from plait import cli
from plait.assembly.configuration import open_config

NANODIT = "model: {space: pixels, image_size: 32, text: words, image_dim: 0, dropout: {neither: 0.1, text_only: 0.0, image_only: 0.0}}"
RECIPES = {
    "theworld": ("preset: tiny", "projector, vision", "language"),
    "molmo": ("preset: debug", "connector", "language"),
    "nanodit": (NANODIT, "embed, blocks", "final"),
}
DATA = "data: {train: [{source: scenes, limit: 16, options: {size: [32, 32], objects: [1, 2], tasks: [caption]}}]}"


def recipe(folder, family, trainable):
    path = folder / "recipe.yaml"
    path.write_text(f"family: {family}\n{RECIPES[family][0]}\ntrainable: [{trainable}]\n{DATA}\ntrain: {{steps: 2, global_batch: 2}}\n")
    return path


def told(path, *overrides):
    return [line for line in open_config(path, overrides).warnings if "drawn at random" in line]


@pytest.mark.parametrize("family", RECIPES)
def test_a_part_that_nothing_trains_is_told_and_cured(family, tmp_path):
    _, trainable, part = RECIPES[family]
    path = recipe(tmp_path, family, trainable)
    (line,) = told(path)
    cure = f"--trainable=[{trainable.replace(' ', '')},{part}]"
    assert line == f"{part} is drawn at random and nothing trains it, so that it stays noise: {cure}, or weights that have it (from)"
    assert told(path, cure.removeprefix("--")) == told(path, "trainable=['*']") == told(path, "from=runs/first") == []
    staged = f"stages=[{{name: a, trainable: [{trainable}]}}, {{name: b, trainable: [{part}]}}]"
    assert told(path, staged) == []
    assert f"--stages.0.{cure.removeprefix('--')}" in told(path, f"stages=[{{name: a, trainable: [{trainable}]}}]")[0]


def test_published_weights_may_stay_frozen(tmp_path):
    path = recipe(tmp_path, "theworld", "projector")
    assert told(path, "preset=null", "model.base=google/gemma-3-4b-it") == []


def test_plait_config_shows_it(tmp_path, capsys):
    assert cli.main(["config", str(recipe(tmp_path, "theworld", "projector, vision")), "--json"]) == 0
    assert any(line.startswith("language is drawn at random") for line in json.loads(capsys.readouterr().out)["warnings"])
