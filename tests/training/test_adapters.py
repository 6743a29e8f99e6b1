"""Runs with adapters: exact continuation, stages before and after them, what checkpoints hold, several ranks, and what is refused."""

import json
import shutil
import sys

import pytest
import torch

from plait.assembly import saved
from plait.engine.checkpoints import checkpoint
from plait.engine.parallel.distributed import Ranks
from plait.errors import PlaitError
from tests import processes
from tests import toy_family as toy

CHAIN = """stages:
  - {name: projection, trainable: [projector]}
  - {name: lora, trainable: [projector, language.lora]}
  - {name: full, trainable: [projector, language]}
"""
LORA = "adapters={language: {rank: 2}}"
KINDS = {
    "lora": [LORA],
    "dora": ["adapters={language: {kind: dora, rank: 2, dropout: 0.5}}"],
    "rslora bf16": ["adapters={language: {kind: rslora, rank: 2, alpha: 8}}", "train.precision=bf16"],
}
OWN = {"language.lora_A.default.weight": (2, 4), "language.lora_B.default.weight": (1, 2)}


@pytest.fixture
def recipe(monkeypatch, tmp_path):
    path = toy.install(monkeypatch, tmp_path)
    text = path.read_text()
    path.write_text(text[: text.index("stages:")] + CHAIN + text[text.index("train: {steps") :])
    return path


def groups(folder, step=18):
    found = toy.at(folder, step)
    return {group: found.tensors(group) for group in ("weights", "ema", "moments")}


def forget(run, copy, step):
    """A copy of a run that knows nothing after this step."""
    shutil.copytree(run, copy)
    for path in checkpoint.published(copy):
        if checkpoint.step_of(path) > step:
            shutil.rmtree(path)
    return copy


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_to_the_bit_before_within_and_after_its_adapters(recipe, tmp_path, kind):
    run = toy.train(recipe, tmp_path / "straight", *KINDS[kind])
    for step in (4, 6, 10, 12, 16) if kind == "lora" else (6, 10):
        again = toy.train(recipe, forget(run, tmp_path / f"from-{step}", step), *KINDS[kind])
        assert all(toy.same(tensors, groups(again)[name]) for name, tensors in groups(run).items()), step
        assert toy.figures(again) == toy.figures(run)


@pytest.mark.parametrize("kind", ["dora", "rslora bf16"])
def test_a_stage_before_adapters_train_is_that_of_a_run_without_them(recipe, tmp_path, kind):
    with_adapters = toy.train(recipe, tmp_path / "with", *KINDS[kind])
    without = toy.train(recipe, tmp_path / "without", *KINDS[kind][1:], "stages.1.trainable=[projector]")
    assert all(toy.same(tensors, groups(without, 6)[name]) for name, tensors in groups(with_adapters, 6).items())
    assert not toy.same(groups(with_adapters, 12)["weights"], groups(without, 12)["weights"])


def test_a_checkpoint_holds_adapters_and_moments_under_names_that_leave_the_model_its_own(recipe, tmp_path):
    run = toy.train(recipe, tmp_path / "run", LORA, "stages.0.trainable=[language.lora]", "stages.1.trainable=[language.lora]")
    adapters = groups(run, 12)
    assert {name: tuple(value.shape) for name, value in adapters["weights"].items()} == OWN
    assert {name.rpartition(".")[0] for name in adapters["moments"]} == adapters["ema"].keys() == OWN.keys()
    assert groups(run)["weights"].keys() - OWN.keys() == {"projector.weight", "projector.bias", "language.weight", "language.bias"}
    components = toy.at(run, 18).manifest["components"]
    assert components["language"]["names"] == ["language.weight", "language.bias"]
    assert components["language.lora"] == {"values": 10, "trains": 0, "weights": sorted(OWN), "names": list(OWN)}


def test_the_log_names_the_layers_that_adapters_are_in(recipe, tmp_path, capsys):
    toy.train(recipe, tmp_path / "run", "adapters={language: {rank: 2, alpha: 3}}")
    assert capsys.readouterr().out.count("language.lora: lora, rank 2, alpha 3, in 1 layers: language 1\n") == 1


def test_full_weights_train_beside_frozen_adapters(recipe, tmp_path):
    run = toy.train(recipe, tmp_path / "run", LORA)
    before, after = groups(run, 12)["weights"], groups(run, 18)["weights"]
    assert all(torch.equal(before[name], after[name]) and before[name].any() for name in OWN)
    assert not torch.equal(after["language.weight"], toy.Net(4, 0).language.weight)


def test_the_command_line_names_the_rate_of_adapters_as_any_other(recipe, tmp_path):
    settings = ["optim.components.language.lora.lr=3e-3", "stages.2.optim.components.projector.lr=2e-3"]
    run = toy.train(recipe, tmp_path / "run", LORA, *settings)
    rates = {(row["stage"], name): row[name] for row in toy.figures(run) for name in row if name.startswith("lr/")}
    assert rates[2, "lr/language.lora"] == 3e-3 and rates[2, "lr/projector"] == 1e-2 and rates[3, "lr/projector"] == 2e-3


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_follow_one(recipe, tmp_path, strategy):
    kind = "adapters={language: {kind: dora, rank: 2}, vision: {rank: 3}}"
    recipe.write_text(recipe.read_text().replace("language.lora]", "language.lora, vision.lora]"))
    alone = toy.figures(toy.train(recipe, tmp_path / "alone", kind))
    processes.fork(2, toy.train, recipe, tmp_path / "two", kind, f"distributed.strategy={strategy}")
    for one, other in zip(alone, toy.figures(tmp_path / "two"), strict=True):
        for name in one.keys() & {"loss", "grad_norm", "eval/loss"}:
            assert one[name] == pytest.approx(other[name], rel=1e-5)  # float32 sums in another order


def test_a_run_with_adapters_starts_exactly_from_one_without(recipe, tmp_path, capsys):
    first = toy.train(recipe, tmp_path / "first", "stages.1.trainable=[projector]")
    second = toy.train(recipe, tmp_path / "second", f"from={first}", LORA)
    assert groups(second)["weights"].keys() >= OWN.keys()
    with pytest.raises(PlaitError, match=r"^this start is inexact \(weights of \(none\): drop 2 \(language\.lora_A\.default\.weight"):
        toy.train(recipe, tmp_path / "third", f"from={second}", "stages.1.trainable=[projector]")


def test_a_run_without_adapters_does_not_start_from_adapters_alone(recipe, tmp_path):
    alone = toy.train(recipe, tmp_path / "alone", LORA, "stages=[]", "trainable=[language.lora]", "train.steps=1")
    with pytest.raises(PlaitError, match=r"from: none of the 2 tensors .*\. They are adapters: set `adapters:` as that run does$"):
        toy.train(recipe, tmp_path / "new", f"from={alone}", "stages=[]", "trainable=[language]", "train.steps=1")


def test_the_opened_model_is_the_trained_one_in_every_stage(recipe, tmp_path):
    run = toy.train(recipe, tmp_path / "run", "adapters={language: {kind: dora, rank: 2}}", "optim.ema=null")
    for step in (6, 12, 18):
        (row,) = [row for row in toy.figures(run) if row["step"] == step and "eval/loss" in row]
        bundle = saved.open_checkpoint(saved.locate(f"{run}@{step}"), Ranks(0, 1, torch.device("cpu")))
        held = [json.loads(line) for line in (tmp_path / "held.jsonl").read_text().splitlines()]
        batch = {name: torch.tensor([each[name] for each in held]) for name in ("x", "y")}
        loss = float(bundle.loss().sums(bundle.model, batch)["error"].detach()) / len(held)
        assert loss == pytest.approx(row["eval/loss"], rel=1e-5)  # float32 sums in another order


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            ["adapters={language: {rank: 1000000}}"],
            "adapters.language.rank is 1,000,000, above both sides of all its layers, at most 4: no weight there has a rank above 1",
        ),
        (["adapters={language: {rank: 5}}"], "adapters.language.rank is 5, above both sides of all its layers, at most 4"),
        (["adapters={decoder: {}}", "trainable=['*']", "stages=[]"], "adapters names 'decoder', which is no component of this model; "),
        (
            ["adapters={language: {targets: [languge]}}"],
            "adapters.language.targets: 'languge' is no linear layer of language: did you mean language? there are language",
        ),
        ([], "trainable names 'language.lora', the adapters of language, and there are none: for example --adapters.language.rank=16"),
        (
            [LORA, "stages.1.trainable=[projector]"],
            "adapters.language is in no stage's trainable, so it would do nothing: name language.lora there, or leave it out",
        ),
        (["adapters.language.kind=lokr"], "adapters.language.kind must be 'lora', 'rslora' or 'dora', got 'lokr'"),
    ],
)
def test_what_adapters_cannot_be_is_told_in_a_line(recipe, tmp_path, settings, line):
    with pytest.raises(PlaitError) as raised:
        toy.train(recipe, tmp_path / "run", *settings)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_run_that_has_begun_keeps_its_adapters(recipe, tmp_path):
    run = toy.train(recipe, tmp_path / "run", LORA)
    with pytest.raises(PlaitError, match=r"adapters\.language\.rank"):
        toy.train(recipe, run, "adapters={language: {rank: 3}}")


def test_without_peft_a_line_says_what_to_install(recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(PlaitError, match=r"^adapters need peft \(.*\): pip install 'plait\[adapters\]'$"):
        toy.train(recipe, tmp_path / "run", LORA)
