"""A rank that hangs is named, its stacks are written, and every rank ends: whatever it hangs in."""

import ctypes
import os
import re
import time
from unittest import mock

import pytest

from plait.engine.monitoring import heartbeat, watchdog
from tests import processes, toy_family

LIMIT = ("guard.hang_timeout_s=4", "train.steps=4000", "evaluate=[]", "checkpoint.best=null")


def dawdle(*_):
    time.sleep(60)


def hold_the_lock(*_):
    ctypes.PyDLL(None).sleep(60)  # without letting go of Python's lock


def late_rank(recipe, run, rank, where, how):
    """Train; one rank does `how` at its fourth call of a function of the family."""
    owner, name = where
    usual, calls = getattr(owner, name), []

    def sometimes(*given):
        calls.append(1)
        if len(calls) == 4 and int(os.environ["RANK"]) == rank:
            how()
        return usual(*given)

    with mock.patch.object(owner, name, sometimes):
        toy_family.train(recipe, run, *LIMIT)


SUMS, COLLATE = (toy_family.Loss, "sums"), (toy_family.Inputs, "collate")


@pytest.mark.parametrize(
    ("rank", "where", "how", "said"),
    [
        (1, SUMS, dawdle, "rank 1 is late: in step after step 2"),  # the first call is that of the probe samples
        (0, COLLATE, dawdle, "rank 0 is late: in data after step "),
        (1, SUMS, hold_the_lock, "rank 1 is late: in step after step 2"),
    ],
)
def test_a_late_rank_is_named_with_its_stacks_before_the_collective_gives_up(tmp_path, monkeypatch, capfd, rank, where, how, said):
    recipe, run = toy_family.install(monkeypatch, tmp_path), tmp_path / "run"
    began = time.monotonic()
    assert processes.codes(processes.start(2, late_rank, recipe, run, rank, where, how)) == [1, 1]
    assert time.monotonic() - began < 2 * watchdog.PATIENCE * 2 + 30  # the sleeper would sleep on, and the collective wait
    text = capfd.readouterr().err
    assert re.search(rf"plait: rank [01]: {said}\d*, with nothing done for 4 s \(guard.hang_timeout_s\); what each rank does", text)
    assert how.__name__ in watchdog.stacks_of(run, rank).read_text()
    assert how.__name__ not in watchdog.stacks_of(run, 1 - rank).read_text()


def test_ranks_that_are_late_together_are_all_named(tmp_path):
    beat = {"phase": "step", "step": 7, "part": "backward", "beat": 30}
    line = watchdog.describe_hang([beat, beat | {"beat": 31}, beat, None], 9.0, tmp_path)
    assert line.startswith("rank 3 is late: in its start") or line.startswith("ranks 0, 2, 3 are late: in step (backward) after step 7")
    assert watchdog.describe_hang([beat, beat], 9.0, tmp_path).startswith(
        "every rank is late: in step (backward) after step 7, with nothing"
    )


def test_collectives_wait_longer_than_any_rank_is_given():
    assert watchdog.collectives_s([10.0, 20.0]) > 20.0 * watchdog.PATIENCE
    assert watchdog.collectives_s([10.0, None]) is None


def orphaned(recipe, run):
    """A rank whose parent, torchrun in earnest, ends while it trains."""
    os.environ["TORCHELASTIC_RUN_ID"] = "x"
    if os.fork() == 0:
        processes.rank_of_test(toy_family.train, recipe, run, *LIMIT)
    while not (now := heartbeat.read(run)) or now["step"] < 3:
        time.sleep(0.01)


def test_a_rank_that_torchrun_left_alone_saves_and_stops(tmp_path, monkeypatch, capfd):
    recipe, run = toy_family.install(monkeypatch, tmp_path), tmp_path / "run"
    process = processes.FORK.Process(target=orphaned, args=(recipe, run))  # without faulthandler's timer, which no process inherits
    process.start()
    assert processes.codes([process]) == [0]
    pid = heartbeat.read(run)["pid"]
    deadline = time.monotonic() + processes.LIMIT_S
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert re.search(r"Paused: stopped by SIGTERM after step \d+ of 4000, all saved", capfd.readouterr().err)
