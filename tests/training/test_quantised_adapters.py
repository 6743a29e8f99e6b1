"""Adapters over weights in 4 bits: the same as over the values that these stand for, continued to the bit, and exported in full."""

import copy
import shutil
import sys

import pytest
import torch
from torch import nn

from plait.assembly import exported, saved
from plait.assembly.adapters import layers, quantised
from plait.config.sections.adapters import Adapter
from plait.engine.checkpoints import checkpoint
from plait.engine.flops import Flops
from plait.engine.parallel.distributed import Ranks
from plait.errors import PlaitError
from tests import processes
from tests import toy_family as toy

HERE = Ranks(0, 1, torch.device("cpu"))
QLORA = ["adapters={language: {rank: 2, quantize: nf4}}", "distributed.strategy=ddp", "model.width=16"]
CHAIN = """stages:
  - {name: projection, trainable: [projector]}
  - {name: lora, trainable: [projector, language.lora]}
"""


@pytest.fixture
def recipe(monkeypatch, tmp_path):
    path = toy.install(monkeypatch, tmp_path)
    text = path.read_text()
    path.write_text(text[: text.index("stages:")] + CHAIN + text[text.index("train: {steps") :])
    return path


@pytest.fixture
def bitsandbytes():
    return pytest.importorskip("bitsandbytes")


def test_adapters_over_4_bits_are_those_over_the_values_they_stand_for(bitsandbytes):
    for kind in ("lora", "dora"):
        plain = toy.Net(32, 0)
        fours = {name: quantised.quantise(getattr(plain, name), "nf4") for name in ("projector", "vision")}
        for name, layer in fours.items():
            before = getattr(plain, name).weight.detach().clone()
            setattr(plain, name, quantised.restored(layer))
            assert 0 < (getattr(plain, name).weight - before).abs().max() < 0.17 * before.abs().max()  # half of nf4's widest step, 0.304
        once = copy.deepcopy(plain)
        both = []
        for model, quantize in ((plain, None), (once, "nf4")):
            section = {name: Adapter(kind=kind, rank=4, quantize=quantize) for name in fours}
            adapters = layers.add(toy.FAMILY, model, section, 0)
            adapters.quantise()
            for name, value in model.named_parameters():
                if ".lora_B." in name:
                    nn.init.ones_(value)
            adapters.begin((), adapters.names)
            out = model({"x": torch.ones(3, 4)})
            out.sum().backward()
            both.append((out, {name: value.grad for name, value in model.named_parameters() if name in adapters.names}))
        assert {value.dtype for name, value in once.named_parameters() if name in ("projector.weight", "vision.weight")} == {torch.uint8}
        torch.testing.assert_close(both[0], both[1], rtol=1e-4, atol=1e-5)  # scales are quantised a second time: to 8 bits


def test_flops_are_those_of_the_layers_in_full(bitsandbytes):
    layer, x = nn.Linear(32, 16), torch.ones(3, 32, requires_grad=True)
    layer.weight.requires_grad_(False)
    counts = []
    for module in (layer, quantised.quantise(layer, "fp4")):
        with Flops() as counted:
            module(x)
        counts.append(counted.total)
    assert counts[0] == counts[1] == 2 * 2 * 3 * 32 * 16


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_goes_on_to_the_bit_and_is_exported_as_what_it_computes(recipe, tmp_path, bitsandbytes, precision):
    settings = [*QLORA, f"train.precision={precision}", "optim.ema=null"]
    run = toy.train(recipe, tmp_path / "run", *settings)
    for step in (4, 8):
        shutil.copytree(run, tmp_path / f"from-{step}")
        for path in checkpoint.published(tmp_path / f"from-{step}"):
            if checkpoint.step_of(path) > step:
                shutil.rmtree(path)
        again = toy.train(recipe, tmp_path / f"from-{step}", *settings)
        assert toy.figures(again) == toy.figures(run)
        assert toy.same(toy.at(again, 12).tensors("weights"), toy.at(run, 12).tensors("weights"))
    assert not {"language.weight", "language.bias"} & toy.at(run, 12).tensors("weights").keys()
    bundle = saved.open_checkpoint(saved.locate(run), HERE)
    before = bundle.model({"x": torch.ones(2, 4)})
    assert bundle.model.language.weight.dtype == torch.uint8
    merged, config, trained = exported.merged(bundle, saved.locate(run).config, set(toy.at(run, 12).manifest["state"]["trained"]))
    assert [name for name, _ in merged.model.named_parameters()] == [name for name, _ in toy.Net(16, 0).named_parameters()]
    assert {value.dtype for value in merged.model.parameters()} == {torch.float32}
    assert (trained >= {"language.weight"}, config.adapters) == (True, {})
    torch.testing.assert_close(merged.model({"x": torch.ones(2, 4)}), before, rtol=1e-5, atol=1e-6)


def test_two_ranks_follow_one(recipe, tmp_path, bitsandbytes):
    alone = toy.figures(toy.train(recipe, tmp_path / "alone", *QLORA))
    processes.fork(2, toy.train, recipe, tmp_path / "two", *QLORA)
    for one, other in zip(alone, toy.figures(tmp_path / "two"), strict=True):
        for name in one.keys() & {"loss", "grad_norm", "eval/loss"}:
            assert one[name] == pytest.approx(other[name], rel=1e-5)  # float32 sums in another order


def test_frozen_weights_are_held_to_what_they_were_before(recipe, tmp_path, bitsandbytes):
    hashes = [toy.at(toy.train(recipe, tmp_path / name, *settings), 6).manifest["frozen_xxh3"] for name, settings in RUNS.items()]
    assert hashes[0] == hashes[1]
    sizes = toy.at(tmp_path / "four", 6).manifest["components"]["language"]["values"]
    assert sizes == 17


RUNS = {"four": QLORA, "full": ["model.width=16", "adapters={language: {rank: 2}}"]}


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            [*QLORA, "stages.1.trainable=[language]"],
            "adapters.language.quantize is set, and trainable names language: weights in 4 bits do",
        ),
        (["adapters={language: {quantize: nf4}}"], "weights in 4 bits are whole on each rank: distributed.strategy=ddp, not auto"),
        (["adapters={language: {quantize: int8}}"], "adapters.language.quantize must be 'nf4' or 'fp4', got 'int8'"),
    ],
)
def test_what_weights_in_4_bits_cannot_be_is_told_in_a_line(recipe, tmp_path, settings, line):
    with pytest.raises(PlaitError) as raised:
        toy.train(recipe, tmp_path / "run", *settings)
    assert line in str(raised.value) and "\n" not in str(raised.value)


def test_a_start_from_weights_that_were_trained_loses_them_and_says_so(recipe, tmp_path, bitsandbytes):
    first = toy.train(recipe, tmp_path / "first", "stages=[]", "trainable=[language]", "model.width=16")
    with pytest.raises(PlaitError, match=r"^this start is inexact \(.*weights of language: drop 1 \(language\.weight\)"):
        toy.train(recipe, tmp_path / "second", f"from={first}", *QLORA)


def test_without_bitsandbytes_a_line_says_what_to_install(recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(PlaitError, match=r"^adapters with quantize need bitsandbytes \(.*\): pip install 'plait\[qlora\]'$"):
        toy.train(recipe, tmp_path / "run", *QLORA)
