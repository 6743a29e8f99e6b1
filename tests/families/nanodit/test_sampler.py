"""Sampling: guidance as a table against its formula, one batched pass, intervals, grids, seeds."""

import pytest
import torch

from plait.families.nanodit import sampler
from plait.families.nanodit.config import Sampling
from plait.families.nanodit.network.conditions import Conditions, noise
from plait.families.nanodit.sampler import BOTH, IMAGE, NEITHER, TEXT, Request, combination, draw, times

from .conftest import sample


class Counted(torch.nn.Module):
    """The model, and the size and time of each batch it was given."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, []

    def forward(self, batch):
        self.seen.append((len(batch["z"]), float(batch["t"][0])))
        return self.model(batch)


def requests(inputs, count=2, size=(8, 8)):
    return [Request(inputs.conditions(sample(i, size=size)), (4, *size), i) for i in range(count)]


def velocity_alone(net, inputs, one, z, t, *, text, image):
    batch = inputs.pack([one.conditions.only(text=text, image=image)])
    return net({**batch, "z": z, "t": torch.tensor([t])})


def test_one_step_of_two_scale_guidance_is_its_formula(make):
    _, net, inputs = make()
    (one,) = requests(inputs, 1)
    z = noise(one.shape, one.key)[None]
    u, t, d = (velocity_alone(net, inputs, one, z, 1.0, text=a, image=b) for a, b in ((False, False), (True, False), (False, True)))
    drawn = draw(net, inputs, [one], Sampling(steps=1, text_scale=3.0, image_scale=2.0))
    assert torch.allclose(drawn, z - (u + 3 * (t - u) + 2 * (d - u)), atol=1e-4)


def test_one_step_of_joint_guidance_is_its_formula(make):
    _, net, inputs = make()
    (one,) = requests(inputs, 1)
    z = noise(one.shape, one.key)[None]
    u, d, b = (velocity_alone(net, inputs, one, z, 1.0, text=a, image=b) for a, b in ((False, False), (False, True), (True, True)))
    drawn = draw(net, inputs, [one], Sampling(steps=1, text_scale=3.0, image_scale=2.0, guidance="joint"))
    assert torch.allclose(drawn, z - (u + 2 * (d - u) + 3 * (b - d)), atol=1e-4)


@pytest.mark.parametrize("guidance", ["two_scale", "joint"])
def test_coefficients_sum_to_one(guidance):
    assert sum(combination(Sampling(text_scale=5.5, image_scale=1.5, guidance=guidance)).values()) == pytest.approx(1.0)


def test_scales_of_nought_and_one_are_no_guidance():
    table = combination(Sampling(text_scale=1.0, image_scale=0.0))
    assert table == {NEITHER: 0.0, TEXT: 1.0, IMAGE: 0.0}
    assert combination(Sampling(text_scale=1.0, image_scale=1.0, guidance="joint"))[BOTH] == 1.0


def test_three_parts_are_one_pass(make):
    _, net, inputs = make()
    counted = Counted(net)
    draw(counted, inputs, requests(inputs, 2), Sampling(steps=3))
    assert [rows for rows, _ in counted.seen] == [6, 6, 6]


@pytest.mark.parametrize(("text", "image", "rows"), [(True, False, 2), (False, True, 2), (False, False, 1)])
def test_parts_that_show_the_same_are_computed_once(make, text, image, rows):
    _, net, inputs = make()
    counted, (one,) = Counted(net), requests(inputs, 1)
    draw(counted, inputs, [Request(one.conditions.only(text=text, image=image), one.shape, 1)], Sampling(steps=1))
    assert counted.seen == [(rows, 1.0)]


def test_outside_the_interval_both_conditions_count_once(make):
    _, net, inputs = make()
    counted, (one,) = Counted(net), requests(inputs, 1)
    draw(counted, inputs, [one], Sampling(steps=10, interval=(0.25, 0.75)))
    assert [(rows, round(t, 3)) for rows, t in counted.seen if rows == 3] == [(3, 0.7), (3, 0.6), (3, 0.5), (3, 0.4), (3, 0.3)]
    assert {rows for rows, _ in counted.seen} == {1, 3}


def test_a_picture_depends_on_its_own_request_only(make):
    _, net, inputs = make()
    many = requests(inputs, 3)
    together, alone = draw(net, inputs, many, Sampling(steps=4)), draw(net, inputs, many[1:2], Sampling(steps=4))
    assert torch.allclose(together[1], alone[0], atol=1e-4)
    assert not torch.allclose(together[1], together[0], atol=0.1)


def test_another_seed_is_another_picture(make):
    _, net, inputs = make()
    (one,) = requests(inputs, 1)
    other = Request(one.conditions, one.shape, one.key + 1)
    drawn = draw(net, inputs, [one, other, one], Sampling(steps=2))
    assert torch.allclose(drawn[0], drawn[2], atol=1e-5)
    assert not torch.allclose(drawn[0], drawn[1], atol=0.1)


def test_grids_of_steps_run_from_noise_to_data():
    assert times(Sampling(steps=4)) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert times(Sampling(steps=2, grid="quadratic")) == [1.0, 0.25, 0.0]
    assert times(Sampling(steps=2, shift=3.0)) == [1.0, 0.75, 0.0]


def test_heun_looks_twice_at_every_step_but_the_last(make):
    _, net, inputs = make()
    counted = Counted(net)
    draw(counted, inputs, requests(inputs, 1), Sampling(steps=4, solver="heun"))
    assert [t for _, t in counted.seen] == [1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]


def test_clean_prediction_draws_what_it_predicts(make):
    """A network that always gives the same x: the last step lands on it."""
    _, _, inputs = make(prediction="x")

    class Constant(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.anchor = torch.nn.Parameter(torch.zeros(1))

        def forward(self, batch):
            return torch.full_like(batch["z"], 0.5) + self.anchor

    drawn = draw(Constant(), inputs, [Request(Conditions(), (4, 8, 8), 1)], Sampling(steps=20))
    assert torch.allclose(drawn, torch.full_like(drawn, 0.5), atol=1e-5)


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize(("steps", "grid", "shift"), [(1, "uniform", 1.0), (25, "uniform", 1.0), (100, "quadratic", 0.3)])
def test_a_perfect_prediction_of_the_clean_sample_leaves_no_noise(make, monkeypatch, solver, steps, grid, shift):
    """x0 = 1 from z1 = 2 ends at 1, however close to t = 0 the last steps are."""
    _, _, inputs = make(prediction="x")
    monkeypatch.setattr(sampler, "noise", lambda shape, key: torch.full(shape, 2.0))

    class Perfect(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, batch):
            return torch.ones_like(batch["z"])

    drawn = draw(Perfect(), inputs, requests(inputs), Sampling(steps=steps, solver=solver, grid=grid, shift=shift))
    assert torch.allclose(drawn, torch.ones_like(drawn), atol=1e-5)
