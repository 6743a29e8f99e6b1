"""A family's module `planning`: batches of the usual shapes that its own loss takes, and learning rates of its components."""

import json
import math
import shutil
import sys
from pathlib import Path

import pytest

from plait import cli
from plait.assembly.configuration import open_config
from plait.engine.loss import sums_of, weights_of
from plait.errors import PlaitError
from plait.families import registry
from plait.families.planning import planner
from plait.training.planning.stage_batch import _largest_bucket

ROOT = Path(__file__).resolve().parents[2]

TINY = {
    "theworld": {"base": "tiny"},
    "molmo": {"language": "debug"},
    "nanodit": {"space": "pixels", "depth": 1, "hidden": 32, "heads": 2, "text": "words", "text_dim": 16, "image_dim": 0},
}


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("tokens", [None, 200])
def test_an_assumed_batch_is_one_that_the_loss_takes(family, tokens, tmp_path):
    members, section = registry.load(family), registry.model_config(family).model_validate(TINY[family])
    model, loss = members.build(section, tmp_path, seed=0), members.Loss(section)
    batch = planner(family).assumed_batch(section, samples=2, tokens=tokens, picture=None)
    assert len(batch["cut"]) == 2 and all(math.isfinite(float(value.detach())) for value in sums_of(loss, model, batch).values())
    weights = weights_of(loss, batch)
    assert all(float(weights[term]) > 0 for term, factor in loss.coefficients.items() if factor)
    if tokens is not None and "tokens" in loss.counts:
        assert float(weights["tokens"]) <= 2 * tokens


RECIPES = sorted(str(path.relative_to(ROOT / "configs")) for path in (ROOT / "configs").glob("*/*.yaml"))
SMALL = {
    "theworld": ["model.base=tiny"],
    "molmo": ["model.language=debug", "model.vision_backbone=debug", "model.overlap=2"],
    "nanodit": ["model.size=null", "model.depth=1", "model.hidden=32", "model.heads=2"],
    "theworld/stages.yaml": ["model.base=tiny", "model.world.source=tiny"],
}
"""Settings that make a recipe's model small, and leave its others."""


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_usual_shapes_are_those_that_a_model_with_each_recipes_settings_trains_on(recipe, tmp_path):
    family = recipe.partition("/")[0]
    resolved = open_config(ROOT / "configs" / recipe, SMALL.get(recipe, SMALL[family]))
    members, section = registry.load(family), registry.model_config(family).model_validate(resolved.config.model)
    model, loss = members.build(section, tmp_path, seed=0).train(), members.Loss(section)
    for tokens, picture in {(view.config.data.max_tokens, _largest_bucket(view.config)) for view in resolved.stages}:
        batch = planner(family).assumed_batch(section, samples=1, tokens=tokens, picture=picture)
        assert all(math.isfinite(float(value.detach())) for value in sums_of(loss, model, batch).values())


LARGEST = {"molmo/multitask.yaml": 64e9, "nanodit/tiny.yaml": 0.5e9}
"""Bytes that the plan of a model so small stays below."""


def test_a_recipe_is_planned_where_its_data_is_not(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for recipe, small in [("molmo/multitask.yaml", SMALL["molmo"]), ("nanodit/tiny.yaml", [])]:
        assert cli.main(["plan", f"configs/{recipe}", "--json", "--run=run", *(f"--{setting}" for setting in small)]) == 1
        planned = json.loads(capsys.readouterr().out)
        assert "data" in [finding["what"] for finding in planned["findings"] if finding["level"] == "error"]
        assert planned["stages"][0]["memory"][0]["peak"] < LARGEST[recipe]


def test_assumed_latents_are_those_of_the_largest_bucket_that_the_sources_name(tmp_path):
    config = open_config(ROOT / "configs" / "nanodit" / "small.yaml")
    section = registry.model_config("nanodit").model_validate(config.config.model)
    batch = planner("nanodit").assumed_batch(section, samples=1, tokens=None, picture=(512, 640))
    assert batch["x0"].shape == (1, 16, 80, 64)
    assert planner("nanodit").assumed_batch(section, samples=1, tokens=None, picture=None)["x0"].shape == (1, 16, 128, 128)
    assert _largest_bucket(config.config) == (512, 512)


def test_usual_rates_are_of_components_that_may_train(tmp_path):
    for family, section in TINY.items():
        members, made = registry.load(family), registry.model_config(family).model_validate(section)
        components = set(members.components(members.build(made, tmp_path, seed=0))) - members.never_trained
        assert components <= set(planner(family).usual_rates(made))


def test_the_published_models_have_other_rates_than_tiny_ones():
    rates = {family: planner(family).usual_rates(registry.model_config(family).model_validate({})) for family in ("theworld", "molmo")}
    assert rates["theworld"] == {"projector": 1e-4, "vision": 5e-5, "language": 1e-5, "world": 5e-6}
    assert rates["molmo"] == {"connector": 2e-4, "vision": 6e-6, "language": 2e-5}


def test_a_family_without_the_module_has_no_planner_and_a_wrong_one_is_told(tmp_path, monkeypatch):
    folder = tmp_path / "words_family"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "config.py").write_text("from plait.config.schema import ModelSection\n\n\nclass Config(ModelSection):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "packages", lambda: {"words": "words_family"})
    try:
        assert planner("words") is None
        (folder / "planning.py").write_text("def assumed_batch(config, *, samples):\n    return {}\n")
        with pytest.raises(PlaitError, match=r"family 'words' \(words_family.planning\) does not fulfil the contract: .*usual_rates"):
            planner("words")
    finally:
        for name in [name for name in sys.modules if name.startswith("words_family")]:
            del sys.modules[name]
