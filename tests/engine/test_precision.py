"""In which types a model trains: the loss scale of float16, rounding by chance, and the optimizer that works piece by piece."""

import math
from unittest import mock

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from plait.config.schema import Optim
from plait.engine import adamw, optim, precision
from plait.engine.adamw import round_stochastically
from plait.engine.parallel import distributed
from plait.engine.precision import GOOD_STEPS, OVERFLOWS, SCALE, Scaler, set_precision
from plait.errors import Stopped

from .. import processes
from .toy import ALONE, make_config, make_state, micro, step_batch


def batches(count, start=0):
    return [step_batch(step, [micro(list(range(16)))]) for step in range(start, start + count)]


def trained(make_loop, kind, steps=6, seed=0, **changes):
    """The toy after some steps, and its rows."""
    config = make_config(train={"steps": 100, "global_batch": 16, "precision": kind}, **changes)
    state, rows = make_state(config), []
    set_precision(state.model, state.ever_trained, kind)
    state.pause()
    state.begin(state.model.components(), config.optim, seed)
    make_loop(state, config, hooks=[lambda _, row: rows.append(row)]).run(batches(steps), steps)
    return state, rows


@pytest.mark.parametrize("value", [1.0039, -1.0039, 3e-5, -7e8, 1.0, 0.0])
def test_rounding_by_chance_is_right_on_average_and_gives_a_neighbour(value):
    draws, x = 1 << 16, torch.tensor(value)
    found = round_stochastically(
        x.expand(draws).contiguous(), torch.arange(draws, dtype=torch.int32)
    ).double()  # every noise there is, once
    assert found.mean().item() == pytest.approx(x.item(), rel=1e-12)  # the mean over all noise is x itself: no tolerance but float64's
    near = x.bfloat16()
    assert ((found - x.double()).abs() <= 2 * abs(x.item()) * 2**-8).all()
    assert len(found.unique()) == (1 if near == x else 2)


def test_rounding_keeps_what_is_not_finite():
    values = torch.tensor([math.inf, -math.inf, math.nan])
    found = round_stochastically(values, torch.full((3,), 65535, dtype=torch.int32))
    assert torch.equal(found[:2], values[:2].bfloat16())
    assert found[2].isnan()


def lone(value, kept=torch.bfloat16, **settings):
    """One parameter and its optimizer."""
    parameter = nn.Parameter(value.to(kept))
    count = iter(range(10**6))
    made = optim.build({"all": {"w": parameter}}, Optim(weight_decay=0.0, **settings), lambda name, piece: next(count))
    return parameter, made


def test_updates_far_below_the_distance_of_weights_are_not_lost():
    parameter, optimizer = lone(torch.ones(4096), lr=1e-5)
    plain = torch.ones(4096, dtype=torch.bfloat16)
    for _ in range(100):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        plain = plain - 1e-5
    assert torch.equal(plain, torch.ones_like(plain))  # 1e-5 is a four-hundredth of the distance to the next bfloat16
    # 4,096 weights of 100 updates by 1e-5; a weight has moved by 2^-8 or not at all: deviation sqrt(0.001 * 2^-8 / 4096) = 3.1e-5
    assert parameter.double().mean().item() == pytest.approx(1 - 1e-3, abs=4 * 3.1e-5)


def test_bfloat16_moments_are_those_of_float32_on_average():
    low, wide = lone(torch.zeros(4096), betas=(0.9, 0.999)), lone(torch.zeros(4096), torch.float32, betas=(0.9, 0.999), offload=True)
    for _ in range(50):
        for parameter, optimizer in (low, wide):
            parameter.grad = torch.full_like(parameter, 0.5)
            optimizer.step()
    for kind in ("exp_avg", "exp_avg_sq"):
        found, expected = (optimizer.state[parameter][kind] for parameter, optimizer in (low, wide))
        assert (found.dtype, expected.dtype) == (torch.bfloat16, torch.float32)
        # each of 50 roundings is off by at most 2^-8 of the value, and independent of the others and of 4,095 neighbours
        assert found.double().mean().item() == pytest.approx(expected.double().mean().item(), rel=50**0.5 * 2**-8 / 64 * 4)


def test_noise_comes_from_seed_step_and_name_alone(make_loop):
    runs = [trained(make_loop, "pure_bf16", seed=seed)[0] for seed in (0, 0, 1)]
    weights = [torch.cat([value.detach().flatten() for value in state.model.parameters()]) for state in runs]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert weights[0].dtype == torch.bfloat16


@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
def test_pieces_of_any_size_give_torchs_update(monkeypatch, kept):
    drawn = torch.Generator().manual_seed(0)
    value, gradient = torch.randn(33, 31, generator=drawn), torch.randn(33, 31, generator=drawn).to(kept)
    monkeypatch.setattr(adamw, "CHUNK", 64)
    parameter, optimizer = lone(value, kept, offload=True)
    plain = nn.Parameter(value.to(kept).float())
    oracle = torch.optim.AdamW([plain], lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=True)
    parameter.grad, plain.grad = gradient.clone(), gradient.float()
    optimizer.step()
    oracle.step()
    # bfloat16: one of the two neighbours of the exact value, 2^-7 of it apart; float32: the same kernel on the same numbers
    assert torch.allclose(parameter.float(), plain, rtol=2**-7 if kept == torch.bfloat16 else 0, atol=0)


def test_moments_that_are_kept_on_the_host_go_on_as_torchs_do():
    parameter, plain = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5))
    unneeded = lambda name, piece: pytest.fail("float32 is rounded nowhere")  # noqa: E731
    optimizer = optim.build({"all": {"w": parameter}}, Optim(weight_decay=0.0, offload=True, lr=0.1), unneeded)
    oracle = torch.optim.AdamW([plain], lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=True)
    for scale in (1.0, -3.0, 0.5):
        parameter.grad, plain.grad = torch.full((5,), scale), torch.full((5,), scale)
        optimizer.step()
        oracle.step()
    assert torch.equal(parameter, plain)  # the same kernel on the same numbers
    assert optimizer.state[parameter]["step"].item() == 3.0
    parameter.grad = None
    optimizer.step()
    assert torch.equal(parameter, plain) and optimizer.state[parameter]["step"].item() == 3.0


def laid_in_rows():
    """The pieces of this rank's rows of a weight of 12 x 10, and of the whole weight."""
    with distributed.join("cpu"):
        mesh = init_device_mesh("cpu", (2,))
        with mock.patch.object(adamw, "CHUNK", 50):
            return list(adamw.chunks(distribute_tensor(torch.zeros(13, 10), mesh, [Shard(0)]))), list(adamw.chunks(torch.zeros(13, 10)))


def test_the_rows_of_a_rank_are_rounded_as_in_the_whole():
    (first, whole), (second, _) = processes.run(2, laid_in_rows)
    assert [piece for piece, *_ in whole] == [0, 1, 2]
    assert first == [(0, slice(0, 50), slice(0, 50)), (1, slice(50, 70), slice(0, 20))]  # 7 rows
    assert second == [(1, slice(0, 30), slice(20, 50)), (2, slice(30, 60), slice(0, 30))]  # 6 rows


def test_offloading_changes_no_bit_and_keeps_moments_apart(make_loop):
    plain, plain_rows = trained(make_loop, "bf16")
    hosted, rows = trained(make_loop, "bf16", optim={"lr": 0.01, "schedule": {"name": "constant"}, "offload": True})
    assert type(hosted.optimizer) is not type(plain.optimizer)
    for name, tensors in plain.tensors().items():
        assert all(torch.equal(tensors[key], value) for key, value in hosted.tensors()[name].items()), name
    assert [row["loss"] for row in rows] == [row["loss"] for row in plain_rows]
    assert all(value.device.type == "cpu" for value in optim.moments(hosted.optimizer).values())


def test_offloaded_moments_live_on_the_host_while_weights_do_not():
    parameter = nn.Parameter(torch.zeros(3, 2, device="meta"))  # a device that is not the host, without one at hand
    for offload, place in ((True, "cpu"), (False, "meta")):
        (group,) = optim.build({"all": {"w": parameter}}, Optim(offload=offload)).param_groups
        assert {value.device.type for value in adamw.initial_moments(group, parameter).values()} == {place}


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_what_trains_and_its_gradients_are_float32_under_half_precision(make_loop, kind):
    config = make_config(train={"steps": 1, "global_batch": 16, "precision": kind})
    state = make_state(config, trainable=("head",))
    set_precision(state.model, state.ever_trained, kind)
    loop = make_loop(state, config)
    loop.gradient(state.model, batches(1)[0], {"error": 16.0}, audit=False)
    assert {value.dtype for value in state.model.head.parameters()} == {torch.float32}
    assert {value.grad.dtype for value in state.model.head.parameters()} == {torch.float32}
    assert {value.dtype for value in state.model.tower.parameters()} == {precision.TYPES[kind].products}


def test_float16_follows_float32_and_leaves_no_trace_of_its_scale(make_loop):
    (_, wide), (_, half) = trained(make_loop, "fp32"), trained(make_loop, "fp16")
    for exact, row in zip(wide, half, strict=True):
        assert row["loss"] == pytest.approx(exact["loss"], rel=6 * 2**-11)  # float16 keeps 11 bits; the toy is three operations deep
        assert row["grad_norm"] == pytest.approx(exact["grad_norm"], rel=6 * 2**-11)
        assert (row[SCALE], row[OVERFLOWS]) == (2.0**16, 0)
    assert SCALE not in wide[0]


def test_an_overflow_takes_the_step_again_with_half_the_scale(make_loop, capsys):
    config = make_config(train={"steps": 100, "global_batch": 16, "precision": "fp16"}, optim={"lr": 0.01, "ema": {"decay": 0.5}})
    state = make_state(config)
    state.totals[SCALE] = 2.0**40  # at which the output's gradient is beyond float16's 65,504
    loop = make_loop(state, config, hooks=[])
    row = loop.step(state.model, batches(1)[0], 100, audit=True)
    assert (state.step, state.totals["samples"], row["step"]) == (1, 16, 1)
    said = capsys.readouterr().out.splitlines()
    assert row[OVERFLOWS] == len(said) == 40 - math.log2(row[SCALE])
    assert said[0] == "step 1: gradients overflow float16; taken again with the loss scaled by 5.49756e+11"
    assert {float(value["step"]) for value in state.optimizer.state.values()} == {1.0}
    assert all(value.isfinite().all() for value in state.ema.average.values())


def test_the_scale_doubles_after_two_thousand_steps_and_is_part_of_the_state():
    totals = {SCALE: 1024.0, GOOD_STEPS: 1998}
    scaler = Scaler("fp16", totals)
    assert not scaler.overflowed(1.0, 1.0, ALONE)
    assert (scaler.scale, totals[GOOD_STEPS]) == (1024, 1999)
    assert not Scaler("fp16", dict(totals)).overflowed(1.0, 1.0, ALONE)  # the totals are all that counts
    assert not scaler.overflowed(1.0, 1.0, ALONE)
    assert (scaler.scale, totals[GOOD_STEPS]) == (2048, 0)
    assert scaler.overflowed(1.0, math.inf, ALONE)
    assert totals == {SCALE: 1024.0, GOOD_STEPS: 0, OVERFLOWS: 1}


def test_what_no_scale_can_help_stops_the_run(make_loop):
    config = make_config(train={"steps": 100, "global_batch": 16, "precision": "fp16"})
    state = make_state(config)
    broken = batches(1)[0]
    broken.micro[0].batch["y"][3] = math.nan
    with pytest.raises(Stopped, match=r"step 1 is not finite \(loss = nan"):
        make_loop(state, config).step(state.model, broken, 100, audit=True)
    assert OVERFLOWS not in state.totals
    assert not Scaler("fp16", {SCALE: 1.0}).overflowed(1.0, math.inf, ALONE)


@pytest.mark.parametrize("bad_step", [0, 1])
def test_a_step_that_no_scale_can_help_leaves_the_scale_to_the_next(make_loop, caplog, bad_step):
    config = make_config(train={"steps": 100, "global_batch": 16, "precision": "fp16"}, guard={"non_finite": "skip"})
    state, rows = make_state(config), []
    work = batches(3)
    work[bad_step].micro[0].batch["y"][3] = 1e8  # a finite loss, whose gradient is beyond float16 at any scale
    make_loop(state, config, hooks=[lambda _, row: rows.append(row)]).run(work, 3)
    assert [row.get("skipped", 0) for row in rows] == [int(step == bad_step) for step in range(3)]
    assert state.totals[SCALE] == rows[2][SCALE] == 2.0**16
    assert (rows[bad_step][SCALE], rows[bad_step][OVERFLOWS]) == (1.0, 16)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_small_scale_is_told_once(make_loop, caplog):
    config = make_config(train={"steps": 100, "global_batch": 16, "precision": "fp16"})
    state = make_state(config)
    state.totals[SCALE] = 2.0**7
    loop = make_loop(state, config)
    loop.scaler.end_step(2.0**8, sound=True)
    assert not caplog.records  # 128 is not below 128
    state.totals[SCALE] = 2.0**6
    loop.scaler.end_step(2.0**7, sound=True)
    loop.scaler.end_step(2.0**6, sound=True)
    (record,) = caplog.records
    assert "the loss scale is down to 64: small gradients become 0 in float16" in record.message


def test_averages_of_bfloat16_weights_are_float32_and_survive_evaluation(make_loop):
    state, _ = trained(make_loop, "pure_bf16", optim={"lr": 0.01, "ema": {"decay": 0.9}})
    parameters, average = dict(state.model.named_parameters()), {name: value.clone() for name, value in state.ema.average.items()}
    weights = {name: value.detach().clone() for name, value in parameters.items()}
    state.ema.swap(parameters)
    assert all(torch.equal(value, average[name].bfloat16()) for name, value in parameters.items())
    state.ema.swap(parameters)
    assert all(torch.equal(value, weights[name]) for name, value in parameters.items())
    assert all(torch.equal(value, average[name]) and value.dtype == torch.float32 for name, value in state.ema.average.items())


def test_a_cpu_is_no_place_for_float16():
    assert precision.caution("fp16", torch.device("cpu")).startswith("train.precision fp16: a CPU multiplies float16")
    assert precision.caution("fp16", torch.device("cuda")) is None
    assert precision.caution("bf16", torch.device("cpu")) is None


def test_reading_the_scale_changes_no_counter():
    totals = {}
    assert Scaler("fp16", totals).scale > 1 and totals == {}
