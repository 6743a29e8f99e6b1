import json
from types import SimpleNamespace

import pytest
import torch

from plait.engine import evaluation, guards
from plait.engine.loop import total_loss_weights
from plait.errors import Stopped

from .toy import SquaredError, examples, make_config, make_state, micro, step_batch


def gradients(make_loop, cut, dtype):
    config = make_config(train={"steps": 1, "global_batch": 16, "grad_clip": None})
    state = make_state(config)
    state.model.to(dtype)
    loop = make_loop(state, config)
    micros = [micro(list(range(i, i + 16 // cut)), dtype=dtype) for i in range(0, 16, 16 // cut)]
    loop.accumulate(state.model, micros, total_loss_weights(loop.loss, micros, loop.ranks))
    return torch.cat([value.grad.flatten() for value in state.model.parameters()])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])  # fp32: 16 sums of rounding 6e-8
@pytest.mark.parametrize("cut", [2, 4, 16])
def test_one_global_batch_cut_any_way_gives_one_gradient(make_loop, cut, dtype, tolerance):
    whole, parts = gradients(make_loop, 1, dtype), gradients(make_loop, cut, dtype)
    assert (whole - parts).abs().max() <= tolerance * whole.abs().max()


def test_the_gradient_is_that_of_the_sum_over_the_weight(make_loop):
    found = gradients(make_loop, 4, torch.float64)
    net = make_state(make_config()).model.double()
    batch = examples(range(16), torch.float64)
    loss = (batch["w"] * (net(batch) - batch["y"]) ** 2).sum() / batch["w"].sum()
    expected = torch.cat([value.flatten() for value in torch.autograd.grad(loss, list(net.parameters()))])
    assert torch.allclose(found, expected, rtol=0, atol=1e-14)


def test_the_loss_in_the_log_is_the_sum_over_the_weight(make_loop):
    config = make_config()
    state = make_state(config)
    batch = examples(range(12))
    with torch.no_grad():
        expected = (batch["w"] * (state.model(batch) - batch["y"]) ** 2).sum() / batch["w"].sum()
    row = make_loop(state, config).step(state.model, step_batch(0, [micro(list(range(8))), micro(list(range(8, 12)))]), 100, audit=True)
    assert row["loss"] == row["loss/error"] == pytest.approx(float(expected), rel=1e-6)
    assert row["weight/error"] == pytest.approx(float(batch["w"].sum()), rel=1e-6)


def test_a_void_or_weightless_micro_batch_changes_nothing(make_loop):
    config = make_config()
    results = []
    for extra in ([], [micro([3, 4], padding=True)], [micro([5, 6])]):
        state = make_state(config)
        if extra and not extra[0].padding:
            extra[0].batch["w"].zero_()
        row = make_loop(state, config).step(state.model, step_batch(0, [micro(list(range(8))), *extra]), 100, audit=True)
        results.append((row["loss"], row["weight/error"], row["grad_norm"]))
    assert results[0] == results[1] == results[2]


def test_a_step_without_any_weight_moves_nothing_and_reports_zero(make_loop):
    config = make_config(optim={"lr": 0.1, "weight_decay": 0.0, "schedule": {"name": "constant"}})
    state = make_state(config)
    empty = micro([1, 2])
    empty.batch["w"].zero_()
    before = state.model.head.weight.detach().clone()
    row = make_loop(state, config).step(state.model, step_batch(0, [empty]), 100, audit=True)
    assert row["loss"] == 0
    assert row["weight/error"] == 0
    assert torch.equal(state.model.head.weight, before)


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_samples(make_loop):
    config = make_config()
    state = make_state(config)
    broken = micro([7, 9])
    broken.batch["y"][0] = float("nan")
    before = state.model.head.weight.detach().clone()
    with pytest.raises(
        Stopped, match=r"step 1 is not finite \(loss = nan.*\), stopped before the update; samples 0:7@0 0:9@0; gradients not"
    ):
        make_loop(state, config).step(state.model, step_batch(0, [broken]), 100, audit=True)
    assert torch.equal(state.model.head.weight, before)
    assert state.step == 0


def test_the_gradient_is_clipped_once_to_its_norm(make_loop):
    config = make_config(train={"steps": 1, "global_batch": 16, "grad_clip": 0.001})
    state = make_state(config)
    loop = make_loop(state, config)
    norms = []
    state.optimizer.register_step_pre_hook(lambda *_: norms.append(torch.cat([p.grad.flatten() for p in state.model.parameters()]).norm()))
    row = loop.step(state.model, step_batch(0, [micro(list(range(16)))]), 100, audit=True)
    assert row["grad_norm"] > 0.001
    assert norms[0].item() == pytest.approx(0.001, rel=1e-3)  # clip_grad_norm_ adds 1e-6 to the norm


def test_the_audit_names_a_trainable_parameter_without_gradient():
    state = make_state(make_config())
    state.model(examples([1])).sum().backward()
    state.model.tower.bias.grad = None
    assert guards.audit(state.model) == ["audit: 1 trainable parameters got no gradient in the first step and will not move: tower.bias"]


def test_the_audit_stops_at_a_frozen_parameter_with_gradient():
    state = make_state(make_config(), trainable=("head",))
    state.model.tower.bias.grad = torch.ones(8)
    with pytest.raises(Stopped, match=r"audit: 1 frozen parameters have a gradient: tower\.bias"):
        guards.audit(state.model)


def test_too_many_bad_samples_stop_the_run_with_the_list(make_loop, tmp_path):
    config = make_config()
    state = make_state(config)
    bad = [
        SimpleNamespace(id=micro([i]).ids[0], name=f"photo-{i}", reason="truncated JPEG", replaced_by=micro([i + 1]).ids[0], attempt=0)
        for i in (3, 4)
    ]
    batch = step_batch(0, [micro(list(range(16)))])
    batch.bad = bad
    with pytest.raises(
        Stopped, match=r"2 of 16 samples could not be used, more than guard.max_bad_fraction = 0.01 allows.*photo-3: truncated"
    ):
        make_loop(state, config).step(state.model, batch, 100, audit=True)
    rows = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert [row["sample"] for row in rows] == ["photo-3", "photo-4"]
    assert rows[0]["reason"] == "truncated JPEG"


def test_training_lowers_the_loss_and_keeps_frozen_parts_to_the_bit(make_loop):
    config = make_config()
    state = make_state(config, trainable=("head",))
    frozen = state.model.tower.weight.detach().clone()
    rows = []
    loop = make_loop(state, config, hooks=[lambda _, row: rows.append(row)])
    loop.run([step_batch(step, [micro(list(range(16)))]) for step in range(50)], 50)
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert torch.equal(state.model.tower.weight, frozen)
    assert {
        "step",
        "loss",
        "loss/error",
        "weight/error",
        "grad_norm",
        "lr/head",
        "samples",
        "samples_per_s",
        "data_wait_s",
        "step_s",
        "time_s",
        "tflop_per_s",
    } <= set(rows[0])


def test_a_step_counts_the_floating_point_operations_of_all_its_samples(make_loop):
    config = make_config()
    cut = [micro(list(range(8))), micro(list(range(8, 16))), micro([3], padding=True)]
    for trainable, each in ((("tower", "head"), 2 * (4 * 8 * 2 + 8 * 3)), (("head",), 2 * (4 * 8 + 8 * 2))):
        state = make_state(config, trainable)
        loop = make_loop(state, config)
        for step in range(2):  # counted, then known
            assert loop.step(state.model, step_batch(step, cut), 100, audit=False)["flops"] == 16 * each


def test_the_loop_equals_plain_pytorch(make_loop):
    config = make_config(train={"steps": 5, "global_batch": 16, "grad_clip": None})
    state, oracle = make_state(config), make_state(config).model
    make_loop(state, config).run([step_batch(step, [micro(list(range(16)))]) for step in range(5)], 5)
    plain = torch.optim.AdamW(oracle.parameters(), lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    plain.param_groups[0]["params"] = [value for value in oracle.parameters() if value.ndim == 2]
    plain.param_groups[0]["weight_decay"] = 0.01
    plain.add_param_group({"params": [value for value in oracle.parameters() if value.ndim == 1], "weight_decay": 0.0})
    for _ in range(5):
        plain.zero_grad()
        batch = examples(range(16))
        (SquaredError().sums(oracle, batch)["error"] / batch["w"].sum()).backward()
        plain.step()
    for (name, value), other in zip(state.model.named_parameters(), oracle.parameters(), strict=True):
        assert torch.allclose(value, other, rtol=0, atol=1e-6), name  # fused and unfused AdamW round differently


def test_every_part_trains_in_training_mode_from_the_first_step(make_loop):
    config = make_config()
    state, seen = make_state(config), []
    state.model.tower.eval()  # as transformers leaves what it loads
    state.model.tower.register_forward_hook(lambda module, *_: seen.append(module.training))
    make_loop(state, config).run([step_batch(0, [micro([1, 2])]), step_batch(1, [micro([3, 4])])], 2)
    assert seen == [True, True]


def test_a_step_on_which_no_evaluation_is_due_touches_no_weight_and_no_mode():
    state = make_state(make_config(optim={"lr": 0.1, "ema": {"decay": 0.5}, "schedule": {"name": "constant"}}))
    before = [value._version for value in state.model.parameters()]
    state.model.eval()
    nothing = dict.fromkeys(("held_out", "inputs", "ranks", "stop", "mark", "record", "show", "gathered", "failed", "answered"))
    judge = evaluation.Evaluations(entries=[], loss=SquaredError(), benches={}, precision="fp32", **nothing)
    assert judge.run(state, []) == {}
    assert [value._version for value in state.model.parameters()] == before
    assert not state.model.training


def test_a_row_tells_rates_and_times_of_its_step_wait_included(make_loop, monkeypatch):
    clock = iter([10.0, 12.0, 13.0])
    monkeypatch.setattr("plait.engine.loop.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr("plait.engine.loop.time.time", lambda: 99.0)
    state, rows = make_state(make_config()), []
    batch = step_batch(0, [micro(list(range(16)))])
    batch.wait_s = 6.0
    make_loop(state, make_config(), hooks=[lambda _, row: rows.append(row)]).run([batch], 1)
    (row,) = rows
    assert (row["samples_per_s"], row["data_wait_s"], row["step_s"], row["time_s"]) == (16 / 8, 6.0, 3.0, 99.0)
    assert row["tflop_per_s"] == pytest.approx(16 * 2 * (4 * 8 * 2 + 8 * 3) / 8 / 1e12)
    assert "flops" not in row


def test_a_run_ends_with_its_stage_or_when_asked_to_stop(make_loop):
    def batches():
        return [step_batch(step, [micro([1, 2])]) for step in range(5)]

    def done(state, row):
        state.stage_done = "flat" if row["step"] == 2 else None

    state = make_state(make_config())
    make_loop(state, make_config(), hooks=[done]).run(batches(), 5)
    assert state.step == 2
    state = make_state(make_config())
    loop = make_loop(state, make_config())
    loop.stop.received = "SIGTERM"
    loop.run(batches(), 5)
    assert (state.step, loop.stop.agreed) == (1, True)


def test_a_step_on_the_list_moves_nothing_is_counted_and_can_still_be_stopped(make_loop):
    config = make_config(optim={"lr": 0.1, "ema": {"decay": 0.5}, "schedule": {"name": "constant"}})
    state = make_state(config)
    loop = make_loop(state, config, skipped=frozenset({1}))
    rows, before = [], None
    for step in range(3):
        before = [value.detach().clone() for value in state.model.parameters()] if step == 1 else before
        rows.append(loop.step(state.model, step_batch(step, [micro(list(range(16)))]), 100, audit=False))
        moved = step != 1 and before and any(not torch.equal(a, b) for a, b in zip(before, state.model.parameters(), strict=True))
        assert bool(moved) is (step == 2)
    assert [row.get("skipped") for row in rows] == [None, 1, None]
    assert (state.totals["skipped"], state.totals["samples"], state.step) == (1, 48, 3)
    assert {float(value["step"]) for value in state.optimizer.state.values()} == {2.0}


def test_the_first_step_of_a_start_is_audited_unless_that_is_off(make_loop, capsys):
    for audit, said in ((True, 1), (False, 0)):
        config = make_config(guard={"audit": audit})
        state = make_state(config)
        state.model.register_parameter("idle", torch.nn.Parameter(torch.zeros(1)))
        state.pause()
        state.begin({"tower": state.model.components()["tower"], "idle": {"idle": state.model.idle}}, config.optim)
        make_loop(state, config).run([step_batch(step, [micro([1, 2])]) for step in range(2)], 2)
        assert capsys.readouterr().out.count("audit: 1 trainable parameters got no gradient") == said


def test_dropout_is_seeded_by_step_rank_and_micro_batch(make_loop):
    def draws(seed, step):
        config = make_config(seed=seed)
        state, seen = make_state(config), []
        state.model.head.register_forward_hook(lambda *_: seen.append(torch.rand(1).item()))
        state.step = step
        loop = make_loop(state, config)
        loop.accumulate(state.model, [micro([1]), micro([2])], {"error": 1.0})
        return seen

    first = draws(0, 0)
    assert first == draws(0, 0)
    assert len({*first, *draws(0, 1), *draws(1, 0)}) == 6


def test_parts_of_a_step_are_marked_as_they_begin(make_loop):
    marks = []
    state = make_state(make_config())
    make_loop(state, make_config(), mark=marks.append).step(state.model, step_batch(0, [micro([1]), micro([2])]), 100, audit=False)
    assert marks == ["copy", "forward", "backward", "copy", "forward", "backward", "update"]
