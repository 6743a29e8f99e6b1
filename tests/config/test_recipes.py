"""Every recipe in configs/ can be tried for a few steps, and its warm-up is the share of its length that its author counted."""

from pathlib import Path

import pytest

from plait import cli
from plait.assembly.configuration import open_config
from plait.engine import schedule

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(path for path in (ROOT / "configs").rglob("*") if path.suffix in (".yaml", ".json"))
WARMUP_STEPS = {
    "molmo/captioner": [2000],
    "molmo/multitask": [200],
    "molmo/debug": [30],
    "molmo/debug-captioner": [50],
    "molmo/debug-multitask": [50],
    "molmo/debug-sentences": [50],
    "nanodit/small": [2500],
    "nanodit/medium": [5000],
    "nanodit/production": [5000],
    "nanodit/tiny-cifar10": [200],
    "theworld/stages": [500, 100, 100, 100],
    "theworld/tiny-cifar10": [100],
    "theworld/tiny-nlvr": [40],
}
"""Of each stage, of the recipes whose author counted."""


def name(path):
    return path.relative_to(ROOT / "configs").with_suffix("").as_posix()


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_ten_steps_of_a_recipe_can_be_tried(path, capsys):
    assert cli.main(["config", str(path), "--train.steps=10"]) == 0, capsys.readouterr().err
    for view in open_config(path, ["train.steps=10"]).stages:
        assert view.config.train.steps == 10
        assert schedule.warmup_of(schedule.with_warmup(view.config.optim, 10)) < 10


@pytest.mark.parametrize("path", [path for path in RECIPES if name(path) in WARMUP_STEPS], ids=name)
def test_the_share_of_a_recipe_is_the_count_of_its_author(path):
    views = open_config(path).stages
    counts = [schedule.warmup_of(schedule.with_warmup(view.config.optim, view.config.train.steps or 0)) for view in views]
    assert counts == WARMUP_STEPS[name(path)]


def test_every_recipe_of_ours_warms_up_for_a_share():
    counted = [name(path) for path in RECIPES if path.suffix == ".yaml" and open_config(path).config.optim.schedule.warmup is None]
    assert counted == []


@pytest.mark.parametrize("words", [["molmo/captioner", "debug"], [str(ROOT / "configs/theworld/stage1_projection.json")]])
def test_a_foreign_warm_up_that_does_not_fit_is_cut_with_a_warning(words, capsys):
    count = 50 if "debug" in words else 500
    assert cli.main(["config", *words, "--train.steps=20"]) == 0
    line = (
        f"a warm-up does not fit into the 20 steps of the command line and is 2 of them: optim.schedule.warmup_steps ({count}, {words[0]}"
    )
    assert line in "".join(capsys.readouterr())
    assert cli.main(["config", *words, f"--train.steps={count + 1}"]) == 0
    assert "does not fit" not in "".join(capsys.readouterr())


def test_a_warm_up_of_the_command_line_is_never_cut(capsys):
    config = str(ROOT / "configs/theworld/stage1_projection.json")
    assert cli.main(["config", config, "--train.steps=10", "--optim.schedule.warmup_steps=10"]) == 2
    assert "warmup_steps is 10, but the stage has 10 steps" in capsys.readouterr().err
    assert cli.main(["config", config, "--train.steps=10", "--warmup_steps=10"]) == 2
    assert "warmup_steps) is 10, but the stage has 10 steps" in capsys.readouterr().err
