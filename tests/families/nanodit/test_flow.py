"""Rectified flow against closed forms: the sign of the velocity, the optimum on a Gaussian, the draws."""

import math

import numpy as np
import pytest
import torch

from plait.families.nanodit import flow
from plait.families.nanodit.config import Dropout, Time
from plait.families.nanodit.sampler import integrate
from plait.keys import rng


def test_the_path_begins_at_the_data_and_ends_at_the_noise():
    x0, noise = torch.randn(2, 1, 2, 2, 2, generator=torch.Generator().manual_seed(0)).unbind(0)
    x0, noise = x0.expand(3, 2, 2, 2), noise.expand(3, 2, 2, 2)
    z = flow.interpolate(x0, noise, torch.tensor([0.0, 0.25, 1.0]))
    assert torch.equal(z[0], x0[0])
    assert torch.equal(z[2], noise[2])
    assert torch.allclose(z[1], 0.75 * x0[1] + 0.25 * noise[1])


def test_the_velocity_is_the_slope_of_the_path():
    x0, noise = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    low, high = (flow.interpolate(x0, noise, torch.tensor([t])) for t in (0.4, 0.6))
    assert torch.allclose((high - low) / 0.2, flow.target(x0, noise, torch.tensor([0.5]), "v"))


@pytest.mark.parametrize("t", [0.05, 0.3, 1.0])
def test_a_clean_prediction_gives_the_same_velocity(t):
    x0, noise, at = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2), torch.full((4,), t)
    z = flow.interpolate(x0, noise, at)
    assert torch.allclose(flow.velocity(x0, z, at, "x"), noise - x0, atol=1e-5)
    assert torch.allclose(flow.target(x0, noise, at, "x"), noise - x0, atol=1e-5)


def test_the_velocity_of_a_clean_prediction_is_bounded_at_the_data():
    x0, noise, at = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2), torch.full((4,), 1e-6)
    z = flow.interpolate(x0, noise, at)
    assert torch.allclose(flow.velocity(x0, z, at, "x", flow.T_FLOOR), flow.target(x0, noise, at, "x"), atol=1e-5)
    assert flow.velocity(x0 + 1, z, at, "x", flow.T_FLOOR).abs().max() < 2 / flow.T_FLOOR


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("s", [0.5, 2.0])
def test_the_best_velocity_on_a_gaussian_carries_noise_to_the_data(s, solver):
    """E[v | z] = (t - (1 - t) s^2) / ((1 - t)^2 s^2 + t^2) z moves every z by the factor s: the sign of v, t and the step."""
    z = torch.tensor([[[[1.0, -2.0]]]], dtype=torch.float64)
    grid = [1 - i / 2000 for i in range(2001)]
    end = integrate(lambda z, t: (t - (1 - t) * s**2) / ((1 - t) ** 2 * s**2 + t**2) * z, z, grid, solver)
    assert torch.allclose(end, s * z, rtol=2e-3)  # 2000 Euler steps


def test_heun_halves_its_error_fourfold():
    def error(steps):
        grid = [1 - 0.5 * i / steps for i in range(steps + 1)]
        end = integrate(lambda z, t: t * z, torch.ones(1, 1, 1, 1, dtype=torch.float64), grid, "heun")
        return abs(float(end) - math.exp(-0.375))  # z(t) = exp((t^2 - 1) / 2)

    assert error(10) / error(20) == pytest.approx(4, rel=0.15)


def test_a_shift_keeps_the_ends_and_moves_the_middle_to_noise():
    assert [flow.shifted(t, 3.0) for t in (0.0, 0.5, 1.0)] == [0.0, 0.75, 1.0]
    t = flow.shifted(0.3, 3.0)
    assert t / (1 - t) == pytest.approx(3 * 0.3 / 0.7)  # odds of noise to data, times s


def test_logit_normal_times_have_their_published_moments():
    t = np.array([flow.draw_time(Time(), rng("t", i)) for i in range(20_000)])
    assert t.mean() == pytest.approx(0.5, abs=0.005)  # 3.4 standard errors
    assert t.std() == pytest.approx(0.2083, abs=0.004)
    assert ((t > 0.3) & (t < 0.7)).mean() == pytest.approx(0.603, abs=0.012)


def test_times_follow_loc_scale_sampling_and_shift():
    def draws(**time):
        return np.array([flow.draw_time(Time(**time), rng("t", i)) for i in range(4000)])

    assert np.median(draws(loc=1.0)) == pytest.approx(1 / (1 + math.exp(-1)), abs=0.02)
    assert draws(scale=0.1).std() < 0.03
    uniform = draws(sampling="uniform")
    assert [uniform.mean(), uniform.std()] == pytest.approx([0.5, 12**-0.5], abs=0.015)
    assert draws(sampling="uniform", shift=3.0).mean() > 0.6


def test_conditions_stay_by_one_draw_with_four_outcomes():
    kept = [flow.draw_kept(Dropout(), rng("c", i)) for i in range(20_000)]
    shares = {pair: np.mean([tuple(k) == pair for k in kept]) for pair in ((False, False), (True, False), (False, True), (True, True))}
    assert list(shares.values()) == pytest.approx([0.1, 0.1, 0.1, 0.7], abs=0.01)  # independent masks would give .081 and .729


def test_probabilities_beyond_one_are_refused():
    with pytest.raises(ValueError, match=r"neither \+ text_only \+ image_only is 1.2, more than 1"):
        Dropout(neither=0.5, text_only=0.4, image_only=0.3)
