"""Post-hoc averages against sums written out, and the half-life against its definition."""

import math

import numpy as np
import pytest
import torch

from plait.engine import averages
from plait.engine.averages import PowerEma, Profile, SavedAverage
from plait.errors import PlaitError


def brute_profile(g, step):
    """The share of each update's weights in the average after `step` updates, by unrolling the recursion."""
    share = np.zeros(step)
    for t in range(1, step + 1):
        kept = (1 - 1 / t) ** (g + 1)
        share *= kept
        share[t - 1] += 1 - kept
    return share


def kept_as(step, g, **tensors):
    return SavedAverage(Profile(step, g), frozenset(tensors), lambda: tensors)


def walk(steps, seed=0):
    return np.cumsum(np.random.default_rng(seed).standard_normal((steps, 3)), 0)


@pytest.mark.parametrize("length", [0.02, 0.05, 0.1, 0.2, 1 / math.sqrt(12)])
def test_the_exponent_gives_a_profile_of_that_length(length):
    steps = 500_000
    tau = (np.arange(steps) + 0.5) / steps
    g = averages.exponent(length)
    p = (g + 1) * tau**g / steps
    spread = math.sqrt((p * tau**2).sum() - (p * tau).sum() ** 2)
    assert spread == pytest.approx(length, rel=1e-4)  # the midpoint rule's error


@pytest.mark.parametrize("length", [0.0, -0.1, 0.3])
def test_a_length_that_no_profile_has_is_refused(length):
    with pytest.raises(PlaitError, match=r"must be above 0 and at most 0\.289 of the run"):
        averages.exponent(length)


def test_the_average_is_the_weighted_sum_of_all_weights():
    points, ema = walk(300), PowerEma(0.1)
    ema.track({"w": torch.full((3,), 99.0)})  # the weights before any update count for nothing
    for k, point in enumerate(points):
        ema.update({"w": torch.tensor(point, dtype=torch.float32)}, k)
    expected = brute_profile(ema.g, 300) @ points
    assert ema.average["w"].numpy() == pytest.approx(expected, rel=1e-4, abs=1e-4)  # 300 float32 updates


def test_overlap_is_the_integral_of_the_product_of_profiles():
    a, b, n = Profile(400, 6.94), Profile(1000, 16.97), 200_000
    tau = (np.arange(n) + 0.5) / n * 1000

    def p(one):
        return np.where(tau <= one.step, (one.g + 1) * tau**one.g / float(one.step) ** (one.g + 1), 0.0)

    assert averages.overlap(a, b) == pytest.approx((p(a) * p(b)).sum() * 1000 / n, rel=1e-3)  # the jump at t_a, midpoint rule


def test_a_saved_average_is_reconstructed_from_itself():
    saved = [Profile(step, g) for step in (250, 500, 750, 1000) for g in map(averages.exponent, averages.KEPT.values())]
    x = averages.mixture(saved, saved[-1])
    assert x == pytest.approx(np.eye(len(saved))[-1], abs=1e-6)


@pytest.mark.parametrize("length", [0.04, 0.07, 0.12, 0.15])
def test_another_length_is_near_the_average_that_training_would_have_kept(length):
    steps, points = 4000, walk(4000, seed=1)
    saved = []
    for step in range(steps // 16, steps + 1, steps // 16):
        for kept in averages.KEPT.values():
            g = averages.exponent(kept)
            saved.append(kept_as(step, g, w=torch.tensor(brute_profile(g, step) @ points[:step])))
    found = averages.reconstruct(saved, length, steps)["w"].numpy()
    expected = brute_profile(averages.exponent(length), steps) @ points
    other = brute_profile(averages.exponent(0.05), steps) @ points
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(other - expected) + 0.05  # a random walk moves 1 per update
    assert averages.misfit([one.profile for one in saved], Profile(steps, averages.exponent(length))) < 0.02


def test_averages_saved_later_than_the_wanted_step_are_not_used():
    found = averages.reconstruct([kept_as(100, 6.94, w=torch.tensor([1.0])), kept_as(200, 6.94, w=torch.tensor([9.0]))], 0.1, 100)
    assert found["w"].item() == pytest.approx(1.0, rel=1e-2)


def test_a_weight_that_joined_later_is_fitted_from_what_covers_it():
    early, late = kept_as(90, 6.94, a=torch.tensor([300.0])), kept_as(100, 6.94, a=torch.tensor([1.0]), b=torch.tensor([5.0]))
    found = averages.reconstruct([early, late], 0.1, 100)
    assert found["b"].item() == pytest.approx(averages.reconstruct([late], 0.1, 100)["b"].item(), abs=1e-6)
    assert found["a"].item() != pytest.approx(averages.reconstruct([late], 0.1, 100)["a"].item(), abs=1e-3)


def test_nothing_saved_by_the_wanted_step_is_named():
    with pytest.raises(PlaitError, match="no average was saved up to step 50; saved at: 100"):
        averages.reconstruct([kept_as(100, 6.94)], 0.1, 50)


def test_the_half_life_of_the_usual_decay_is_6931_updates():
    assert averages.half_life(0.9999) == pytest.approx(6931.1, abs=0.1)
    assert 0.9999 ** averages.half_life(0.9999) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("rate", "steps", "warned"), [(0.9999, 5000, True), (0.9999, 34_000, True), (0.9999, 35_000, False), (0.99, 345, False)]
)
def test_a_half_life_beyond_a_fifth_of_the_run_is_warned_of(rate, steps, warned):
    said = averages.half_life_warning(rate, steps)
    assert (said is not None) == warned
    if said:
        advised = float(said.rsplit("use ", 1)[1].split(" ", maxsplit=1)[0])
        assert averages.half_life_warning(advised, steps) is None
        assert "half-life of 6,931 updates, more than a fifth" in said


def test_the_exponents_of_the_kept_lengths_are_those_of_the_paper():
    assert [round(averages.exponent(length), 2) for length in (0.05, 0.10)] == [16.97, 6.94]  # Karras et al. 2024, section 3.1
    assert averages.KEPT == {"ema-0.05": 0.05, "ema-0.10": 0.10}
    assert averages.exponent(1 / math.sqrt(12)) == pytest.approx(0.0, abs=1e-6)  # the plain mean


@pytest.mark.parametrize(("g", "update", "kept"), [(1, 1, 0.0), (1, 2, 0.25), (0, 4, 0.75), (2, 10, 0.9**3)])
def test_an_update_keeps_a_power_of_what_was_before_it(g, update, kept):
    assert averages.decay(g, update) == pytest.approx(kept)


def test_the_first_update_replaces_the_average():
    assert PowerEma(0.1).decay_at(0) == 0.0
    assert PowerEma(0.1).decay_at(1) == pytest.approx(0.5 ** (PowerEma(0.1).g + 1))


def test_the_misfit_is_the_distance_of_the_profiles_over_the_norm_of_the_wanted_one():
    saved, wanted = [Profile(100, 6.94), Profile(200, 6.94)], Profile(200, 3.0)
    n = 200_000
    tau = (np.arange(n) + 0.5) / n * 200

    def p(one):
        return np.where(tau <= one.step, (one.g + 1) * tau**one.g / float(one.step) ** (one.g + 1), 0.0)

    basis = np.stack([p(one) for one in saved], 1)
    best, *_ = np.linalg.lstsq(basis, p(wanted), rcond=None)
    expected = np.linalg.norm(basis @ best - p(wanted)) / np.linalg.norm(p(wanted))
    assert averages.misfit(saved, wanted) == pytest.approx(expected, rel=1e-3)  # the midpoint rule at the jump
    assert averages.mixture(saved, wanted) == pytest.approx(best, rel=1e-3)
    assert averages.misfit([wanted], wanted) == pytest.approx(0.0, abs=1e-6)


def test_a_plain_average_that_keeps_nothing_forgets_at_once():
    assert averages.half_life(0.0) == 0.0
    assert averages.half_life(0.5) == pytest.approx(1.0)


def test_the_warning_names_the_decay_the_half_life_and_one_that_fits():
    fitting = math.floor(0.5 ** (5 / 1000) * 1e6) / 1e6
    assert averages.half_life_warning(0.999, 1000) == (
        "optim.ema.decay = 0.999 has a half-life of 693 updates, more than a fifth of the 1,000 steps: evaluations would measure old "
        f"weights; use {fitting:g} or less"
    )


def test_profiles_of_saves_a_hundred_million_steps_apart_are_told_apart():
    saved = [Profile(1, 7.0), Profile(10**8, 7.0)]  # their norms are eight orders of magnitude apart
    assert averages.mixture(saved, saved[1]) == pytest.approx([0.0, 1.0], abs=1e-9)
    assert averages.mixture(saved, saved[0]) == pytest.approx([1.0, 0.0], abs=1e-9)
