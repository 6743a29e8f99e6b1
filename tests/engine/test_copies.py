"""Copies of micro-batches to a GPU: which stream does what, in which order; run on a CPU with streams that note what they are asked."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from plait.engine.parallel import copies
from plait.engine.parallel.copies import Copies

from .toy import make_config, make_state, micro, step_batch

CPU = torch.device("cpu")


@pytest.fixture
def log(monkeypatch):
    """What happened on streams, in order; `full` makes the next copy on the copies' stream run out of memory."""
    log = SimpleNamespace(events=[], stream="computing", full=False)

    class Stream:
        def __init__(self, device, name="copies"):
            self.name = name

        def wait_stream(self, other):
            log.events.append((self.name, "waits for", other.name))

    @contextlib.contextmanager
    def entered(stream):
        before, log.stream = log.stream, stream.name
        try:
            yield
        finally:
            log.stream = before

    def to_device(batch, device):
        if log.full and log.stream == "copies":
            raise torch.OutOfMemoryError("no room")
        log.events.append((log.stream, "copies", batch["name"]))
        return {**batch, "x": torch.tensor([batch["name"]]), "words": ["a"]}

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(device, "computing"))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda value, stream: log.events.append((stream.name, "uses", int(value))))
    monkeypatch.setattr(copies, "to_device", to_device)
    return log


def numbered(*names):
    return [SimpleNamespace(batch={"name": name}) for name in names]


WAITS = ("computing", "waits for", "copies")


def test_the_next_micro_batch_is_copied_after_the_present_one_was_handed_over(log):
    ahead, (one, two) = Copies(CPU), numbered(1, 2)
    assert ahead.take(one, two)["name"] == 1
    assert log.events == [("copies", "copies", 1), WAITS, ("computing", "uses", 1), ("copies", "copies", 2)]
    log.events.clear()
    assert ahead.take(two)["name"] == 2
    assert log.events == [WAITS, ("computing", "uses", 2)]


def test_another_micro_batch_than_the_one_ahead_is_copied_when_it_is_taken(log):
    ahead, (one, two) = Copies(CPU), numbered(1, 2)
    ahead.begin(one)
    ahead.begin(None)
    assert ahead.take(two)["name"] == 2
    ahead.begin(one)
    assert ahead.take(two)["name"] == 2
    assert [event for event in log.events if event[1] == "copies"] == [("copies", "copies", name) for name in (1, 2, 1, 2)]


def test_without_room_ahead_a_micro_batch_is_copied_when_it_is_taken(log):
    ahead, (one, two) = Copies(CPU), numbered(1, 2)
    log.full = True
    assert ahead.take(one, two)["name"] == 1
    assert log.events == [("computing", "copies", 1)]
    log.full = False
    assert ahead.take(two)["name"] == 2
    assert log.events[1:] == [("copies", "copies", 2), WAITS, ("computing", "uses", 2)]


class Noted:
    """Stands for Copies; notes what it is asked for."""

    def __init__(self):
        self.calls = []

    def take(self, one, following=None):
        self.calls.append(("take", one, following))
        return one.batch

    def begin(self, one):
        self.calls.append(("begin", one))


def test_a_step_takes_each_micro_batch_with_the_next_and_begins_that_of_the_next_step(make_loop):
    config = make_config()
    micros, following = [micro([0, 1]), micro([2, 3]), micro([4, 5])], micro([6, 7])
    weights = []
    for noted in (None, Noted()):
        state = make_state(config)
        loop = make_loop(state, config)
        assert loop.copies is None
        loop.__dict__["copies"] = noted
        batch = step_batch(0, micros)
        batch.following = lambda: following
        loop.step(state.model, batch, 10, audit=False)
        weights.append([value.detach().clone() for value in state.model.parameters()])
    assert noted.calls == [("take", one, two) for one, two in zip(micros, [*micros[1:], None], strict=True)] + [("begin", following)]
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))
