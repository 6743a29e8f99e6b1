"""The loader: one content and order from every kind of worker, deterministic replacements, errors with names, and nothing left running."""

import multiprocessing
import multiprocessing.forkserver
import os
import re
import signal
import threading
import time
from dataclasses import dataclass

import pytest
import torch

from plait.config.schema import SourceEntry, Template
from plait.data.loading import processes
from plait.data.loading.loader import Loader
from plait.data.loading.pinning import pinned
from plait.data.memory import tensors
from plait.data.order import Order, SampleId
from plait.data.sources.contract import Source
from plait.data.sources.open import open_source
from plait.errors import BadSample, PlaitError
from plait.keys import key
from tests.data.packing import labelled

WORKERS = [(0, "threads"), (1, "threads"), (3, "threads"), (2, "processes")]


@dataclass
class Numbers(Source):
    """A source of numbers."""

    size: int = 50
    name: str = "numbers"
    fingerprint: str = "numbers"

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        return {"id": f"number {i}", "images": [], "messages": [], "fields": {"n": i}}


@dataclass(frozen=True)
class Noisy:
    """Inputs whose examples are random by key; `bad` numbers cannot be used, the `broken` one is a defect."""

    bad: tuple[int, ...] = ()
    broken: int | None = None
    pause_s: float = 0.0
    harm: str = ""

    def encode(self, sample, key):
        n = sample["fields"].get("n", sample["fields"].get("label"))
        time.sleep(self.pause_s)
        if n in self.bad:
            raise BadSample(f"{n} is bad")
        if n == self.broken:
            _HARM[self.harm]()
        return n, torch.rand(3, generator=torch.Generator().manual_seed(key % 2**63))

    def collate(self, examples):
        return {"n": [n for n, _ in examples], "x": tensors.stack([x for _, x in examples])}


def _divide():
    return 1 // 0


def _refuse():
    raise PlaitError("no such token")


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def _shout():
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
        os.kill(os.getpid(), name)


_HARM = {"divide": _divide, "refuse": _refuse, "die": _die, "shout": _shout}


def loader(inputs=None, sources=None, *, batch=6, weights=None, **options):
    sources = sources or [Numbers()]
    order = Order([len(s) for s in sources], weights or [1.0] * len(sources), 0, batch)
    return Loader(sources, order, inputs or Noisy(), **{"seed": 0, "stop_step": 12, "workers": 0} | options)


def content(steps):
    return [(s.step, [(m.ids, m.padding, m.batch["n"], m.batch["x"].tolist(), m.bad) for m in s.micro], s.bad) for s in steps]


def collect(**options):
    with loader(**options) as running:
        return content(running)


@pytest.mark.parametrize("workers", WORKERS[1:])
def test_every_kind_of_worker_gives_the_same_bits_in_the_same_order(workers, tmp_path):
    entry = SourceEntry(source="shards", path=str(labelled(tmp_path / "a.tar", 0, 20)), template=Template(user="?", assistant="{label}"))
    sources = [Numbers(50), open_source(entry, seed=0)]
    options = {"inputs": Noisy(bad=(3, 17, 40)), "micro_batch": 4, "sources": sources, "weights": [2, 1]}
    alone = collect(**options)
    assert [step for step, _, _ in alone] == list(range(12))
    assert collect(**options, workers=workers[0], kind=workers[1]) == alone


def test_prefetch_and_the_first_step_do_not_change_content():
    whole = collect()
    for prefetch in (0, 1, 7):
        assert collect(workers=2, prefetch=prefetch) == whole
    assert collect(workers=2, start_step=5) == whole[5:]
    assert collect(start_step=12) == []


def test_ranks_and_micro_batches_see_the_same_samples_with_the_same_keys():
    def rows(parts):
        return [
            [(n, x) for rank in parts for _, padding, ns, xs, _ in rank[step][1] if not padding for n, x in zip(ns, xs, strict=True)]
            for step in range(12)
        ]

    whole = rows([collect()])
    for world_size, micro in ((1, 1), (2, 3), (4, 2), (3, 1)):
        ranks = [collect(rank=rank, world_size=world_size, micro_batch=micro) for rank in range(world_size)]
        assert len({len(micro) for rank in ranks for _, micro, _ in rank}) == 1
        assert rows(ranks) == whole


def test_a_sample_gets_the_key_of_its_id():
    first = collect()[0][1][0]
    sample = first[0][2]
    expected = torch.rand(3, generator=torch.Generator().manual_seed(key(0, "sample", *sample) % 2**63))
    assert first[3][2] == expected.tolist()


def test_a_sample_costs_few_calls_beside_reading_and_encoding_it(calls):
    builder = loader(workers=0)._builder
    builder.encode(SampleId(0, 0, 0))
    assert calls(lambda: [builder.encode(SampleId(0, i % 5, 0)) for i in range(100)]) < 25 * 100  # 23 each


@pytest.mark.parametrize("workers", WORKERS[::2])
def test_a_bad_sample_becomes_another_of_its_source_and_is_listed(workers):
    steps = collect(inputs=Noisy(bad=tuple(range(0, 50, 2))), workers=workers[0], kind=workers[1])
    assert all(n % 2 for _, micro, _ in steps for part in micro for n in part[2])
    bad = [lost for _, _, lost in steps for lost in lost]
    assert len({b.id for b in bad}) >= 25
    assert bad[0].reason == f"{bad[0].id.index} is bad"
    assert bad[0].name == f"number {bad[0].id.index}"
    used = {i for _, micro, _ in steps for part in micro for i in part[0]}
    assert all(b.replaced_by in used and b.id not in used and b.replaced_by.index % 2 for b in bad)


def test_replacements_follow_the_key():
    order = Order([50], [1.0], 0, 6)
    lost = order.ids(0)[0]
    step = collect(inputs=Noisy(bad=(lost.index,)))[0]
    attempts = [key(0, "replace", 0, lost.index, 0, attempt) % 50 for attempt in range(1, 9)]
    expected = next(n for n in attempts if n != lost.index)
    assert step[2] == [(lost, f"number {lost.index}", f"{lost.index} is bad", SampleId(0, expected, 0), 0)]


def test_a_padding_micro_batch_lists_nothing_as_bad():
    order = Order([50], [1.0], 0, 1)
    lost = order.ids(0)[0].index
    parts = [collect(inputs=Noisy(bad=(lost,)), batch=1, rank=rank, world_size=2, stop_step=1)[0] for rank in range(2)]
    assert [part[1][0][1] for part in parts] == [True, False]
    assert [len(part[2]) for part in parts] == [0, 1]
    assert parts[0][1][0][2] == parts[1][1][0][2]


def test_a_source_of_nothing_but_bad_samples_stops_with_the_first_reason():
    with pytest.raises(PlaitError, match=r"numbers: sample number \d+ and 49 replacements in a row are bad; the first: \d+ is bad"):
        collect(inputs=Noisy(bad=tuple(range(50))), workers=2)


@pytest.mark.parametrize("workers", [(0, "threads"), (2, "threads"), (1, "processes")])
@pytest.mark.parametrize(
    ("harm", "reason"),
    [("divide", r"ZeroDivisionError: integer division or modulo by zero \(test_loader\.py:\d+\)"), ("refuse", "no such token")],
)
def test_whatever_goes_wrong_with_a_sample_costs_that_sample_alone(workers, harm, reason):
    steps = collect(inputs=Noisy(broken=7, harm=harm), workers=workers[0], kind=workers[1])
    lost = [bad for _, _, bad in steps for bad in bad]
    assert {bad.id.index for bad in lost} == {7}
    assert all(re.fullmatch(reason, bad.reason) and bad.name == "number 7" for bad in lost)
    assert len(steps) == 12


def test_a_bad_replacement_is_listed_and_known_as_one():
    steps = collect(inputs=Noisy(bad=tuple(range(0, 50, 2))))
    lost = [bad for _, _, bad in steps for bad in bad]
    assert {bad.attempt for bad in lost} > {0, 1}
    due = {identity for step in range(12) for identity in Order([50], [1.0], 0, 6).ids(step)}
    assert {bad.id for bad in lost if bad.attempt == 0} == {identity for identity in due if identity.index % 2 == 0}


def test_a_killed_worker_is_named_and_nothing_hangs():
    with pytest.raises(
        PlaitError, match=r"data worker \d \(process \d+\) was killed by SIGKILL before it had prepared step \d+; memory may"
    ):
        collect(inputs=Noisy(broken=7, harm="die"), workers=1, kind="processes")
    assert not multiprocessing.active_children()


def test_workers_end_with_their_process_and_may_take_longer_than_a_poll():
    with loader(inputs=Noisy(pause_s=0.05), workers=1, kind="processes", stop_step=1) as running:
        assert len(list(running)) == 1  # 0.3 s, and a poll is 0.2 s
        assert all(process.daemon for process in multiprocessing.active_children())


def test_signals_to_the_whole_process_group_stop_no_worker():
    with loader(workers=2, kind="processes", stop_step=None) as running:
        steps = iter(running)
        next(steps)
        server = multiprocessing.forkserver._forkserver._forkserver_pid
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
            for pid in (server, *(process.pid for process in multiprocessing.active_children())):
                os.kill(pid, name)
        assert [next(steps).step for _ in range(6)] == [1, 2, 3, 4, 5, 6]


def test_inputs_that_cannot_be_sent_are_refused_in_words():
    inputs = Noisy()
    object.__setattr__(inputs, "hook", lambda: None)
    with pytest.raises(PlaitError, match=r"cannot be sent to worker processes .*; use worker_kind: threads"):
        collect(inputs=inputs, workers=1, kind="processes")
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", WORKERS)
def test_close_in_the_middle_leaves_no_thread_no_process_and_no_noise(workers, capfd):
    first = Order([50], [1.0], 0, 6).ids(0)[0].index
    inputs = Noisy(pause_s=0.01, broken=first if workers[1] == "processes" else None, harm="shout")  # a process also ignores signals
    running = loader(inputs, workers=workers[0], kind=workers[1], stop_step=None)
    steps = iter(running)
    assert [next(steps).step for _ in range(2)] == [0, 1]
    running.close()  # of steps without end: waiting for them would never end
    running.close()
    assert "Traceback" not in capfd.readouterr().err
    assert not [t for t in threading.enumerate() if t.name.startswith("plait-data")]
    assert not multiprocessing.active_children()


def test_an_error_in_the_consumer_closes_the_workers():
    def consume():
        for _ in loader(Noisy(pause_s=0.01), workers=2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert not [t for t in threading.enumerate() if t.name.startswith("plait-data")]


def test_waiting_is_measured_and_prefetching_shortens_it():
    def waits(**options):
        with loader(Noisy(pause_s=0.01), stop_step=6, **options) as running:
            return [(step.wait_s, time.sleep(0.06)) for step in running]

    alone = [wait for wait, _ in waits()]
    ahead = [wait for wait, _ in waits(workers=3)]
    assert min(alone) >= 0.06  # six samples of 10 ms
    assert min(ahead[1:]) < min(alone)  # at least one was ready, whatever else the machine does


@pytest.mark.parametrize("workers", [(3, "threads"), (1, "processes")])
def test_an_interruption_ends_the_wait(workers):
    asked = threading.Event()
    timer = threading.Timer(0.3, asked.set)
    timer.start()
    with loader(Noisy(pause_s=1.0), workers=workers[0], kind=workers[1], interrupted=asked.is_set, stop_step=100, batch=64) as running:
        assert list(running) == []
    timer.join()


def test_workers_leave_torchs_threads_as_they_were():
    before = torch.get_num_threads()
    with loader(workers=2) as running:
        next(iter(running))
        seen = []
        other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        other.start()
        other.join()
    assert [torch.get_num_threads(), *seen] == [before, before]


def test_a_loader_can_be_walked_again():
    with loader(workers=2) as running:
        assert content(running) == content(running)


def test_pinning_copies_every_tensor_of_a_structure_and_nothing_else(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda value: value + 100)
    one, words = torch.ones(1), ("a", 2)
    found = pinned({"x": one, "rest": [one, (one, "b")], "words": words, "point": SampleId(0, 1, 2)})
    assert found == {
        "x": torch.tensor([101.0]),
        "rest": [torch.tensor([101.0]), (torch.tensor([101.0]), "b")],
        "words": words,
        "point": (0, 1, 2),
    }
    assert type(found["point"]) is SampleId and type(found["rest"]) is list and type(found["rest"][1]) is tuple
    assert one.item() == 1.0


class Ended:
    """A worker process that has ended with an exit code."""

    pid = 42

    def __init__(self, exitcode):
        self.exitcode = exitcode

    def join(self, timeout_s):
        self.waited_s = timeout_s


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (3, "ended with exit code 3 before it had prepared step 7"),
        (0, "ended with exit code 0 before it had prepared step 7"),
        (-9, "was killed by SIGKILL before it had prepared step 7; memory may have run out: fewer data.workers, or worker_kind: threads"),
        (-7, "was killed by SIGBUS before it had prepared step 7; shared memory (/dev/shm) may be full: give it more room, smaller micro"),
        (-15, "was killed by SIGTERM before it had prepared step 7"),
        (None, "closed its connection before it had prepared step 7"),
    ],
)
def test_a_worker_that_ended_is_told_with_its_code_and_what_may_be_wrong(code, said):
    line = str(processes._death(processes._Worker(3, Ended(code), None, None), 7))
    assert line.startswith(f"data worker 3 (process 42) {said}")
    assert (";" in line) is (code in (-9, -7))
