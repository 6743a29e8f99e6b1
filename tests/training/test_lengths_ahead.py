"""Lengths for packing: those of the steps ahead are measured together and kept, others when asked, drawn pictures without drawing them."""

import pickle

import numpy as np
import pytest

from plait import cli
from plait.assembly.configuration import open_config
from plait.config.schema import SourceEntry
from plait.data.loading.token_budget import TokenBudget
from plait.data.order import Order, SampleId
from plait.data.selection import survey
from plait.data.selection.measures import SIDES
from plait.data.sources.contract import Source
from plait.data.sources.filtered import Filtered
from plait.data.sources.open import open_source
from plait.data.sources.part import OneByOne, Part
from plait.errors import BadSample
from plait.families.lengths import TokenLengths
from plait.training.batching.lengths_ahead import Column, SourceLengths, measure_ahead
from tests.test_cli import CONFIG
from tests.training.test_pack_tokens import rows_of


class Numbers(Source):
    """Samples whose length is their index, and that note who was looked at; number 7 is broken."""

    name, fingerprint = "numbers", "1"

    def __init__(self, count=1000):
        self.count, self.peeked = count, []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        raise AssertionError("is not read")

    def peek(self, index):
        self.peeked.append(index)
        if index == 7:
            raise BadSample("broken")
        return {"id": str(index), "images": [], "messages": [], "fields": {}}


LENGTHS = TokenLengths("f", lambda sample: int(sample["id"]), lambda sample: 2 * int(sample["id"]))


@pytest.fixture
def made(tmp_path):
    def make(count=1000):
        return SourceLengths(Numbers(count), LENGTHS, tmp_path)

    return make


def seen(lengths, indices):
    return [tuple(float(Column(lengths, number)[i]) for number in (0, 1)) for i in indices]


def test_samples_of_the_steps_ahead_are_measured_once_and_kept(made):
    lengths, order = made(), Order([1000], [1.0], 3, 8)
    wanted = sorted(one.index for step in range(2, 12) for one in order.ids(step))
    measure_ahead([lengths], order, range(2, 12))
    assert lengths.source.peeked == wanted
    assert seen(lengths, wanted[:5]) == [(i, 2 * i) for i in wanted[:5]]
    again = made()
    measure_ahead([again], order, range(14))  # a run of more steps: only those that are new
    more = sorted({one.index for step in (0, 1, 12, 13) for one in order.ids(step)})
    assert again.source.peeked == more
    assert seen(again, [*wanted, *more]) == [(i, 2 * i) for i in [*wanted, *more]]
    assert len(again.source.peeked) == len(more)


def test_steps_of_most_samples_have_all_measured(made):
    lengths, order = made(100), Order([100], [1.0], 3, 8)
    measure_ahead([lengths], order, range(1000))
    assert lengths.source.peeked == list(range(100))
    again = made(100)
    measure_ahead([again], order, range(2))
    assert seen(again, [0, 99]) == [(0, 0), (99, 198)] and again.source.peeked == []


def test_each_source_of_a_mixture_is_measured_as_far_as_it_is_used(made):
    small, large = made(10), made(1000)
    measure_ahead([small, large], Order([10, 1000], [1.0, 1.0], 3, 8), range(4))
    assert sorted(small.source.peeked) == list(range(10))
    assert len(large.source.peeked) == 16


def test_other_samples_are_measured_when_they_are_asked_for(made):
    lengths = made()
    assert seen(lengths, [5, 900, 5]) == [(5, 10), (900, 1800), (5, 10)]
    assert lengths.source.peeked == [5, 900]
    assert np.isnan(seen(lengths, [7])).all()


def test_worker_processes_know_what_was_measured_ahead(made):
    lengths, order = made(), Order([1000], [1.0], 3, 8)
    columns = [[Column(lengths, number)] for number in (0, 1)]
    slicing = TokenBudget(*columns, 2000)
    measure_ahead([lengths], order, range(3))
    copy = pickle.loads(pickle.dumps(slicing))
    assert [copy(order.ids(step), 0, 1, None) for step in range(3)] == [slicing(order.ids(step), 0, 1, None) for step in range(3)]
    with pytest.raises(AssertionError, match="sample 999 was not measured ahead"):
        TokenBudget(*([[column[0]] for column in (copy.lengths, copy.pixels)]), 2000).work([SampleId(0, 999, 0)])


@pytest.mark.parametrize("options", [{"frames": 3, "horizon": [1, 2]}, {"size": [[32, 48], [64, 32]], "format": "jpeg"}])
def test_scenes_are_not_drawn_for_the_sizes_of_their_pictures(monkeypatch, tmp_path, options):
    entry = SourceEntry(source="scenes", limit=60, options=options, filter={"min_side": 32, "caption_tokens": [1, 99]})
    source = open_source(entry, seed=0, cache=str(tmp_path))
    part = Filtered(Part(source, 0.2, 1, held_out=False), np.arange(3, 40), {})
    drawn = survey.measure_now(OneByOne(part), range(30), [SIDES])
    monkeypatch.setattr("plait.data.synthetic.scenes.render", None)  # would fail
    assert survey.measure_now(part, range(30), [SIDES])[SIDES.name].tolist() == drawn[SIDES.name].tolist()
    assert len(open_source(entry, seed=1, cache=str(tmp_path))) == 60


def test_a_run_begins_without_measuring_what_it_does_not_train(tmp_path, capsys, monkeypatch):
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.replace("limit: 30", "limit: 200"))
    measured, of = [], survey.measure_now

    def noted(source, samples, measures):
        measured.extend(samples)
        return of(source, samples, measures)

    monkeypatch.setattr(survey, "measure_now", noted)
    packed = ["--data.pad=none", "--data.pack_tokens=300", "--train.steps=3", "--track.every_steps=1", f"--data.cache={tmp_path / 'cache'}"]
    assert cli.main(["train", str(path), f"--run={tmp_path / 'run'}", *packed]) == 0
    config = open_config(path, []).config
    assert 0 < len(measured) <= 3 * config.train.global_batch
    assert len(rows_of(tmp_path / "run")) == 3
