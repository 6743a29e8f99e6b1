"""Settings of `optim.components` for a component that no stage trains change nothing, which is told before the run."""

import pytest

from plait import cli
from plait.assembly.configuration import open_config

RECIPE = """
family: theworld
preset: tiny
trainable: [projector, language]
data: {train: [{source: scenes, limit: 16, options: {size: [32, 32], objects: [1, 2], tasks: [caption]}}]}
train: {steps: 2, global_batch: 2}
"""
WHY = "and no stage trains vision, so that it changes nothing: name vision in trainable, or leave it out"


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def told(path, *overrides):
    return [line for line in open_config(path, overrides).warnings if "optim.components" in line]


@pytest.mark.parametrize(
    "setting", ["lr=1e-3", "weight_decay=0", "betas=[0.9,0.99]", "eps=1e-6", "warmup=0.1", "warmup_steps=1", "grad_clip=1", "muon=true"]
)
def test_each_setting_of_a_component_that_never_trains_is_told(recipe, setting):
    own, muon = f"optim.components.vision.{setting}", "optim.name=muon"
    assert told(recipe, own, muon) == [f"optim.components.vision sets {setting.partition('=')[0]}, {WHY}"]
    assert told(recipe, own, muon, "trainable=[vision]") == told(recipe, own, muon, "trainable=['*']") == []


def test_a_component_that_another_stage_trains_has_its_settings(recipe):
    own = "optim: {components: {vision: {lr: 1.0e-4, eps: 1.0e-6}}}"
    stages = f"stages=[{{name: a, trainable: [projector]}}, {{name: b, trainable: [PART], {own}}}]"
    assert told(recipe, stages.replace("PART", "vision:layers.0")) == []
    assert told(recipe, stages.replace("PART", "language")) == [f"optim.components.vision sets lr, eps, {WHY}"]
    lora = ("adapters={language: {rank: 2}}", "optim.components.language.lora.lr=1e-3")
    assert told(recipe, *lora, "trainable=[projector,language.lora]") == []
    assert "optim.components.language.lora sets lr, and no stage trains language.lora" in told(recipe, *lora, "from=runs/first")[0]


def test_what_a_preset_sets_is_for_what_trains_of_it(recipe):
    overrides = ("family=molmo", "preset=captioner", "trainable=[connector]")
    assert told(recipe, *overrides) == []
    assert len(told(recipe, *overrides, "optim.components.vision.lr=1e-5")) == 1


def test_a_run_says_it_and_refuses_a_component_that_cannot_train(recipe, tmp_path, capsys):
    run = f"--run={tmp_path / 'run'}"
    assert cli.main(["train", str(recipe), run, "--optim.components.vision.lr=1e-3"]) == 0
    assert f"optim.components.vision sets lr, {WHY}" in capsys.readouterr().err
    assert cli.main(["train", str(recipe), f"{run}2", "--trainable=['*']", "--optim.components.world_decoder.lr=1e-3"]) == 2
    refused = "plait: optim.components names 'world_decoder', which is never trained; components: projector, vision, language, world\n"
    assert capsys.readouterr().err.endswith(refused)
