"""When a stage ends by a held-out figure."""

import pytest

from plait.config.schema import Plateau
from plait.training.figures.plateau import flat

PATIENT = Plateau(min_steps=0, patience_steps=30, window_steps=1000, min_gain=0.01)
WINDOWED = Plateau(min_steps=0, patience_steps=1000, window_steps=30, min_gain=0.01)


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ([5.0, 4.0, 4.1, 4.2], False),
        ([5.0, 4.0, 4.1, 4.2, 4.1], True),
        ([5.0, 4.0, 4.1, 4.2, 3.9], False),
        ([5.0, 4.0, 4.0, 4.0, 4.0], True),
        ([], False),
    ],
)
def test_no_new_best_for_patience_steps_ends_the_stage(values, ends):
    assert bool(flat([(10 * i, value) for i, value in enumerate(values)], PATIENT)) is ends


@pytest.mark.parametrize(("last", "ends"), [(3.97, True), (3.95, False), (4.5, True)])
def test_a_gain_below_the_share_over_the_window_ends_the_stage(last, ends):
    history = [(0, 5.0), (10, 4.0), (20, 4.5), (30, 4.5), (40, last)]
    assert bool(flat(history, WINDOWED)) is ends


def test_nothing_ends_before_the_minimum():
    rule = PATIENT.model_copy(update={"min_steps": 60})
    history = [(10 * i, 1.0) for i in range(6)]
    assert flat(history, rule) is None
    assert flat([*history, (60, 1.0)], rule) is not None


def test_a_window_longer_than_the_history_decides_nothing():
    assert flat([(10, 4.0), (20, 4.0), (30, 4.0)], WINDOWED) is None
    assert flat([(10, 4.0), (20, 4.0), (40, 4.0)], WINDOWED) is not None


def test_higher_may_be_better():
    rising = [(10 * i, 0.1 * i) for i in range(8)]
    for rule in (PATIENT, WINDOWED):
        assert flat(rising, rule.model_copy(update={"better": "higher"})) is None
        assert flat([(step, -value) for step, value in rising], rule) is None
    assert flat(rising, PATIENT) is not None


def test_the_reason_names_the_figure_the_step_and_the_rule():
    falling = [(0, 5.0), (10, 4.0), (40, 4.5)]
    assert flat(falling, PATIENT) == "loss has no new best since step 10 of the stage (4), 30 steps ago"
    assert flat([(0, 4.0), (30, 3.99)], WINDOWED) == "loss got better by 0.25% over the last 30 steps, less than 1.00%"


def test_the_defaults_are_the_guides():
    rule = Plateau()
    assert (rule.metric, rule.min_steps, rule.patience_steps, rule.window_steps, rule.min_gain) == ("loss", 5000, 2000, 5000, 0.01)
