"""`plait plan --search`: what is proposed fits, as a plan of it says, and nothing that fits is faster."""

import json

import pytest

from plait import cli
from plait.training.planning.search import COMPUTED, micro_batches

RECIPE = """
family: nanodit
model: {space: pixels, depth: 2, hidden: 64, heads: 2, patch: 4, image_size: 32, text: words, text_dim: 16, words: 64, image_dim: 0,
        dropout: {neither: 0.1, text_only: 0.0, image_only: 0.0}}
data:
  train: [{source: scenes, limit: 64, options: {size: [32, 32], objects: [1, 2], tasks: [caption]}}]
  workers: 0
train: {global_batch: 16, steps: 40}
optim: {lr: 1.0e-3}
checkpoint: {every_steps: 10, keep: 2}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def planned(recipe, capsys, *options):
    code = cli.main(["plan", str(recipe), "--gpu=H100", "--json", *options])
    return code, json.loads(capsys.readouterr().out)


def proposed(recipe, capsys, *options):
    """The cure of a search's finding, as options."""
    code, plan = planned(recipe, capsys, "--search", *options)
    (found,) = [finding for finding in plan["findings"] if finding["what"] == "search"]
    return code, found, found["cure"].split()


def test_with_room_the_whole_batch_is_taken_and_nothing_computed_again(recipe, capsys):
    _, found, cure = proposed(recipe, capsys)
    assert found["level"] == "advice" and found["text"].startswith(
        "the fastest that fits 80 GB: micro_batch 16, activation_checkpointing none"
    )
    assert cure == ["--train.micro_batch=16", "--distributed.activation_checkpointing=none"]


def test_with_less_room_the_micro_batch_shrinks_first_and_then_blocks_are_computed_again(recipe, capsys):
    """The state of the model is the same, so a smaller micro-batch costs nothing here, and checkpointing a third."""
    stage = planned(recipe, capsys, "--train.micro_batch=1")[1]["stages"][0]
    none, full = (row["peak"] for row in stage["memory"])
    little = f"--distributed.memory_gb={(none + 0.1 * (none - full)) / 1e9 / 0.95}"
    _, _, cure = proposed(recipe, capsys, little)
    assert cure == ["--train.micro_batch=1", "--distributed.activation_checkpointing=none"]
    assert planned(recipe, capsys, little, *cure)[0] == 0
    less = f"--distributed.memory_gb={(full + 0.2 * (none - full)) / 1e9 / 0.95}"
    _, _, cure = proposed(recipe, capsys, less)
    assert cure[1] == "--distributed.activation_checkpointing=full"
    assert planned(recipe, capsys, less, *cure)[0] == 0


def test_what_fits_nowhere_is_an_error(recipe, capsys):
    code, found, cure = proposed(recipe, capsys, "--distributed.memory_gb=0.001")
    assert code == 1 and found["level"] == "error" and not cure
    assert found["text"].startswith("no strategy, micro-batch and activation checkpointing fits 1 ranks of 0 GB")


def test_over_ranks_the_strategy_that_sends_least_comes_first_while_it_fits(recipe, capsys):
    assert "--distributed.strategy=ddp" in proposed(recipe, capsys, "--ranks=2")[2]


def test_micro_batches_divide_the_global_batch_up_to_a_ranks_part():
    assert micro_batches(16, 1) == [1, 2, 4, 8, 16]
    assert micro_batches(12, 5) == [1, 2, 3]
    assert COMPUTED["none"] < COMPUTED["selective"] < COMPUTED["full"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--search"], "--search weighs the time of a step against what a rank sends, for GPUs that are named: add --gpu NAME"),
        (["--probe", "--ranks=2"], "--probe measures one rank on this machine, and --gpu and --ranks plan for others"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(recipe, capsys, options, message):
    assert cli.main(["plan", str(recipe), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_probe_measures_each_stage_here_and_leaves_nothing(recipe, capsys, tmp_path):
    assert cli.main(["plan", str(recipe), "--json", "--probe"]) == 0
    (stage,) = json.loads(capsys.readouterr().out)["stages"]
    assert stage["samples_per_s"] > 0 and stage["pace_from"] == "measured here, in 8 steps (--probe)"
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
