"""Muon beside AdamW: who updates what, with which rate, and that both are torch's own; on one rank and on several."""

import functools
import math

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.flop_counter import FlopCounterMode

from plait.config.schema import Optim
from plait.engine import optim
from plait.engine.optimizers import muon
from plait.engine.parallel import distributed
from plait.engine.parallel.memory_estimate import Layout
from plait.engine.parallel.sharding import Sharding
from plait.engine.schedule import Progress
from plait.engine.state import State
from plait.errors import PlaitError
from plait.training.moments import kept
from tests import processes


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(5, 7), nn.Linear(7, 5), nn.LayerNorm(5)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Model(nn.Module):
    """Two layers between an embedding and a head; sizes that two ranks cannot halve."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.embed, self.head = nn.Embedding(6, 5), nn.Linear(5, 6)
        self.layers = nn.ModuleList(Layer() for _ in range(2))

    def forward(self, ids):
        return self.head(nn.Sequential(*self.layers)(self.embed(ids)))

    def parts(self):
        named = dict(self.named_parameters())
        return {part: {name: value for name, value in named.items() if name.startswith(part)} for part in ("embed", "layers", "head")}


MATRICES = {f"layers.{number}.{name}.weight" for number in range(2) for name in ("up", "down")}
IDS = torch.tensor([[0, 1, 2, 5], [3, 3, 4, 0]])


def made(model, **settings):
    chosen = Optim.model_validate({"name": "muon", "lr": 0.01, "weight_decay": 0.1, "schedule": {"name": "constant"}, **settings})
    return optim.build(model.parts(), chosen, None, model.layers), chosen


def by_muon(optimizer):
    return {name for group in optimizer.param_groups if group["moments"] == (muon.MOMENT,) for name in group["names"]}


def step(model, *optimizers):
    model(IDS).square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()
    model.zero_grad()


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.5, "nesterov": False, "ns_steps": 3, "adjust_lr_fn": "original"}])
def test_matrices_are_torchs_muons_and_all_else_is_adamws(settings):
    model, oracle = Model(), Model()
    optimizer, _ = made(model, muon=settings)
    named = dict(oracle.named_parameters())
    decaying = [value for name, value in named.items() if name in ("embed.weight", "head.weight")]
    rest = [value for name, value in named.items() if name not in MATRICES and value.ndim < 2]
    theirs = {"adjust_lr_fn": "match_rms_adamw", **settings}
    reference = (
        torch.optim.Muon([value for name, value in named.items() if name in MATRICES], lr=0.01, weight_decay=0.1, **theirs),
        torch.optim.AdamW(decaying, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1, fused=True),
        torch.optim.AdamW(rest, lr=0.01, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    )
    for _ in range(3):
        step(model, optimizer)
        step(oracle, *reference)
    assert all(torch.equal(value, named[name]) for name, value in model.named_parameters())


def test_an_update_has_orthogonal_rows_and_the_size_of_adamws():
    model = Model()
    optimizer, _ = made(model, weight_decay=0.0)
    before = model.layers[0].down.weight.detach().clone()
    step(model, optimizer)
    update = (before - model.layers[0].down.weight.detach()) / (0.01 * 0.2 * math.sqrt(7))
    # five iterations bring singular values near 1, not onto it (Jordan et al.); AdamW's first update is its rate, of root mean square 1
    assert all(0.5 < float(value) < 1.3 for value in torch.linalg.svdvals(update))


def test_a_component_says_for_itself_whether_its_matrices_are_muons():
    assert by_muon(made(Model())[0]) == MATRICES
    assert by_muon(made(Model(), components={"head": {"muon": True}})[0]) == MATRICES | {"head.weight"}
    assert by_muon(made(Model(), components={"head": {"muon": True}, "layers": {"muon": False}})[0]) == {"head.weight"}


def test_a_stage_without_matrices_for_muon_is_refused():
    model = Model()
    with pytest.raises(PlaitError) as refused:
        optim.build({"head": model.parts()["head"]}, Optim(name="muon"), None, model.layers)
    assert str(refused.value) == (
        "optim.name is muon, but no matrix of head is in a block, so there is none for it: --optim.components.head.muon=true, or "
        "--optim.name=adamw"
    )


def test_matrices_have_a_rate_of_their_own_that_scales_with_a_components():
    optimizer, settings = made(Model(), muon={"lr": 0.02}, components={"layers": {"lr": 0.005}})
    logged = optim.set_lr(optimizer, settings, Progress(0, 1, 100))
    assert logged == {"embed": 0.01, "layers.muon": 0.01, "layers": 0.005, "head": 0.01}
    rates = {(group["component"], group["moments"] == (muon.MOMENT,)): group["lr"] for group in optimizer.param_groups}
    assert rates == {("embed", False): 0.01, ("layers", True): 0.01, ("layers", False): 0.005, ("head", False): 0.01}


def test_moments_are_saved_by_name_and_come_back_to_the_bit():
    model, settings = Model(), made(Model())[1]
    state = State(model)
    state.begin(model.parts(), settings, 0, model.layers)
    step(model, state.optimizer)
    saved = {name: value.clone() for name, value in state.tensors()["moments"].items()}
    kinds = kept.kinds(model.parts(), settings, model.layers)
    assert saved.keys() == {f"{name}.{kind}" for name, of in kinds.items() for kind in of}
    assert {name for name, of in kinds.items() if of == (muon.MOMENT,)} == MATRICES
    again = State(model, paused=dict(saved))
    again.begin(model.parts(), settings, 0, model.layers)
    found = again.tensors()["moments"]
    assert found.keys() == saved.keys() and all(torch.equal(found[name], saved[name]) for name in saved)


def test_moments_of_the_other_optimizer_are_left_behind_and_told(caplog):
    model = Model()
    state = State(model)
    state.begin(model.parts(), Optim(), 0, model.layers)
    step(model, state.optimizer)
    state.pause()
    caplog.set_level("INFO")
    state.begin(model.parts(), Optim(name="muon"), 0, model.layers)
    some = ", ".join(f"layers.0.{name}.weight" for name in ("up", "down")) + ", layers.1.up.weight, ..."
    assert caplog.messages == [f"moments of 4 parameters are of another optimizer than theirs now, and begin anew: {some}"]
    assert not any(name.rpartition(".")[0] in MATRICES for name in state.tensors()["moments"])
    assert "embed.weight.exp_avg" in state.tensors()["moments"]


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (4, 4)])
def test_operations_of_an_update_are_those_that_torch_counts(shape):
    weight = nn.Parameter(torch.ones(shape))
    weight.grad = torch.randn(shape)
    with FlopCounterMode(display=False) as counter:
        torch.optim.Muon([weight], ns_steps=3).step()
    assert muon.flops(shape, 3) == counter.get_total_flops()


def test_a_matrix_without_a_gradient_stays_as_it_is():
    model = Model()
    optimizer, _ = made(model)
    step(model, optimizer)
    before, moment = model.layers[0].up.weight.detach().clone(), optimizer.state[model.layers[0].up.weight][muon.MOMENT].clone()
    model.layers[0].up.weight.requires_grad_(False)
    step(model, optimizer)
    assert torch.equal(model.layers[0].up.weight, before)
    assert torch.equal(optimizer.state[model.layers[0].up.weight][muon.MOMENT], moment)


def sharded(strategy, expected):
    """On two ranks: some steps of a model that is sharded, against those of a whole one."""
    with distributed.join("cpu") as ranks:
        model = Model()
        names = {name for name, _ in model.named_parameters()}
        Sharding(model).wrap(model.layers, names, Layout(strategy, 2), ranks, types={})
        optimizer, _ = made(model)
        assert all(isinstance(value, DTensor) for value in model.parameters())
        for _ in range(3):
            step(model, optimizer)
        for name, value in model.named_parameters():
            # products of bfloat16 (8 bits) on a gradient whose last bits differ, times updates of 3 x 0.01 x 0.2 sqrt(7)
            torch.testing.assert_close(distributed.full_tensor(value.detach()), expected[name], rtol=0, atol=2e-4)
        moment = optimizer.state[model.layers[0].up.weight][muon.MOMENT]
        assert isinstance(moment, DTensor) and distributed.full_tensor(moment).shape == (7, 5)


@pytest.mark.parametrize("strategy", ["fsdp", "shard_grad_op"])
def test_sharded_matrices_are_updated_as_whole_ones_are(strategy):
    model = Model()
    optimizer, _ = made(model)
    for _ in range(3):
        step(model, optimizer)
    processes.fork(2, functools.partial(sharded, strategy), {name: value.detach() for name, value in model.named_parameters()})
