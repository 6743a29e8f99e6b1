"""Bounces in closed form, against a simulation that takes one small step at a time."""

import numpy as np
import pytest

from plait.data.synthetic.physics import SceneObject, fold


def simulate(x: float, v: float, frames: int, low: float, high: float) -> float:
    """Independent oracle: one frame at a time, turning back at a wall by the distance overshot."""
    for _ in range(frames):
        x += v
        while not low <= x <= high:
            x, v = (2 * low - x, -v) if x < low else (2 * high - x, -v)
    return x


@pytest.mark.parametrize("seed", range(20))
def test_fold_equals_a_step_by_step_simulation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    low, span = rng.uniform(0, 20), rng.uniform(1, 80)
    start, velocity = low + span * rng.random(), rng.uniform(-3 * span, 3 * span)
    for frames in (0, 1, 2, 7, 100):
        # 1e-8: a hundred float64 additions of numbers up to 1e4
        assert fold(start, velocity, frames, low, low + span) == pytest.approx(simulate(start, velocity, frames, low, low + span), abs=1e-8)


def test_fold_runs_backwards_as_well() -> None:
    assert fold(30.0, 4.0, -10, 5.0, 60.0) == pytest.approx(simulate(30.0, -4.0, 10, 5.0, 60.0))


def test_object_stays_whole_inside_the_box() -> None:
    moving = SceneObject("circle", "red", "small", x=12.0, y=20.0, vx=7.3, vy=-3.1, radius=9.0)
    places = [moving.centre(frame, 64, 48) for frame in range(-200, 200)]
    assert min(x for x, _ in places) >= 9 and max(x for x, _ in places) <= 64 - 9
    assert min(y for _, y in places) >= 9 and max(y for _, y in places) <= 48 - 9
    assert max(x for x, _ in places) > 50, "the object should reach the far wall"
