"""What a stage says of the passes over each source of its mixture: exactly what its order draws, before the first step."""

from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.assembly.passes import samples_drawn
from plait.config.schema import Train
from plait.data.buckets import BucketOrder
from plait.data.order import Order
from plait.training.summary import place_of
from tests import toy_family

NAMES = ("train", "held")
SOURCES = st.lists(st.tuples(st.lists(st.integers(1, 40), min_size=1, max_size=3), st.floats(0.05, 9)), min_size=1, max_size=4)


CHANGES = st.lists(st.tuples(st.integers(0, 70), st.integers(1, 9)), max_size=2)


@settings(max_examples=60, deadline=None)
@given(
    SOURCES, st.integers(1, 9), st.integers(1, 60), st.booleans(), st.lists(st.tuples(st.integers(0, 70), st.integers(1, 9)), max_size=2)
)
def test_the_samples_of_each_source_are_those_that_the_steps_take(sources, batch, steps, buckets, changes):
    groups, weights = zip(*sources, strict=True)
    kind, sizes = (BucketOrder, groups) if buckets else (Order, [sum(sizes) for sizes in groups])
    order = kind(sizes, weights, 3, batch, sorted(changes))
    taken = Counter(identity.source for step in range(steps) for identity in order.ids(step))
    assert samples_drawn(order, steps) == [taken[source] for source in range(len(sources))]


def test_the_place_of_a_step_is_the_passes_once_it_is_done():
    order = Order([30, 10], [1.0, 1.0], 3, 4)
    assert [place_of(order, [SimpleNamespace(groups=())] * 2, step) for step in (0, 9, 19)] == [
        {"epoch": 0.1},
        {"epoch": 1.0},
        {"epoch": 2.0},
    ]


def said(tmp_path, monkeypatch, capsys, *overrides, weights=(3, 1)):
    """The lines of `plait train` on a mixture of 30 and 8 samples that hold passes, or a warning of a source."""
    recipe = toy_family.install(monkeypatch, tmp_path)
    entries = [f"{{source: jsonl, path: {tmp_path}/{name}.jsonl, weight: {weight}}}" for name, weight in zip(NAMES, weights, strict=True)]
    toy_family.train(recipe, tmp_path / "run", f"data.train=[{', '.join(entries)}]", "stages=[]", *overrides)
    printed = capsys.readouterr()
    return [
        line.strip()
        for line in (printed.out + printed.err).splitlines()
        if " passes" in line or "gives no sample" in line or " times: " in line
    ]


def test_a_mixture_says_the_passes_over_each_source(tmp_path, monkeypatch, capsys):
    first, second = said(tmp_path, monkeypatch, capsys, "train.steps=20")
    assert first.split()[1:] == ["2.00", "passes:", "60", "samples", "drawn", "of", "30"]
    assert second.split()[1:] == ["2.50", "passes:", "20", "samples", "drawn", "of", "8"]


def test_a_source_that_gives_no_sample_is_warned_of(tmp_path, monkeypatch, capsys):
    lines = said(tmp_path, monkeypatch, capsys, "train.steps=2", weights=(100, 1))
    assert lines[1].split()[1:] == ["0.00", "passes:", "0", "samples", "drawn", "of", "8"]
    assert lines[2].startswith("warning: ")
    assert lines[2].endswith("gives no sample in the 2 steps of this stage: raise its weight, or train longer, or remove it")
    assert len(lines) == 3


def test_an_epoch_that_leaves_a_source_short_of_a_pass_is_warned_of(tmp_path, monkeypatch, capsys):
    lines = said(tmp_path, monkeypatch, capsys, "train.steps=null", "train.epochs=1", weights=(1, 1))  # 38 samples: 10 steps of 4
    assert [line.split()[1:3] for line in lines[:2]] == [["0.67", "passes:"], ["2.50", "passes:"]]
    assert "train.epochs is 1, but " in lines[2] and " is not gone through once (0.67 passes): an epoch of a mixture is" in lines[2]
    assert len(lines) == 3


def test_an_epoch_that_goes_through_a_small_source_many_times_is_warned_of(tmp_path, monkeypatch, capsys):
    lines = said(tmp_path, monkeypatch, capsys, "train.steps=null", "train.epochs=1", weights=(1, 30))
    assert [line.split()[1:3] for line in lines if not line.startswith("warning")] == [["0.03", "passes:"], ["4.88", "passes:"]]
    assert lines[-1].endswith("train.epochs is 1, but jsonl:held.jsonl is gone through 4.88 times: lower its weight, or add samples")


def test_a_budget_in_steps_or_of_part_of_an_epoch_asks_for_no_whole_pass(tmp_path, monkeypatch, capsys):
    lines = said(tmp_path, monkeypatch, capsys, "train.steps=null", "train.epochs=0.5", weights=(1, 1))
    assert [line.split()[1] for line in lines] == ["0.33", "1.25"]


def test_steps_that_take_more_samples_than_there_are_are_warned_of(tmp_path, monkeypatch, capsys):
    recipe = toy_family.install(monkeypatch, tmp_path)
    few = ["stages=[]", "train.steps=1", "train.global_batch=8"]
    toy_family.train(recipe, tmp_path / "few", "data.train.0.limit=5", *few)
    assert "warning: a step takes 8 samples and there are 5, so each is in it more than once: lower train.global_batch" in said_by(capsys)
    toy_family.train(recipe, tmp_path / "enough", "data.train.0.limit=8", *few)
    assert "more than once" not in said_by(capsys)


def said_by(capsys):
    printed = capsys.readouterr()
    return printed.out + printed.err


def test_one_source_has_no_passes_to_tell(tmp_path, monkeypatch, capsys):
    recipe = toy_family.install(monkeypatch, tmp_path)
    toy_family.train(recipe, tmp_path / "run", "stages=[]")
    assert " passes" not in capsys.readouterr().out


@pytest.mark.parametrize("words", ["Of a mixture: as many samples as its sources hold together", "printed before step 1"])
def test_the_schema_says_what_an_epoch_of_a_mixture_is(words):
    assert words in Train.model_fields["epochs"].description
