"""What looking at a model costs is bounded: looks that are not paid for are left out, and the rows say what was taken."""

import itertools

import pytest

from plait import files
from plait.assembly.configuration import open_config
from plait.commands.prove import compare
from plait.training.monitor import look_budget, stage_monitor
from plait.training.monitor.learning import LOOKS
from plait.training.monitor.look_budget import LookBudget
from plait.training.monitor.rules import PATIENCE, Rules
from tests import toy_family as toy

PLAIN = ("stages=[]", "trainable=[projector,vision,language]", "checkpoint={every_steps: null, best: null}", "evaluate=[]")


class Clock:
    """A clock that stands still, but for what is added to it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def work(self, seconds):
        self.now += seconds


def look(budget, clock, *seconds):
    budget.begin()
    for part in seconds:
        budget.timed(clock.work, part)
        clock.work(1.0)  # of the step, which is no part of the look
    budget.end()


def test_a_look_waits_until_its_cost_is_half_a_percent_of_the_time_since_the_one_before():
    clock = Clock()
    budget = LookBudget(clock)
    assert budget.allows(900), "the first tells the cost"
    look(budget, clock, 0.25, 0.25)
    assert budget.allows(50) and not budget.allows(51)
    clock.now = 99.9
    assert not budget.allows(51)
    clock.now = 100.1
    assert budget.allows(51) and budget.look_s == 0.5


def test_one_look_that_was_delayed_puts_none_off():
    clock = Clock()
    budget = LookBudget(clock)
    for seconds in (0.5, 0.5, 30.0):
        look(budget, clock, seconds)
    began = clock.now - 31.0
    clock.now = began + 101.0
    assert budget.allows(51)


@pytest.fixture
def rows(monkeypatch, tmp_path):
    """The rows of a run in which a clock goes on by a second each time it is read, and looks may take a tenth."""
    seconds = map(float, itertools.count())
    monkeypatch.setattr(look_budget, "SHARE", 0.1)
    monkeypatch.setattr(stage_monitor, "LookBudget", lambda clock: LookBudget(lambda: next(seconds)))
    recipe = toy.install(monkeypatch, tmp_path)
    return files.read_rows(toy.train(recipe, tmp_path / "run", *PLAIN, "train.steps=140", "track.every_steps=2") / "metrics.jsonl")


def test_every_recorded_step_is_looked_at_first_and_then_those_that_are_paid_for(rows):
    looked = [row["step"] for row in rows if any(name.startswith("update/") for name in row)]
    assert looked[:25] == [*range(2, 51, 2)]
    waits = {after - before for before, after in itertools.pairwise(looked[25:])}
    assert 3 < len(looked[25:]) < 20 and waits <= {max(waits), max(waits) - 2} and min(waits) > 2
    for row in rows:
        assert any(name.startswith(LOOKS) for name in row) == (row["step"] in looked)
        assert row["spent"]["forward"].keys() == {"vision", "projector", "language"}, "where the time went is recorded at every row"


def test_a_row_says_what_watching_took(rows):
    of_look = [row["spent"]["monitor"] for row in rows if "update/vision" in row]
    beside = [row["spent"]["monitor"] for row in rows if "update/vision" not in row]
    assert min(of_look) > max(beside) > 0
    assert rows[30]["spent"]["monitor"] == beside[5], "of the steps since the row before alone"


def test_a_row_without_a_look_neither_confirms_a_fault_nor_ends_it(monkeypatch, tmp_path):
    resolved = open_config(toy.install(monkeypatch, tmp_path), [f"run={tmp_path}/run", *PLAIN])
    rules, told = Rules(resolved, resolved.stages[0], ["language"], [], start=0), []
    for step in range(2 * PATIENCE + 2):
        of_look = {} if step % 2 else {"update/language": 1e-3, "dead/language": 0.9}
        told.append(len(rules({"stage": 1, "step": 10 * step + 10, "loss": 1.0, "lr/language": 1e-3, **of_look})))
    assert told == [0] * 2 * (PATIENCE - 1) + [1, 0, 0, 0], "after so many looks, with as many other rows between them"


def test_runs_that_were_looked_at_at_other_steps_are_alike_and_figures_that_differ_are_not():
    row = {"step": 60, "stage": 1, "loss": 1.0, "ids": "0"}
    of_look = {"update/language": 1e-3, "dead/language": 0.0}

    def first(row, twin):
        return [line.first for line in compare._figures([row], [twin]) if line.first is not None]

    assert first(row, row | of_look) == first(row | of_look, row) == []
    assert first(row | of_look, row | {"update/language": 1e-3}) == ["step 60: dead/language is 0.0 and None"]
    assert first(row | of_look, row | of_look | {"update/language": 2e-3}) == ["step 60: update/language is 0.001 and 0.002"]
