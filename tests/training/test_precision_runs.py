"""Runs in every precision, with moments on the host, and with compiled blocks: continued to the bit, and the same on several ranks."""

import shutil

import pytest
import torch

from plait.engine.checkpoints import checkpoint
from plait.engine.precision import OVERFLOWS, SCALE
from tests import processes
from tests import toy_family as toy

LAST = 18
KINDS = {
    "bf16": ["train.precision=bf16"],
    "fp16": ["train.precision=fp16"],
    "pure_bf16": ["train.precision=pure_bf16"],
    "offload": ["train.precision=bf16", "optim.offload=true"],
    "pure offload": ["train.precision=pure_bf16", "optim.offload=true"],
    "muon": ["optim.name=muon"],
}


@pytest.fixture
def recipe(monkeypatch, tmp_path):
    return toy.install(monkeypatch, tmp_path)


def forget(run, copy, step):
    """A copy of a run that knows nothing after this step."""
    shutil.copytree(run, copy)
    for path in checkpoint.published(copy):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    return copy


def groups(folder):
    found = toy.at(folder, LAST)
    return {group: found.tensors(group) for group in ("weights", "ema", "moments")}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_to_the_bit_from_within_a_stage_and_from_between_two(recipe, tmp_path, kind):
    run = toy.train(recipe, tmp_path / "straight", *KINDS[kind])
    for step in (8, 6):  # 6 is the end of the first stage: what is frozen then has been rounded since the start
        again = toy.train(recipe, forget(run, tmp_path / f"from-{step}", step), *KINDS[kind])
        assert all(toy.same(tensors, groups(again)[name]) for name, tensors in groups(run).items()), step
        assert toy.figures(again) == toy.figures(run)


@pytest.mark.parametrize(("kind", "stored"), [("bf16", torch.float32), ("fp16", torch.float32), ("pure_bf16", torch.bfloat16)])
def test_what_a_run_keeps_has_the_type_of_its_precision(recipe, tmp_path, kind, stored):
    tensors = groups(toy.train(recipe, tmp_path / "run", *KINDS[kind]))
    assert {value.dtype for value in tensors["weights"].values()} == {stored}
    assert {value.dtype for name, value in tensors["moments"].items() if not name.endswith(".step")} == {stored}
    assert {value.dtype for value in tensors["ema"].values()} == {torch.float32}


def test_the_loss_scale_is_saved_logged_and_resumed(recipe, tmp_path, capsys):
    run = toy.train(recipe, tmp_path / "run", *KINDS["fp16"])
    assert "a CPU multiplies float16 some hundred times slower" in capsys.readouterr().out
    rows = {row["step"]: row for row in toy.figures(run) if "loss" in row}
    assert all(row[SCALE] == 2.0 ** (16 - row[OVERFLOWS]) for row in rows.values())
    for step in (8, LAST):
        assert toy.at(run, step).manifest["state"]["totals"][SCALE] == rows[step][SCALE]


def on_ranks(recipe, folder, *overrides):
    toy.train(recipe, folder, *overrides)


@pytest.mark.parametrize(
    ("kind", "strategy"),
    [
        *(("bf16", "fsdp"), ("fp16", "ddp"), ("fp16", "fsdp"), ("pure_bf16", "ddp"), ("pure offload", "fsdp")),
        *(("muon", "ddp"), ("muon", "fsdp")),
    ],
)
def test_two_ranks_follow_one(recipe, tmp_path, kind, strategy):
    alone = toy.figures(toy.train(recipe, tmp_path / "alone", *KINDS[kind]))
    processes.fork(2, on_ranks, recipe, tmp_path / "two", *KINDS[kind], f"distributed.strategy={strategy}")
    # products of 8 (bfloat16, and Muon's) or 11 bits on other rows; pure_bf16 sums gradients over ranks in bfloat16 as well
    close = {"fp16": 2**-9}.get(kind, 2**-6)
    for one, other in zip(alone, toy.figures(tmp_path / "two"), strict=True):
        for name in [name for name in one if name.startswith(("loss", "grad_norm", "lr")) and name != SCALE]:
            assert other[name] == pytest.approx(one[name], rel=close), (one["step"], name)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_an_overflow_is_answered_alike_on_two_ranks(recipe, tmp_path, monkeypatch, strategy):
    monkeypatch.setattr("plait.engine.precision._FIRST_SCALE", 2.0**30)
    processes.fork(2, on_ranks, recipe, tmp_path / "two", *KINDS["fp16"], f"distributed.strategy={strategy}")
    rows = [row for row in toy.figures(tmp_path / "two") if "loss" in row]
    assert rows[0][OVERFLOWS] > 0
    assert rows[-1][SCALE] == 2.0 ** (30 - rows[-1][OVERFLOWS])
    assert [row["step"] for row in rows] == list(range(1, LAST + 1))


# the compiler looks at .grad of activations while it traces, and hides its own warning only where warnings are no errors
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_blocks_train_alike_and_nothing_is_compiled_after_warm_up(recipe, tmp_path):
    plain = toy.figures(toy.train(recipe, tmp_path / "plain", only="projection"))
    settings = "distributed={compile: true, compile_backend: aot_eager}"
    compiled = toy.figures(toy.train(recipe, tmp_path / "compiled", settings, only="projection"))
    assert [row["recompiles"] for row in compiled if "grad_norm" in row] == [0] * 6
    assert [{name: row[name] for name in row if name != "recompiles"} for row in compiled] == plain


def test_a_run_whose_gradients_are_reduced_for_each_micro_batch_follows_one_process(recipe, tmp_path):
    alone = toy.figures(toy.train(recipe, tmp_path / "alone", only="projection"))
    settings = ("distributed={strategy: fsdp, gradient_sync: micro_batch}", "train.micro_batch=1")
    processes.fork(2, on_ranks, recipe, tmp_path / "two", *settings)
    for one, other in zip(alone, toy.figures(tmp_path / "two"), strict=False):
        for name in [name for name in one if name.startswith(("loss", "grad_norm"))]:
            assert other[name] == pytest.approx(one[name], rel=1e-5), (one["step"], name)  # fp32: sums in another order
