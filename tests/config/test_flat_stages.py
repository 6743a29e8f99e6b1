"""Stages in the flat dialect: a list of names and of whatever keys differ, our one addition to its shape."""

import json
from pathlib import Path

import pytest

from plait.errors import PlaitError

ROOT = Path(__file__).resolve().parents[2]
BASE = {"dataset_name": "some/set", "learning_rate": 1e-3, "max_steps": 50, "do_eval": True}


@pytest.fixture
def staged(load):
    def make(*stages, overrides=(), **more):
        return load(json.dumps({**BASE, **more, "stages": list(stages)}), *overrides, name="x.json")

    return make


def test_a_stage_says_only_what_differs(staged) -> None:
    first, second = staged({"name": "one"}, {"name": "two", "freeze_gemma_vision": False, "learning_rate": 5e-5, "max_steps": 20}).stages
    assert (first.name, first.config.trainable, first.config.optim.lr, first.config.train.steps) == ("one", ["projector"], 1e-3, 50)
    assert (second.name, second.config.trainable) == ("two", ["projector", "vision"])
    assert (second.config.optim.lr, second.config.train.steps) == (5e-5, 20)
    assert second.config.data == first.config.data


def test_warm_up_follows_the_length_of_the_stage_where_nobody_wrote_it(staged) -> None:
    first, second = staged({"name": "one"}, {"name": "two", "max_steps": 20}).stages
    assert (first.config.optim.schedule.warmup_steps, second.config.optim.schedule.warmup_steps) == (5, 2)


def test_epochs_of_a_stage_take_the_place_of_the_steps_around_it(staged) -> None:
    (stage,) = staged({"name": "one", "max_steps": None, "num_epochs": 2}).stages
    assert (stage.config.train.steps, stage.config.train.epochs) == (None, 2)


def test_what_a_stage_switches_off_is_off(staged) -> None:
    stage = staged({"name": "one", "do_eval": False}, log_to_wandb=True, wandb_project="p").stages[0].config
    assert (stage.evaluate, stage.track.wandb.project) == ([], "p")
    assert staged({"name": "one", "log_to_wandb": False}, log_to_wandb=True, wandb_project="p").stages[0].config.track.wandb is None


def test_no_stage_trains_on_what_another_holds_out(staged) -> None:
    without = {"name": "one", "do_eval": False}
    assert [view.config.data.validation for view in staged(without, {"name": "two"}).stages] == ["1%", "1%"]
    both = staged({"name": "one"}, {"name": "two", "do_eval": True}, do_eval=False).stages
    assert [(view.config.data.validation, len(view.config.evaluate)) for view in both] == [("1%", 0), ("1%", 1)]


def test_each_key_of_a_stage_has_its_row_and_its_origin(staged) -> None:
    resolved = staged({"name": "one", "learning_rate": 5e-5})
    assert ("stages.0.learning_rate", 5e-5, "stages.0.optim.lr", "") in resolved.translation
    assert resolved.origins["stages.0.optim.lr"].endswith("x.json:1")


def test_the_command_line_wins_over_stages_in_either_tongue(staged) -> None:
    assert staged({"name": "one", "learning_rate": 5e-5}, overrides=["learning_rate=7e-6"]).stages[0].config.optim.lr == 7e-6
    assert staged({"name": "one", "learning_rate": 5e-5}, overrides=["stages.0.optim.lr=7e-6"]).stages[0].config.optim.lr == 7e-6


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"name": "one", "lerning_rate": 1}, "stages.0.lerning_rate is not a key: did you mean"),
        ({"name": "one", "learning_rate": "fast"}, "learning_rate must be a number, got 'fast'"),
        ({"name": "one", "model_name": "tiny"}, "model_name cannot differ from stage to stage: write it once, outside stages"),
        ({"name": "one", "output_dir": "runs/other"}, "output_dir cannot differ from stage to stage: write it once, outside stages"),
        ({"name": "one", "resume_from_checkpoint": "a/b"}, "resume_from_checkpoint cannot differ from stage to stage"),
        ({"learning_rate": 1e-4}, "stages.0.name"),
        ("one", "stages.0"),
    ],
)
def test_a_wrong_stage_gives_one_line(staged, stage, message: str) -> None:
    with pytest.raises(PlaitError) as caught:
        staged(stage)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_plaits_own_stages_are_not_taken_for_the_dialect(load) -> None:
    resolved = load("family: theworld\ndata: {train: [{source: scenes}]}\ntrain: {steps: 9}\nstages: [{name: one}]")
    assert (resolved.translation, resolved.stages[0].name) == ([], "one")


def test_the_answer_is_a_template_too(staged) -> None:
    entry = staged({"name": "one"}, dataset_name="./x/*.tar", answer_template="a {label}", do_eval=False).config.data.train[0]
    assert (entry.template.user, entry.template.assistant) == ("Describe this image in detail.", "a {label}")
