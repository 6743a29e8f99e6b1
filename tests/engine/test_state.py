import pytest
import torch

from plait.engine.precision import set_precision
from plait.engine.state import load_weights
from plait.errors import PlaitError

from .toy import Net, make_config, make_state, micro, step_batch


def train(make_loop, state, config, steps):
    batches = [step_batch(state.stage_step + i, [micro(list(range(16)))]) for i in range(steps)]
    make_loop(state, config).run(batches, state.step + steps)


def snapshot(state):
    return {group: {name: value.clone() for name, value in tensors.items()} for group, tensors in state.tensors().items()}


@pytest.fixture
def config():
    return make_config(optim={"lr": 0.01, "schedule": {"name": "constant"}, "ema": {"decay": 0.9}})


def test_only_what_was_trained_is_state(make_loop, config):
    state = make_state(config, trainable=("head",))
    train(make_loop, state, config, 2)
    assert set(state.tensors()["weights"]) == set(state.tensors()["ema"]) == {"head.weight", "head.bias"}
    assert {name.rpartition(".")[0] for name in state.tensors()["moments"]} == {"head.weight", "head.bias"}


def test_a_part_trained_earlier_and_frozen_now_stays_in_the_state(make_loop, config):
    state = make_state(config)
    train(make_loop, state, config, 2)
    tower = state.model.tower.weight.detach().clone()
    state.enter(2)
    state.pause()
    state.begin({"head": state.model.components()["head"]}, config.optim)
    train(make_loop, state, config, 2)
    assert torch.equal(state.tensors()["weights"]["tower.weight"], tower)
    assert "tower.weight.exp_avg" in state.tensors()["moments"]


def test_unfreezing_leaves_other_moments_untouched_and_returning_ones_come_back(make_loop, config):
    state = make_state(config, trainable=("head",))
    train(make_loop, state, config, 3)
    head = snapshot(state)["moments"]
    state.pause()
    state.begin(state.model.components(), config.optim)
    assert all(torch.equal(state.tensors()["moments"][name], value) for name, value in head.items())
    state.pause()
    state.begin({"tower": state.model.components()["tower"]}, config.optim)
    state.pause()
    state.begin(state.model.components(), config.optim)
    assert all(torch.equal(state.tensors()["moments"][name], value) for name, value in head.items())


def test_a_restored_state_goes_on_as_if_it_had_never_stopped(make_loop, config):
    straight = make_state(config)
    train(make_loop, straight, config, 6)
    first = make_state(config)
    train(make_loop, first, config, 3)
    facts, tensors = first.facts(), snapshot(first)
    second = make_state(config, seed=99)
    second.optimizer, second.ema = None, None
    second.restore(facts, tensors)
    second.begin(second.model.components(), config.optim)
    train(make_loop, second, config, 3)
    for group, expected in snapshot(straight).items():
        found = second.tensors()[group]
        assert set(found) == set(expected)
        assert all(torch.equal(found[name], value) for name, value in expected.items()), group


def test_weights_without_a_place_are_refused_by_name():
    with pytest.raises(PlaitError, match=r"the checkpoint holds 'neck\.weight', which this model has not"):
        load_weights(Net(), {"neck.weight": torch.zeros(1)})
    with pytest.raises(PlaitError, match=r"'head.bias' is \(2,\) in the checkpoint and \(1,\) in the model"):
        load_weights(Net(), {"head.bias": torch.zeros(2)})


def test_bf16_keeps_what_trains_in_float32():
    net = Net()
    set_precision(net, ["head.weight"], "bf16")
    assert net.head.weight.dtype == torch.float32
    assert net.tower.weight.dtype == torch.bfloat16
