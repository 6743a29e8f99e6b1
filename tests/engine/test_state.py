import json

import pytest
import torch

from plait.engine import averages
from plait.engine.parallel.placing import load_weights
from plait.engine.precision import set_precision
from plait.engine.state import with_batch
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
    state.enter(2, 4, 100)
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
    metadata, tensors = first.metadata(), snapshot(first)
    second = make_state(config, seed=99)
    second.optimizer, second.ema = None, None
    second.restore(metadata, tensors)
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


def over_two_stages(make_loop, config):
    """A state after 3 steps of a stage and 2 of the next, and the weights after each of the five updates."""
    state, weights = make_state(config), []
    loop = make_loop(state, config, hooks=[lambda state, _: weights.append(state.model.tower.weight.detach().double().clone())])
    start = state.model.tower.weight.detach().double().clone()
    for stage, steps in ((1, 3), (2, 2)):
        state.enter(stage, 4, 100)
        state.pause()
        state.begin(state.model.components(), config.optim)
        loop.run([step_batch(i, [micro(list(range(16)))]) for i in range(steps)], state.step + steps)
    return state, start, weights


def test_post_hoc_averages_count_the_updates_of_all_stages(make_loop):
    ema = {"decay": 0.9, "warmup_steps": 10, "post_hoc": True}
    config = make_config(optim={"lr": 0.01, "schedule": {"name": "constant"}, "ema": ema})
    state, _, weights = over_two_stages(make_loop, config)
    assert set(state.post_hoc) == set(averages.KEPT)
    for one in state.post_hoc.values():
        expected = torch.zeros_like(weights[0])
        for t, weight in enumerate(weights, 1):  # Karras et al. 2024, equation 127: beta_t = (1 - 1 / t)^(g + 1), t from 1
            kept = (1 - 1 / t) ** (one.g + 1)
            expected = kept * expected + (1 - kept) * weight
        assert torch.allclose(one.average["tower.weight"].double(), expected, rtol=1e-6, atol=1e-7)  # five float32 updates


def test_the_average_warms_up_anew_in_each_stage(make_loop):
    ema = {"decay": 0.9, "warmup_steps": 10}
    config = make_config(optim={"lr": 0.01, "schedule": {"name": "constant"}, "ema": ema})
    state, expected, weights = over_two_stages(make_loop, config)
    for k, weight in zip((0, 1, 2, 0, 1), weights, strict=True):
        kept = (k + 1) / 10
        expected = kept * expected + (1 - kept) * weight
    assert torch.allclose(state.ema.average["tower.weight"].double(), expected, rtol=1e-6, atol=1e-7)  # five float32 updates


def test_a_stage_without_averages_drops_them_and_one_with_them_starts_from_the_weights(make_loop, config):
    state = make_state(config)
    train(make_loop, state, config, 1)
    without = make_config(optim={"lr": 0.01, "schedule": {"name": "constant"}})
    state.pause()
    state.begin(state.model.components(), without.optim)
    assert state.ema is None and state.tensors()["ema"] == {}
    train(make_loop, state, without, 1)
    state.pause()
    state.begin(state.model.components(), config.optim)
    assert torch.equal(state.ema.average["head.weight"], state.model.head.weight)


def test_moments_of_what_is_refrozen_are_kept_or_reset_as_asked(make_loop, config):
    for kept, settings in ((True, config), (False, make_config(optim={"lr": 0.01, "returning_moments": "reset"}))):
        state = make_state(config)
        train(make_loop, state, config, 1)
        state.pause()
        state.begin({"head": state.model.components()["head"]}, settings.optim)
        assert ("tower.weight.exp_avg" in state.tensors()["moments"]) is kept
        assert "head.weight.exp_avg" in state.tensors()["moments"]  # what trains on keeps its own


def test_a_later_stage_begins_at_the_present_step_with_nothing_judged(config):
    state = make_state(config)
    state.step, state.evaluated_step, state.stage_done, state.history, state.best = 7, 6, "flat", [(6, 1.0)], {"step": 6}
    state.count({"tokens": 5.0})
    state.enter(1, 4, 100)
    assert (state.stage_start, state.stage_done, state.history, state.best) == (0, "flat", [(6, 1.0)], {"step": 6})
    state.enter(2, 4, 100)
    assert (state.stage, state.stage_start, state.stage_step) == (2, 7, 0)
    assert (state.stage_done, state.history, state.best) == (None, [], None)
    assert (state.totals["tokens"], state.totals["stage_tokens"]) == (5.0, 0.0)


@pytest.mark.parametrize(
    ("done", "stop_step", "after"), [("planned", 8, None), ("planned", 7, "planned"), ("flat", 8, "flat"), (None, 7, None)]
)
def test_a_stage_is_reopened_only_if_it_ended_as_planned_and_was_extended(config, done, stop_step, after):
    state = make_state(config)
    state.step, state.stage_done = 7, done
    state.reopen(stop_step, "planned")
    assert state.stage_done == after


def test_totals_add_up_and_tokens_count_for_the_stage_too(config):
    state = make_state(config)
    for _ in range(2):
        state.count({"samples": 16, "tokens": 5.0})
        state.count({"skipped": 1})
    assert state.totals == {"samples": 32, "tokens": 10.0, "stage_tokens": 10.0, "skipped": 2}


def test_metadata_holds_the_plain_state_and_restore_gives_it_back(config):
    state = make_state(config, trainable=("head",))
    state.step, state.stage, state.stage_start, state.evaluated_step, state.probe = 9, 2, 4, 8, 0.25
    state.history, state.best, state.totals = [(2, 0.5), (4, 0.25)], {"step": 8, "value": 0.25}, {"samples": 144.0}
    metadata = json.loads(json.dumps(state.metadata()))
    assert metadata["trained"] == ["head.bias", "head.weight"]
    other = make_state(config)
    other.restore(metadata, state.tensors())
    assert other.metadata() == state.metadata()
    assert other.ever_trained == {"head.bias", "head.weight"}


@pytest.mark.parametrize(
    ("before", "step", "batch", "after"),
    [([], 0, 8, [[0, 8]]), ([[0, 4]], 6, 8, [[0, 4], [6, 8]]), ([[0, 4]], 6, 4, [[0, 4]]), ([[0, 4], [6, 8]], 9, 8, [[0, 4], [6, 8]])],
)
def test_the_sizes_of_batches_are_noted_where_they_change(before, step, batch, after):
    assert with_batch(before, step, batch) == after
