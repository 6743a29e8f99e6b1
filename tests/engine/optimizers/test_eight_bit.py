"""Moments in 8 bits: torchao's own update, whose state is saved as plain tensors, and comes back to the bit."""

import shutil
import sys

import pytest
import torch
from torch import nn

from plait.config.schema import Optim
from plait.engine import optim
from plait.engine.optimizers import eight_bit
from plait.engine.parallel import distributed
from plait.engine.parallel.memory_estimate import Layout
from plait.engine.parallel.sharding import Sharding
from plait.errors import PlaitError
from plait.training.moments import kept
from tests import processes
from tests import toy_family as toy

SETTINGS = Optim(name="adamw8bit", lr=0.01, weight_decay=0.1)


@pytest.fixture
def torchao():
    return pytest.importorskip("torchao.optim")


def network():
    """Of its parameters the first has 16 blocks, and the third more values, but no whole number of blocks."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 65, bias=False), nn.Linear(65, 3))


def made(net, **saved):
    optimizer = optim.build({"all": dict(net.named_parameters())}, SETTINGS)
    assert set(optim.load_moments(optimizer, saved)) == (set() if saved else {name for name, _ in net.named_parameters()})
    return optimizer


def train(net, optimizers, batches):
    for number in batches:
        net(torch.randn(8, 64, generator=torch.Generator().manual_seed(number))).square().mean().backward()
        with torch.compiler.set_stance("force_eager"):
            for optimizer in optimizers:
                optimizer.step()
        net.zero_grad()
    return [value.detach() for value in net.parameters()]


def test_large_tensors_are_torchaos_and_the_others_torchs(torchao):
    net, oracle = network(), network()
    large, *rest = oracle.parameters()
    groups = [{"params": [value], "weight_decay": 0.1 if value.ndim == 2 else 0.0} for value in rest]
    theirs = torchao.AdamW8bit([large], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    plain = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), fused=True)
    expected = train(oracle, [theirs, plain], range(3))
    assert all(torch.equal(one, other) for one, other in zip(train(net, [made(net)], range(3)), expected, strict=True))


def test_the_state_is_plain_tensors_by_name_and_goes_on_to_the_bit(torchao):
    net = network()
    optimizer = made(net)
    train(net, [optimizer], range(2))
    saved = {name: value.clone() for name, value in optim.moments(optimizer).items()}
    assert {type(value) for value in saved.values()} == {torch.Tensor}
    named = dict(net.named_parameters())
    kinds = kept.kinds({"all": named}, SETTINGS, ())
    assert kinds["0.weight"] == eight_bit.MOMENTS and kinds["1.weight"] == optim.MOMENTS
    forms = {f"{name}.{kind}": kept.form_of(kind, named[name], 4) for name, of in kinds.items() for kind in of}
    dtypes = {torch.uint8: "U8", torch.float32: "F32"}
    assert forms == {name: (dtypes[value.dtype], list(value.shape), value.nbytes) for name, value in saved.items()}
    again = network()
    again.load_state_dict(net.state_dict())
    continued = train(again, [made(again, **saved)], range(2, 4))
    assert all(torch.equal(one, other) for one, other in zip(train(net, [optimizer], range(2, 4)), continued, strict=True))


@pytest.fixture
def recipe(monkeypatch, tmp_path):
    return toy.install(monkeypatch, tmp_path)


def test_a_run_goes_on_to_the_bit(torchao, recipe, tmp_path):
    settings = ("model.width=64", "optim.name=adamw8bit", "stages=[]", "trainable=['*']")
    run = toy.train(recipe, tmp_path / "run", *settings)
    assert toy.at(run, 6).tensors("moments")["projector.weight.exp_avg_codes"].dtype == torch.uint8
    copy = shutil.copytree(run, tmp_path / "copy")
    for step in (4, 6):
        shutil.rmtree(next(path for path in copy.rglob(f"step-{step:08d}") if path.is_dir()))
    again = toy.train(copy, copy)
    assert all(toy.same(toy.at(again, 6).tensors(group), toy.at(run, 6).tensors(group)) for group in ("weights", "ema", "moments"))
    assert toy.figures(again) == toy.figures(run)


def sharded():
    with distributed.join("cpu") as ranks:
        net = network()
        Sharding(net).wrap([net[0]], {name for name, _ in net.named_parameters()}, Layout("fsdp", 2), ranks, types={})
        with pytest.raises(
            PlaitError, match=r"^optim\.name is adamw8bit, whose moments are whole on each rank: distributed\.strategy=ddp, or "
        ):
            optim.build({"all": dict(net.named_parameters())}, SETTINGS)


def test_weights_that_came_to_be_sharded_are_refused():
    processes.fork(2, sharded)


def test_without_torchao_a_line_says_what_to_install(recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(PlaitError, match=r"^optim\.name is adamw8bit, which needs torchao \(.*\): pip install 'plait\[torchao\]'$"):
        toy.train(recipe, tmp_path / "run", "optim.name=adamw8bit")
