"""Copying to page-locked memory beside the consumer: the same steps, errors and ends, and a look ahead that takes nothing."""

import threading
import time

import pytest
import torch

from plait.data.loading import pinning
from tests.data.test_loader import Noisy, collect, content, loader


class Torn(Noisy):
    """Inputs that make no batch of the `broken` number."""

    def encode(self, sample, key):
        return sample["fields"]["n"], torch.zeros(3)

    def collate(self, examples):
        return super().collate(examples) if all(n != self.broken for n, _ in examples) else 1 // 0


@pytest.fixture
def copied(monkeypatch):
    """A machine with a GPU, as far as the loader asks; the threads in which micro-batches were copied, in order."""
    threads = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(pinning, "pinned", lambda batch: (threads.append(threading.current_thread().name), dict(batch))[1])
    return threads


def pin_threads():
    return [thread for thread in threading.enumerate() if thread.name == "plait-pin"]


@pytest.mark.parametrize(("workers", "kind"), [(0, "threads"), (3, "threads"), (2, "processes")])
def test_batches_are_the_same_and_are_copied_in_a_thread_of_its_own(copied, workers, kind):
    usual = collect(stop_step=5)
    found = collect(stop_step=5, workers=workers, kind=kind, pin=True, micro_batch=4)
    assert [step[:1] for step in found] == [step[:1] for step in usual]
    assert content_of(found) == content_of(collect(stop_step=5, micro_batch=4))
    assert copied == ["plait-pin"] * 10
    assert not pin_threads()


def content_of(steps):
    return [micro for _, micros, _ in steps for micro in micros]


def test_without_a_gpu_there_is_no_thread(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with loader(workers=1, pin=True) as running:
        step = next(iter(running))
        assert not pin_threads()
        assert step.following() is None


def test_the_next_step_can_be_looked_at_and_is_not_taken(copied):
    with loader(workers=1, pin=True, stop_step=3) as running:
        seen, ahead = [], []
        for step in running:
            if seen:
                assert step.micro[0] is ahead[-1]
            seen.append(step.step)
            if step.step < 2:
                until(lambda step=step: step.following() is not None)
                assert step.following() is step.following()
            ahead.append(step.following())
    assert seen == [0, 1, 2] and ahead[-1] is None
    with loader(workers=1, pin=True, start_step=1, stop_step=3) as again:
        assert next(iter(again)).micro[0].ids == ahead[0].ids


def until(holds):
    for _ in range(500):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("nothing was copied in 5 s")


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_an_error_is_raised_in_the_consumer_at_its_step_and_not_by_looking_ahead(copied, kind):
    with loader(workers=1, pin=True) as running:
        wanted = content(running)[2][1][0][2][0]
    with loader(Torn(broken=wanted), workers=1, kind=kind, pin=True) as running:
        steps = iter(running)
        taken = [next(steps), next(steps)]
        for _ in range(2):
            assert taken[-1].following() is None
            time.sleep(0.3)  # the step is built by now, and has failed
        with pytest.raises(ZeroDivisionError):
            next(steps)
    assert [step.step for step in taken] == [0, 1]
    assert not pin_threads()


def test_memory_that_cannot_be_locked_is_told_in_the_consumer(copied, monkeypatch):
    def refuse(batch):
        raise RuntimeError("no page-locked memory")

    monkeypatch.setattr(pinning, "pinned", refuse)
    with loader(workers=1, pin=True) as running, pytest.raises(RuntimeError, match="no page-locked memory"):
        next(iter(running))


def test_a_stop_ends_waiting_and_the_thread(copied):
    asked = threading.Event()
    with loader(Noisy(pause_s=0.3), workers=1, pin=True, interrupted=asked.is_set, batch=32) as running:
        timer = threading.Timer(0.2, asked.set)
        timer.start()
        assert list(running) == []
    timer.join()
    assert not pin_threads()
