"""The learning rate by steps and by tokens: closed forms, one unit against the other, and what is refused."""

import pytest
import torch

from plait.config.conflicts import conflicts
from plait.config.schema import Optim, RunConfig, Schedule
from plait.data.sources.open import KINDS
from plait.engine import schedule
from plait.engine.schedule import Progress, factor, lr_factor, progress_at, warmup_of, with_warmup
from plait.errors import PlaitError
from plait.training.changes import sampled_rates

from .toy import make_config, make_state, micro, step_batch


def at(step, end=100):
    return Progress(step, step + 1, end)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "inverse_sqrt"])
def test_every_schedule_warms_up_linearly_to_its_peak(name):
    found = [lr_factor(name, at(step), 10) for step in range(11)]
    assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert found[10] == pytest.approx(1.0)


def test_a_warm_up_begins_where_it_is_told_and_the_curve_ends_at_the_floor():
    optim = Optim(lr=1.0, schedule=Schedule(name="cosine", warmup_steps=10, min_lr=0.1))
    from_floor = [factor(optim, at(step), 10) for step in range(10)]
    assert from_floor == pytest.approx([0.1 + 0.9 * (step + 1) / 10 for step in range(10)])
    from_zero = optim.model_copy(update={"schedule": optim.schedule.model_copy(update={"warmup_from": 0.0})})
    assert [factor(from_zero, at(step), 10) for step in range(10)] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert [factor(each, at(100), 10) for each in (optim, from_zero)] == pytest.approx([0.1, 0.1])


def test_cosine_is_half_way_down_at_half_time_and_at_its_floor_at_the_end():
    assert lr_factor("cosine", at(60), 20, floor=0.1) == pytest.approx(0.55)
    assert lr_factor("cosine", at(100), 20, floor=0.1) == pytest.approx(0.1)


def test_linear_falls_by_equal_amounts_to_its_floor():
    found = [lr_factor("linear", at(step), 0, floor=0.2) for step in range(101)]
    assert found == pytest.approx([1 - 0.8 * step / 100 for step in range(101)])


def test_inverse_sqrt_halves_when_the_step_quadruples():
    assert lr_factor("inverse_sqrt", at(400, 1000), 25) == pytest.approx(0.25)
    assert lr_factor("inverse_sqrt", at(100, 1000), 25) == pytest.approx(0.5)


def test_a_curve_in_steps_ends_where_it_is_told_and_stays_there():
    settings = Schedule(name="linear", decay_steps=50)
    found = [lr_factor("linear", progress_at(settings, step, 100, {}, {}), 0, floor=0.1) for step in (0, 25, 50, 99)]
    assert found == pytest.approx([1.0, 0.55, 0.1, 0.1])


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "inverse_sqrt"])
def test_tokens_are_steps_where_every_step_has_as_many(name):
    steps, tokens = Schedule(name=name, warmup_steps=5), Schedule(name=name, units="tokens", warmup_tokens=35, decay_tokens=280)
    for step in range(40):
        one = progress_at(steps, step, 40, {}, {})
        other = progress_at(tokens, step, 40, {"tokens": 999.0, "stage_tokens": 7.0 * step}, {"tokens": 7.0})
        assert lr_factor(name, one, 5, 0.1) == pytest.approx(lr_factor(name, other, 35, 0.1), rel=1e-12)


def in_tokens(**more):
    """The toy's tokens are its samples: 16 a step."""
    plan = {"name": "linear", "units": "tokens", "warmup_tokens": 32, "decay_tokens": 96}
    return make_config(optim={"lr": 0.01, "schedule": plan}, **more)


@pytest.fixture
def trained(make_loop):
    """trained(state, config, batches): the rows of those steps of 8."""

    def run(state, config, batches):
        loop = make_loop(state, config)
        return [loop.step(state.model, batch, 8, audit=False) for batch in batches]

    return run


def batches(start=0, cut=16):
    whole = range(16)
    return [step_batch(step, [micro(whole[i : i + cut]) for i in range(0, 16, cut)]) for step in range(start, 8)]


def test_the_rate_of_a_step_goes_by_the_tokens_before_and_in_it(trained):
    rows = trained(make_state(in_tokens()), in_tokens(), batches())
    wanted = [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert [row["lr/tower"] for row in rows] == pytest.approx([0.01 * share for share in wanted])
    assert [row["tokens"] for row in rows] == [16.0 * (step + 1) for step in range(8)]


def test_tokens_are_counted_the_same_however_a_batch_is_cut(trained):
    whole, cut = (trained(make_state(in_tokens()), in_tokens(), batches(cut=size)) for size in (16, 4))
    assert [(row["lr/head"], row["tokens"]) for row in whole] == [(row["lr/head"], row["tokens"]) for row in cut]


def test_a_schedule_in_tokens_resumes_to_the_bit(trained):
    config = in_tokens()
    straight = make_state(config)
    rows = trained(straight, config, batches())
    first = make_state(config)
    trained(first, config, batches()[:3])
    second = make_state(config)
    second.pause()
    second.restore(first.metadata(), first.tensors())
    second.begin({"tower": second.model.components()["tower"], "head": second.model.components()["head"]}, config.optim)
    later = trained(second, config, batches(start=3))
    assert later == rows[3:]
    assert all(torch.equal(a, b) for a, b in zip(straight.model.parameters(), second.model.parameters(), strict=True))


def test_a_new_stage_counts_its_own_tokens(trained):
    state = make_state(in_tokens())
    trained(state, in_tokens(), batches())
    state.enter(2, 4, 100)
    assert (state.totals["tokens"], state.totals["stage_tokens"]) == (128.0, 0.0)


def test_a_family_without_tokens_refuses_a_schedule_in_them():
    with pytest.raises(PlaitError, match=r"optim\.schedule\.units is tokens, but family nanodit counts none: use steps"):
        schedule.check(Schedule(units="tokens"), (), "nanodit")


@pytest.mark.parametrize(
    ("optim", "path", "said"),
    [
        ({"schedule": {"units": "tokens"}}, "optim.schedule.units", "is tokens, and a cosine curve needs its end: set decay_tokens"),
        (
            {"schedule": {"units": "tokens", "decay_tokens": 9, "warmup_steps": 5}},
            "optim.schedule.warmup_steps",
            "is set, but optim.schedule.units is tokens: set warmup_tokens, or the units",
        ),
        ({"schedule": {"decay_tokens": 9}}, "optim.schedule.decay_tokens", "optim.schedule.units is steps: set decay_steps, or the units"),
        (
            {"schedule": {"decay_steps": 50, "warmup_steps": 50}},
            "optim.schedule.warmup_steps",
            "is 50, but the curve ends at 50 steps: warm up for fewer, or train longer",
        ),
        ({"components": {"a": {"warmup_steps": 100}}}, "optim.components.a.warmup_steps", "is 100, but the stage has 100 steps"),
        ({"components": {"a": {"warmup_tokens": 1}}}, "optim.components.a.warmup_tokens", "is set, but optim.schedule.units is steps"),
    ],
)
def test_what_cannot_be_together_is_told(optim, path, said):
    config = RunConfig.model_validate({"family": "toy", "train": {"steps": 100}, "data": {"train": [{"source": "scenes"}]}, "optim": optim})
    assert [".".join(place) for place, what in conflicts(config, KINDS) if said in what] == [path]


def test_the_curve_in_tokens_is_drawn_to_its_end():
    optim = Optim.model_validate({"lr": 1.0, "schedule": {"name": "linear", "units": "tokens", "decay_tokens": 1000}})
    values, end, units = sampled_rates(optim, 7, 11)
    assert (end, units) == (1000, "tokens") and values[-1] == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("warmup", "step", "factor"), [(0, 0, 1.0), (0, 1, 1.0), (0, 4, 0.5), (4, 3, 1.0), (4, 4, 1.0), (4, 16, 0.5), (1, 400, 0.3)]
)
def test_inverse_sqrt_is_the_root_of_warm_up_over_steps_and_never_below_its_floor(warmup, step, factor):
    assert lr_factor("inverse_sqrt", at(step, 1000), warmup, 0.3) == pytest.approx(factor)


def test_warm_up_rises_from_the_floor_and_ends_with_the_last_update_before_it():
    assert [lr_factor("constant", at(step), 4, floor=0.2) for step in range(5)] == pytest.approx([0.4, 0.6, 0.8, 1.0, 1.0])
    assert lr_factor("linear", Progress(3.0, 9.0, 100.0), 4) == 1.0  # a step of many tokens goes past the warm-up, not past the peak


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_curve_begins_at_its_peak_when_the_warm_up_ends_and_stays_at_its_floor(name):
    assert [lr_factor(name, at(step, 30), 10, 0.1) for step in (10, 20, 30, 31, 500)] == pytest.approx([1.0, 0.55, 0.1, 0.1, 0.1])
    assert lr_factor(name, at(0, 0), 0) == 1.0  # no steps at all: no division by zero


def test_an_update_is_counted_in_the_unit_of_the_schedule():
    assert progress_at(Schedule(), 3, 50, {"stage_tokens": 70.0}, {"tokens": 9.0}) == Progress(3, 4, 50)
    assert progress_at(Schedule(decay_steps=20), 3, 50, {}, {}) == Progress(3, 4, 20)
    tokens = Schedule(name="constant", units="tokens")
    assert progress_at(tokens, 3, 50, {"stage_tokens": 70.0}, {"tokens": 9.0}) == Progress(70.0, 79.0, float("inf"))
    assert progress_at(tokens, 0, 50, {}, {"tokens": 9.0}) == Progress(0.0, 9.0, float("inf"))


def test_a_warm_up_is_the_components_own_in_the_unit_of_the_schedule():
    steps = Optim.model_validate({"schedule": {"warmup_steps": 8}, "components": {"a": {"warmup_steps": 0}, "b": {"lr": 1.0}}})
    assert [schedule.warmup_of(steps, name) for name in (None, "a", "b", "c")] == [8, 0, 8, 8]
    plan = {"name": "constant", "units": "tokens", "warmup_tokens": 80}
    tokens = Optim.model_validate({"schedule": plan, "components": {"a": {"warmup_tokens": 0}}})
    assert [schedule.warmup_of(tokens, name) for name in (None, "a", "b")] == [80, 0, 80]


def test_the_curve_in_steps_goes_from_the_first_update_to_the_last():
    optim = Optim.model_validate({"lr": 0.5, "schedule": {"name": "linear", "warmup_steps": 2, "min_lr": 0.05}})
    values, end, units = sampled_rates(optim, 11, 6)
    assert (end, units) == (11, "steps")
    wanted = [lr_factor("linear", at(step, 11), 2, 0.1) for step in (0, 2, 4, 6, 8, 10)]
    assert values == pytest.approx(wanted)


@pytest.mark.parametrize(("warmup", "end"), [(50, 200), (0, 4)])
def test_a_curve_in_tokens_without_an_end_is_drawn_over_four_warm_ups(warmup, end):
    plan = {"name": "inverse_sqrt", "units": "tokens", "warmup_tokens": warmup}
    assert sampled_rates(Optim.model_validate({"schedule": plan}), 7, 5)[1] == end


def test_only_a_schedule_in_tokens_needs_a_family_that_counts_them():
    schedule.check(Schedule(), (), "nanodit")
    schedule.check(Schedule(name="constant", units="tokens"), ("tokens",), "molmo")


@pytest.mark.parametrize(
    ("schedule", "component", "steps", "counts"),
    [
        ({"warmup": 0.05}, {}, 1000, (50, 50)),
        ({"warmup": 0.05}, {"warmup": 0.2}, 1000, (50, 200)),
        ({"warmup": 0.05}, {"warmup_steps": 7}, 1000, (50, 7)),
        ({"warmup_steps": 9}, {"warmup": 0.5}, 10, (9, 5)),
        ({"warmup": 0.05}, {}, 10, (0, 0)),
        ({"warmup": 0.05}, {}, 11, (1, 1)),
        ({"warmup": 0.25, "units": "tokens", "decay_tokens": 4000}, {}, 10, (1000, 1000)),
    ],
)
def test_a_share_of_warm_up_is_that_of_the_stage_or_of_the_tokens(schedule, component, steps, counts):
    optim = Optim.model_validate({"schedule": schedule, "components": {"vision": component}})
    counted = with_warmup(optim, steps)
    assert (warmup_of(counted), warmup_of(counted, "vision")) == counts
