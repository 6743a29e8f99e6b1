"""Threads that encode one after another where samples are cheap, and side by side where they compute or wait."""

import itertools
import threading
import time

import numpy as np
import pytest
import torch

from plait.data.loading import turns
from plait.data.loading.loader import Loader
from plait.data.order import Order
from plait.data.sources.contract import Source
from plait.errors import BadSample


class Numbers(Source):
    name = fingerprint = "numbers"

    def __init__(self, *, may_wait=False):
        self.may_wait = may_wait

    def __len__(self):
        return 64

    def __getitem__(self, index):
        return {"id": str(index), "images": [], "messages": [], "fields": {"number": index}}


class Encoder:
    """Counts how many threads encode at once."""

    def __init__(self, work=lambda: None):
        self.work, self.now, self.most, self.lock = work, 0, 0, threading.Lock()

    def encode(self, sample, _):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self.work()
        with self.lock:
            self.now -= 1
        return sample["fields"]["number"]

    def collate(self, examples):
        return {"numbers": torch.tensor(examples)}


def loaded(encoder, *, skip=0, steps=24, **options):
    source = Numbers(**options)
    with Loader([source], Order([64], [1.0], 0, 16), encoder, seed=0, workers=4, kind="threads", stop_step=skip + steps) as loader:
        batches = []
        for number, step in enumerate(loader):
            if number == skip:
                encoder.most = 0
            batches.append(step.micro[0].batch["numbers"])
    return torch.stack(batches)


def test_cheap_samples_are_encoded_by_one_thread_at_a_time_and_come_in_the_same_order():
    much = np.random.default_rng(0).random(50_000)
    cheap, costly = Encoder(), Encoder(lambda: np.sort(much))  # which lets go of Python's lock
    assert torch.equal(loaded(cheap, skip=12), loaded(costly, skip=12))
    assert cheap.most == 1
    assert costly.most > 1


class Events(Numbers):
    """Notes what is read, as negative numbers, and what is encoded. Sample 5 cannot be read, nor 7 encoded."""

    def __init__(self):
        super().__init__()
        self.noted = []

    def __getitem__(self, index):
        self.noted.append(-index)
        return super().__getitem__(index) if index != 5 else {}["missing"]

    def encode(self, sample, sample_key):
        number = sample["fields"]["number"]
        self.noted.append(number)
        if number == 7:
            raise BadSample("seven")
        return number, sample_key

    def collate(self, examples):
        return {"examples": examples}


def test_cheap_samples_are_read_before_the_first_is_encoded_with_the_same_result_and_bad_ones_told_once():
    def content(workers):
        both = Events()
        with Loader([both], Order([64], [1.0], 0, 16), both, seed=0, workers=workers, stop_step=40) as loader:
            return [(step.micro[0].ids, step.micro[0].batch, step.bad) for step in loader], both.noted

    (alone, singly), (threaded, noted) = content(0), content(2)
    assert threaded == alone
    assert {bad.reason.partition(" (")[0] for _, _, rows in alone for bad in rows} == {"KeyError: 'missing'", "seven"}
    read = [number < 0 for number in noted[-400:]]
    assert sum(a != b for a, b in itertools.pairwise(read)) < 150  # between reading and encoding, and for bad ones
    assert sum(a != b for a, b in itertools.pairwise(number < 0 for number in singly[-400:])) > 350


def test_samples_that_may_wait_for_a_network_never_wait_for_each_other():
    waiting = Encoder(lambda: time.sleep(0.001))
    loaded(waiting, skip=4, may_wait=True)
    assert waiting.most > 1


def test_a_turn_is_given_up_where_a_disk_is_waited_for_and_tried_again_later(monkeypatch):
    reads = 0
    monkeypatch.setattr(turns, "_disk_reads", lambda: reads)
    threads = turns.Turns(allowed=True)
    with threads.part(100):
        pass
    assert threads.taken
    with threads.part(100):
        reads += 1
    assert not threads.taken
    for _ in range(64):
        assert not threads.taken
        with threads.part(100):
            pass
    assert threads.taken


def test_an_error_in_a_turn_lets_the_next_thread_in():
    threads = turns.Turns(allowed=True)
    with threads.part(100):
        pass
    with pytest.raises(ZeroDivisionError), threads.part(100):
        raise ZeroDivisionError
    with threads.part(100):
        assert threads._lock.locked()
    assert not threads._lock.locked()
