"""Bytes held and sent: against the tensors of a real state, a ring passed round by hand, and the ratios of the ZeRO paper."""

import runpy
from pathlib import Path

import pytest
from torch import nn

from plait.engine.parallel import memory_estimate
from plait.engine.parallel.memory_estimate import Layout, ParameterCounts, Storage

from .toy import make_config, make_state, micro, step_batch

ROOT = Path(__file__).resolve().parents[2]
BIG = ParameterCounts(trained=4096, frozen=8192, trained_unit=512, frozen_unit=1024)


def size(tensors):
    return sum(value.numel() * value.element_size() for value in tensors)


@pytest.mark.parametrize("trainable", [("head",), ("tower", "head")])
def test_memory_of_one_rank_is_that_of_the_state_to_the_byte(make_loop, trainable):
    config = make_config(optim={"lr": 0.01, "schedule": {"name": "constant"}, "ema": {"decay": 0.9}})
    state = make_state(config, trainable)
    make_loop(state, config).run([step_batch(0, [micro(list(range(16)))])], 1)
    weights = memory_estimate.count_parameters(state.model, set(state.trained()), state.ever_trained, [state.model.tower, state.model.head])
    found = memory_estimate.memory(weights, Layout(), Storage.of("fp32", averages=1))
    assert found.weights == size(state.model.parameters())
    assert found.gradients == size(state.trained().values())
    assert found.moments == size(value for name, value in state.tensors()["moments"].items() if not name.endswith(".step"))
    assert found.averages == size(state.ema.average.values())


def test_a_part_that_trained_before_keeps_its_moments_and_average(make_loop):
    config = make_config(optim={"lr": 0.01, "schedule": {"name": "constant"}, "ema": {"decay": 0.9}})
    state = make_state(config)
    make_loop(state, config).run([step_batch(0, [micro(list(range(16)))])], 1)
    state.pause()
    state.begin({"head": state.model.components()["head"]}, config.optim)
    weights = memory_estimate.count_parameters(state.model, set(state.trained()), state.ever_trained, [state.model.head])
    found = memory_estimate.memory(weights, Layout(), Storage.of("fp32", averages=1))
    assert (weights.trained, weights.paused, weights.trained_unit, weights.unsharded_paused) == (9, 40, 9, 40)
    assert found.averages == size(state.ema.average.values())
    assert found.moments == size(value for name, value in state.tensors()["moments"].items() if not name.endswith(".step"))


def around_the_ring(values, ranks):
    """Bytes that rank 0 sends while every rank's chunk goes once round to all others, passed on by hand."""
    chunk, sent = values // ranks, 0
    for _ in range(ranks - 1):
        sent += chunk
    return sent


@pytest.mark.parametrize("ranks", [1, 2, 8, 64])
def test_traffic_is_what_a_ring_passes_on(ranks):
    storage, gradients = Storage.of("fp32"), 4 * BIG.trained
    assert memory_estimate.traffic(BIG, Layout("ddp", ranks), storage).total == 2 * around_the_ring(gradients, ranks)
    full = memory_estimate.traffic(BIG, Layout("fsdp", ranks, shard_frozen=False), storage)
    assert full.total == (3 if ranks > 1 else 2) * around_the_ring(gradients, ranks)  # ZeRO, section 7: 1.5 times


def test_bf16_training_holds_sixteen_bytes_per_value_and_shards_divide_them():
    weights = ParameterCounts(trained=1 << 20)
    alone = memory_estimate.memory(weights, Layout(), Storage.of("bf16"))
    assert alone.total == 16 * weights.trained  # ZeRO, section 3.1, with gradients in float32 in place of bf16 + a copy in float32
    shard = memory_estimate.memory(weights, Layout("fsdp", 64), Storage.of("bf16"))
    assert shard.total - shard.gathered == alone.total // 64


def test_hybrid_sharding_holds_by_its_group_and_sends_between_groups():
    storage = Storage.of("bf16")
    hybrid, full = Layout("hsdp", 64, shard_size=8), Layout("fsdp", 8)
    assert memory_estimate.memory(BIG, hybrid, storage) == memory_estimate.memory(BIG, full, storage)
    sent = memory_estimate.traffic(BIG, hybrid, storage)
    assert sent.within == memory_estimate.traffic(BIG, full, storage).within
    assert sent.between == 2 * around_the_ring(4 * BIG.trained // 8, 8)


def test_what_sharding_holds_for_a_moment_depends_on_when_weights_are_let_go():
    storage = Storage.of("bf16")
    full, gradients = (memory_estimate.memory(BIG, Layout(name, 8), storage) for name in ("fsdp", "shard_grad_op"))
    assert full.gathered == 2 * (512 * 4 + 1024 * 2) + 2 * 512 * 4
    assert gradients.gathered == 4096 * 4 + 8192 * 2 + 2 * 512 * 4
    whole = memory_estimate.memory(BIG, Layout("fsdp", 8), storage, accumulating=True)
    assert (whole.gradients, full.gradients) == (4 * 4096, 4 * 512)
    assert whole.gathered == 2 * (512 * 4 + 1024 * 2)  # the gradients are whole already


def test_micro_batches_gather_again_and_reduce_once():
    storage = Storage.of("fp32")
    one, four = (memory_estimate.traffic(BIG, Layout("fsdp", 2), storage, micro_batches=count).total for count in (1, 4))
    assert four - one == 3 * 2 * 4 * (BIG.trained + BIG.frozen) // 2


def test_the_page_on_scaling_shows_what_its_command_prints():
    made = runpy.run_path(str(ROOT / "benchmarks" / "scaling.py"))
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert made["written"](page, made["table"]()) == page


MIXED = ParameterCounts(trained=1000, paused=600, frozen=2000, trained_unit=100, frozen_unit=300, unsharded_paused=40, unsharded_frozen=200)


def test_what_is_whole_stays_whole_on_every_rank_and_the_rest_is_cut():
    found = memory_estimate.memory(MIXED, Layout("fsdp", 8), Storage.of("bf16", averages=2))
    trained, paused, frozen = 125, 40 + 70, 200 + 225  # 1000 / 8; 40 + 560 / 8; 200 + 1800 / 8
    assert found.weights == trained * 4 + paused * 4 + frozen * 2
    assert found.moments == 2 * (trained * 4 + 75 * 4)  # all moments are cut, those of 600 paused values too
    assert found.averages == (trained + paused) * 4 * 2
    assert found.gathered == 2 * (100 * 4 + 300 * 4) + 2 * 100 * 4  # a block that paused in float32 may be the largest
    assert found.total == found.weights + found.gradients + found.moments + found.averages + found.gathered


def test_frozen_weights_that_are_not_cut_are_whole_and_never_gathered():
    layout = Layout("fsdp", 8, shard_frozen=False)
    found = memory_estimate.memory(MIXED, layout, Storage.of("bf16"))
    assert found.weights == 125 * 4 + 600 * 4 + 2000 * 2
    assert found.gathered == 2 * 100 * 4 + 2 * 100 * 4
    sent = memory_estimate.traffic(MIXED, layout, Storage.of("bf16"))
    assert sent == (3 * 1000 * 4 * 7 // 8, 0)


def test_what_is_cut_is_sent_at_every_pass_and_gradients_once():
    for strategy, gathers in (("fsdp", 2), ("shard_grad_op", 1)):
        sent = memory_estimate.traffic(MIXED, Layout(strategy, 8), Storage.of("bf16"), micro_batches=3)
        cut = 1000 * 4 + 560 * 4 + 1800 * 2
        assert sent.within == (gathers * 3 * cut + 1000 * 4) * 7 // 8
        assert sent.total == sent.within + sent.between == sent.within


def test_replicas_send_gradients_alone_and_nothing_is_gathered():
    for accumulating in (False, True):
        found = memory_estimate.memory(MIXED, Layout("ddp", 8), Storage.of("fp32"), accumulating=accumulating)
        assert (found.weights, found.gradients, found.gathered) == (3600 * 4, 1000 * 4, 0)
    assert memory_estimate.traffic(MIXED, Layout("ddp", 8), Storage.of("fp32"), micro_batches=5) == (0, 2 * 4000 * 7 // 8)


@pytest.mark.parametrize(("precision", "trained", "frozen"), [("fp32", 4, 4), ("bf16", 4, 2), ("fp16", 4, 2), ("pure_bf16", 2, 2)])
def test_a_precision_stores_so_many_bytes_per_value(precision, trained, frozen):
    assert Storage.of(precision) == Storage(trained, frozen, 0, 2 * trained)
    assert Storage.of(precision, averages=3).averages == 3


def test_a_share_is_rounded_up_where_ranks_do_not_divide_it():
    found = memory_estimate.memory(ParameterCounts(trained=10), Layout("fsdp", 4), Storage.of("fp32"))
    assert (found.weights, found.gradients) == (3 * 4, 3 * 4)


class Blocks(nn.Module):
    """Three blocks of 6, 12 and 20 values (the last with a bias of 4), and 3 values in none."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 2, bias=False), nn.Linear(4, 3, bias=False), nn.Linear(4, 4)
        self.rest = nn.Linear(3, 1, bias=False)


def test_values_are_weighed_by_what_trains_trained_and_never_did_and_by_their_block():
    model = Blocks()
    found = memory_estimate.count_parameters(model, {"c.bias", "rest.weight"}, {"c.bias", "a.weight"}, [model.a, model.b, model.c])
    assert (found.trained, found.paused, found.frozen) == (4 + 3, 6, 12 + 16)
    assert (found.trained_unit, found.frozen_unit) == (4, 12)
    assert (found.unsharded_paused, found.unsharded_frozen) == (0, 16)  # of block c, which trains in part


def test_a_model_without_blocks_is_one_unit_whose_frozen_rest_is_whole():
    found = memory_estimate.count_parameters(Blocks(), {"a.weight", "b.weight"}, {"rest.weight"}, [])
    assert found == ParameterCounts(
        trained=18, paused=3, frozen=20, trained_unit=18, frozen_unit=0, unsharded_paused=3, unsharded_frozen=20
    )


def test_gradients_that_are_reduced_for_each_micro_batch_are_never_whole_and_sent_as_often():
    each, once = Layout("hsdp", 16, 8, reduce_each=True), Layout("hsdp", 16, 8)
    held = memory_estimate.memory(MIXED, each, Storage.of("bf16"), accumulating=True)
    assert held == memory_estimate.memory(MIXED, once, Storage.of("bf16"))
    assert held.gradients == 125 * 4
    sent, rarer = (memory_estimate.traffic(MIXED, layout, Storage.of("bf16"), micro_batches=3) for layout in (each, once))
    assert (sent.within - rarer.within, sent.between) == (2 * 4000 * 7 // 8, 3 * rarer.between)
