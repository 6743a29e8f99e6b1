"""Monitors: no warning on a healthy run, one line of advice at each threshold."""

import pytest

from plait.families.nanodit import monitors
from plait.families.nanodit.config import Config


def rows(count=30, start=2000, **changes):
    healthy = {"loss/prediction_ms": 1.0, "loss/target_ms": 2.0, "grad_norm": 0.5, "loss/t_low": 1.0, "loss/t_mid": 0.5, "loss/t_high": 0.4}
    return [{"step": start + 10 * i, **healthy, **changes} for i in range(count)]


def warnings_of(recorded):
    fresh = monitors.monitors(Config())
    return [line for row in recorded for monitor in fresh for line in monitor(row)]


def test_a_healthy_run_has_no_warnings():
    benches = [{"step": 2300, "eval/divergence": 1.1, "eval/divergence/dominance": 0.5}]
    assert warnings_of(rows() + benches) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"loss/prediction_ms": 2.0 * 1.51**2}, "the prediction's RMS is 2.135, its target's 1.414: the model overshoots"),
        ({"loss/prediction_ms": 2.0 * 0.09**2}, "the model still says almost nothing"),
        ({"grad_norm": 10.1}, "has stayed above 10"),
        ({"grad_norm": 9e-5}, "training has collapsed or is done"),
    ],
)
def test_a_sustained_fault_warns_once(changes, expected):
    lines = warnings_of(rows(**changes))
    assert len(lines) == 1
    assert expected in lines[0] and lines[0].startswith("step 2090")  # the tenth row


@pytest.mark.parametrize("changes", [{"loss/prediction_ms": 2.0 * 1.49**2}, {"loss/prediction_ms": 2.0 * 0.11**2}, {"grad_norm": 9.9}])
def test_below_the_threshold_there_is_no_warning(changes):
    assert warnings_of(rows(**changes)) == []


def test_a_fault_that_does_not_last_does_not_warn():
    assert warnings_of(rows(9, grad_norm=50.0) + rows(1, start=2090) + rows(9, start=2100, grad_norm=50.0)) == []


def test_a_fault_that_comes_back_warns_again():
    assert len(warnings_of(rows(10, grad_norm=50.0) + rows(1) + rows(10, grad_norm=50.0))) == 2


def test_large_gradients_do_not_warn_in_the_first_thousand_steps():
    assert warnings_of(rows(30, start=300, grad_norm=50.0)) == []


def test_a_range_of_t_whose_loss_climbs_warns():
    climbing = [row | {"loss/t_high": 0.4 * 1.03**i} for i, row in enumerate(rows(60))]
    lines = warnings_of(climbing)
    assert len(lines) == 1
    assert "the loss for t from 0.6 to 1 is" in lines[0] and "times its lowest" in lines[0]


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ({"eval/divergence": 0.09}, "differ by 0.090 of their size (under 0.1): the conditions are not used"),
        ({"eval/divergence/dominance": 0.95}, "the image decides alone (dominance 0.95; .5 is balance): raise sampling.text_scale"),
        ({"eval/divergence/dominance": 0.05}, "the text decides alone (dominance 0.05; .5 is balance): raise sampling.image_scale"),
    ],
)
def test_the_divergence_test_warns_at_once(figures, expected):
    lines = warnings_of([{"step": 5000, **figures}])
    assert len(lines) == 1
    assert expected in lines[0]


def test_rows_without_these_figures_are_passed_over():
    assert warnings_of([{"step": 1, "eval/loss": 2.0}, {"step": 2, "warning": "x"}, {"wait": 1}]) == []
