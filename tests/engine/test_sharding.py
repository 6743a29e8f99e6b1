"""What lies over a model when its state is cut over ranks: which units there are, and that nothing is lost when they change."""

import functools

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from plait.engine.parallel import distributed, memory_estimate
from plait.engine.parallel.memory_estimate import Layout, Storage
from plait.engine.parallel.sharding import Sharding
from plait.engine.state import State

from .. import processes
from .toy import make_config


class Model(nn.Module):
    """Two blocks and a rest, with a tied weight; sizes that two ranks cannot halve."""

    def __init__(self, rows=5, width=3):
        super().__init__()
        torch.manual_seed(3)
        self.words = nn.Embedding(rows, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.head = nn.Linear(width, rows, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids):
        x = self.words(ids)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


SECOND = "blocks.1.weight blocks.1.bias"
NAMES = {"words": "words.weight", "first": "blocks.0.weight blocks.0.bias", "matrix": "blocks.1.weight", "second": SECOND}


def laid(trained, cut_frozen, check, *more, strategy="fsdp"):
    """On two ranks: lay the model for what trains, then `check(model, sharding)`; then for `more`, and check again."""
    with distributed.join("cpu") as ranks:
        model = Model()
        sharding = Sharding(model)
        for parts in (trained, *more):
            names = {name for part in parts for name in NAMES[part].split()}
            for name, value in model.named_parameters():
                value.requires_grad_(name in names)
            sharding.wrap(model.blocks, names, Layout(strategy, 2, shard_frozen=cut_frozen), ranks, types={})
            check(model, sharding, names)


def cut(model):
    return {name for name, value in model.named_parameters() if isinstance(value, DTensor)}


def only_what_trains_and_frozen_blocks(model, sharding, names):
    assert cut(model) == {"words.weight", "blocks.0.weight", "blocks.0.bias", "blocks.1.weight"}
    assert isinstance(model.blocks[0], FSDPModule)


def only_what_trains(model, sharding, names):
    assert cut(model) == names == set(SECOND.split())
    assert not isinstance(model.blocks[0], FSDPModule)


@pytest.mark.parametrize(
    ("trained", "cut_frozen", "check"),
    [(("words", "matrix"), True, only_what_trains_and_frozen_blocks), (("second",), False, only_what_trains)],
)
def test_a_unit_trains_or_is_frozen_and_never_both(trained, cut_frozen, check):
    processes.fork(2, laid, trained, cut_frozen, check)


def bits_and_gradients(model, sharding, names):
    fresh = Model()
    for name, value in fresh.named_parameters():
        assert torch.equal(distributed.full_tensor(model.get_parameter(name).detach()), value), name
        value.requires_grad_(name in names)
    for one in (model, fresh):
        one(torch.arange(4)).square().sum().backward()
    for name, value in fresh.named_parameters():
        mine = model.get_parameter(name)
        assert (mine.grad is None) == (value.grad is None) == (name not in names)
        if mine.grad is not None:
            torch.testing.assert_close(distributed.full_tensor(mine.grad), value.grad, rtol=1e-5, atol=1e-6)  # mean of two equal ones
            mine.grad = None
    assert model.head.weight is model.words.weight


@pytest.mark.parametrize("strategy", ["fsdp", "shard_grad_op"])
def test_weights_keep_their_bits_and_gradients_are_right_after_each_change_of_what_trains(strategy):
    stages = [("words",), ("first", "second"), ("matrix",), ("words", "first", "second")]
    processes.fork(2, functools.partial(laid, strategy=strategy), stages[0], True, bits_and_gradients, *stages[1:])


def lifted(model, sharding, names):
    sharding.unwrap()
    fresh = Model()
    for one, other in zip(model.modules(), fresh.modules(), strict=True):
        assert type(one) is type(other)
        hooks = {name for name in one.__dict__ if "hooks" in name}
        assert all(len(getattr(one, name)) == len(getattr(other, name)) for name in hooks)
        assert one.__dict__.keys() == other.__dict__.keys()


def run_and_lifted(model, sharding, names):
    model(torch.arange(4)).sum().backward()
    lifted(model, sharding, names)


def test_nothing_of_the_sharding_is_left_on_a_model_that_it_was_taken_off():
    processes.fork(2, laid, ("words", "first"), True, run_and_lifted)


def whole_inside(model, sharding, names):
    x, block = torch.arange(4), model.blocks[0]
    expected = Model()
    with torch.no_grad(), sharding.gathered():
        assert cut(model) == set()
        for _ in range(2 + distributed.dist.get_rank()):  # ranks need not do the same
            assert torch.equal(model(x), expected(x))
            assert torch.equal(block(model.words(x)), expected.blocks[0](expected.words(x)))
    assert cut(model) == {name for name, _ in model.named_parameters()}
    bits_and_gradients(model, sharding, names)


def test_gathered_weights_serve_any_method_any_number_of_times_on_each_rank():
    processes.fork(2, laid, ("words", "first"), True, whole_inside)


def held(trained, ever, cut_frozen, strategy):
    """On two ranks: the bytes of a state that was cut, against what is counted for it; sizes that two ranks can halve."""
    settings = make_config(optim={"lr": 0.01, "schedule": {"name": "constant"}, "ema": {"decay": 0.9}}).optim
    with distributed.join("cpu") as ranks:
        model, layout = Model(6, 4), Layout(strategy, 2, shard_frozen=cut_frozen)
        sharding, state = Sharding(model), State(model)
        for parts in (ever, trained):
            names = {name for part in parts for name in NAMES[part].split()}
            state.pause()
            sharding.wrap(model.blocks, names, layout, ranks, types={})
            state.pause()
            state.begin({"all": {name: model.get_parameter(name) for name in names}}, settings)
            model(torch.arange(4)).sum().backward()
            state.optimizer.step()
        weights = memory_estimate.count_parameters(model, names, state.ever_trained, model.blocks)
        found = memory_estimate.memory(weights, layout, Storage.of("fp32", averages=1))
        size = lambda tensors: sum(4 * distributed.local(value).numel() for value in tensors)  # noqa: E731
        moments = [value for name, value in state.tensors()["moments"].items() if not name.endswith(".step")]
        gradients = [value.grad for value in state.trained().values()]
        assert found[:4] == (size(model.parameters()), size(gradients), size(moments), size(state.ema.average.values()))


@pytest.mark.parametrize("cut_frozen", [True, False])
def test_a_rank_holds_the_bytes_that_are_counted_for_it(cut_frozen):
    processes.fork(2, held, ("matrix",), ("words", "first"), cut_frozen, "fsdp")


def gradients_are_reduced_at_the_last_micro_batch(model, sharding, names):
    for last in (False, True):
        with distributed.accumulating(model, last):
            model(torch.tensor([0, 1])).square().sum().backward()
        assert [value.grad is not None for name, value in model.named_parameters() if name in names] == [last] * len(names)


def test_gradients_of_a_cut_model_are_reduced_at_the_last_micro_batch():
    processes.fork(2, laid, ("words", "first"), True, gradients_are_reduced_at_the_last_micro_batch)


def gradients_are_reduced_for_each_micro_batch(model, sharding, names):
    fresh, rank = Model(), distributed.dist.get_rank()
    for i in range(3):
        with distributed.accumulating(model, last=i == 2, sync="micro_batch"):
            model(torch.tensor([i, rank])).square().sum().backward()
        whole = [value._unsharded_param.grad for unit in model.modules() if isinstance(unit, FSDPModule) for value in unit_parameters(unit)]
        assert whole == [None] * len(whole)
        fresh(torch.tensor([[i, 0], [i, 1]])).square().sum().div(2).backward()
        for name in names:
            found, wanted = distributed.full_tensor(model.get_parameter(name).grad), fresh.get_parameter(name).grad
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def unit_parameters(unit):
    group = unit._get_fsdp_state()._fsdp_param_group
    return group.fsdp_params if group is not None else []


def test_gradients_of_a_cut_model_may_be_reduced_for_each_micro_batch_and_add_up():
    processes.fork(2, laid, ("words", "first"), True, gradients_are_reduced_for_each_micro_batch)
