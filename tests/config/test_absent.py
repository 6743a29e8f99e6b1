"""Components that the `model:` section switches off: left out of stages and learning rates, with a word, or refused."""

import pytest

from plait import cli
from plait.assembly.configuration import open_config
from plait.config.resolved import difference
from plait.engine.checkpoints import checkpoint
from plait.errors import PlaitError
from tests.test_cli import CONFIG

STAGES = """
stages:
  - {name: projection, trainable: [projector], optim: {lr: 1.0e-3}}
  - {name: vision, trainable: ["projector:out", vision]}
  - {name: language, trainable: [language], optim: {components: {projector: {lr: 1.0e-3}, language: {lr: 1.0e-5}}}}
"""
OFF = "model.world=off"


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG + STAGES)
    return path


@pytest.mark.parametrize(
    ("entries", "left"),
    [
        ("[{bench: accuracy, ablate: world, samples: 8}]", [("accuracy", None, 8)]),
        ("[{bench: accuracy, samples: 4}, {bench: accuracy, ablate: world, samples: 8}]", [("accuracy", None, 4)]),
        ("[{bench: loss, ablate: world}, {bench: accuracy, ablate: image, samples: 8}]", [("loss", None, None), ("accuracy", "image", 8)]),
    ],
)
def test_what_evaluations_leave_out_needs_to_be_there(recipe, entries, left):
    resolved = open_config(recipe, [OFF, f"evaluate={entries}"])
    assert [(entry.bench, entry.ablate, entry.samples) for entry in resolved.config.evaluate] == left
    bench = "loss" if "loss" in entries else "accuracy"
    assert f"evaluate: {bench} is measured without ablate=world: model.world is off" in resolved.warnings
    with_world = open_config(recipe, [f"evaluate={entries}"])
    assert "world" in [entry.ablate for entry in with_world.config.evaluate] and not with_world.warnings


def test_a_stage_list_is_that_of_the_model_without_its_world(recipe, tmp_path):
    resolved = open_config(recipe, [OFF])
    assert [(view.index, view.name, view.config.trainable) for view in resolved.stages] == [
        (1, "vision", ["vision"]),
        (2, "language", ["language"]),
    ]
    assert set(resolved.stages[1].config.optim.components) == {"language"}
    assert resolved.origins["stages.0.name"].endswith(":17")
    assert resolved.warnings == [
        "stage projection is left out: it trains projector, and model.world is off",
        "stage vision trains without projector:out: model.world is off",
        "optim.components.projector is left out: model.world is off",
    ]
    again = tmp_path / "again.yaml"
    again.write_text(resolved.yaml)
    assert difference(resolved, open_config(again)) == [] and open_config(again).warnings == []


def test_adapters_of_a_part_that_is_switched_off_are_left_out(recipe):
    section = ["adapters={world: {}, language: {}}", "trainable=[world.lora, language.lora]", "stages=[]"]
    resolved = open_config(recipe, [OFF, *section, "optim.components.world.lora.lr=1e-3", "optim.components.language.lora.lr=1e-4"])
    (view,) = resolved.stages
    assert (view.config.trainable, list(view.config.adapters)) == (["language.lora"], ["language"])
    assert {name: one.lr for name, one in view.config.optim.components.items()} == {"language.lora": 1e-4}
    assert resolved.warnings == [
        "stage train trains without world.lora: model.world is off",
        "optim.components.world.lora is left out: model.world is off",
        "adapters.world is left out: model.world is off",
    ]


def test_a_model_with_a_world_is_as_written(recipe):
    resolved = open_config(recipe)
    assert ([view.name for view in resolved.stages], resolved.warnings) == (["projection", "vision", "language"], [])


def test_a_stage_list_with_nothing_left_is_refused(recipe):
    with pytest.raises(PlaitError) as caught:
        open_config(recipe, [OFF, "stages=[{name: a, trainable: [projector]}, {name: b, trainable: [world, projector]}]"])
    assert str(caught.value) == (
        "command line: trainable names projector, world, and model.world is off: nothing would train; name other components, "
        "or measure the model untrained: plait eval --base CONFIG --bench NAME"
    )


def test_a_baseline_trains_and_goes_on_by_the_same_command(recipe, tmp_path, capsys):
    line = ["train", str(recipe), f"--{OFF}", f"--run={tmp_path / 'run'}"]
    assert cli.main(line) == 0
    told = capsys.readouterr().err
    assert "warning: stage projection is left out: it trains projector, and model.world is off" in told
    newest = checkpoint.published(tmp_path / "run")[0]
    assert (newest.parent.name, newest.name) == ("stage-2-language", "step-00000004")
    assert cli.main(line) == 0
    assert "4 steps done" in capsys.readouterr().out


def test_a_name_of_no_component_is_still_an_error(recipe, tmp_path, capsys):
    assert cli.main(["train", str(recipe), f"--{OFF}", f"--run={tmp_path / 'run'}", "--stages=[{name: a, trainable: [visoin]}]"]) == 2
    assert "trainable names 'visoin', which is no component of this model; components: vision, language" in capsys.readouterr().err
