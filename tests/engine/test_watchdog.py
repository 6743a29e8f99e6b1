"""A rank that hangs is named, its stacks are written, and every rank ends: whatever it hangs in."""

import faulthandler
import itertools
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

from plait.engine.monitoring import beats, heartbeat, watchdog, watchdog_process
from plait.errors import Stopped
from tests import processes, toy_family

from .toy import ALONE

LIMIT = ("guard.hang_timeout_s=4", "train.steps=4000", "evaluate=[]", "checkpoint.best=null")


def dawdle(*_):
    time.sleep(60)


def hold_the_lock(*_):
    all(itertools.repeat(True))  # without letting go of Python's lock


def late_rank(recipe, run, rank, where, how):
    """Train; one rank does `how` at its first call of a function of the family after forty steps, when the watchdog has looked."""
    owner, name = where
    usual = getattr(owner, name)

    def sometimes(*given):
        beat = beats.read(run, rank)
        if int(os.environ["RANK"]) == rank and beat["step"] >= 40 and beat["phase"] in ("data", "step"):
            how()
        return usual(*given)

    with mock.patch.object(owner, name, sometimes):
        toy_family.train(recipe, run, *LIMIT)


SUMS, COLLATE = (toy_family.Loss, "sums"), (toy_family.Inputs, "collate")


LATE = r"rank [01]: rank {} is late: in {} after step \d+, with nothing done for 4 s \(guard\.hang_timeout_s\); what each rank does is in"
HELD = r"rank 1 is late: it holds Python's lock, with nothing done for 4 s \(guard\.hang_timeout_s\); what it does is in"
"""What the process beside a rank says, alone where it ends its rank before another one is late too: that one's collective fails."""


@pytest.mark.parametrize(
    ("rank", "where", "how", "said", "codes"),
    [
        (1, SUMS, dawdle, LATE.format(1, r"step \(forward\)"), [1, 1]),
        (0, COLLATE, dawdle, LATE.format(0, "data"), [1, 1]),
        (1, SUMS, hold_the_lock, HELD, [1, -signal.SIGKILL]),
    ],
)
def test_a_late_rank_is_named_with_its_stacks_before_the_collective_gives_up(tmp_path, monkeypatch, capfd, rank, where, how, said, codes):
    recipe, run = toy_family.install(monkeypatch, tmp_path), tmp_path / "run"
    began = time.monotonic()
    ended = processes.codes(processes.start(2, late_rank, recipe, run, rank, where, how))
    assert ended == codes
    assert time.monotonic() - began < 2 * watchdog.PATIENCE * 2 + 30  # the sleeper would sleep on, and the collective wait
    text = capfd.readouterr().err
    assert re.search(f"plait: {said}", text)
    assert not re.search(rf"rank {1 - rank} is late", text)
    assert how.__name__ in watchdog.stacks_of(run, rank).read_text()
    assert how.__name__ not in watchdog.stacks_of(run, 1 - rank).read_text()
    assert bool(re.search(HELD, text)) is (how is hold_the_lock)


def slow_to_end(recipe, run, rank, where, how):
    """`late_rank` on a machine so busy that each of the watchdog's pauses takes five times as long."""
    with mock.patch.object(watchdog, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda pause_s: time.sleep(5 * pause_s))):
        late_rank(recipe, run, rank, where, how)


def test_a_rank_that_waits_for_the_others_stacks_is_not_taken_for_one_that_holds_the_lock(tmp_path, monkeypatch, capfd):
    recipe, run = toy_family.install(monkeypatch, tmp_path), tmp_path / "run"
    assert processes.codes(processes.start(1, slow_to_end, recipe, run, 0, SUMS, dawdle)) == [Stopped.exit_code]
    text = capfd.readouterr().err
    assert text.count("rank 0 is late: in step") == 1 and "holds Python's lock" not in text


def test_ranks_that_are_late_together_are_all_named(tmp_path):
    beat = {"phase": "step", "step": 7, "part": "backward", "beat": 30}
    line = watchdog.describe_hang([beat, beat | {"beat": 31}, beat, None], 9.0, tmp_path)
    assert line.startswith("rank 3 is late: in its start") or line.startswith("ranks 0, 2, 3 are late: in step (backward) after step 7")
    assert watchdog.describe_hang([beat, beat], 9.0, tmp_path).startswith(
        "every rank is late: in step (backward) after step 7, with nothing"
    )


def test_a_rank_that_a_signal_has_stopped_is_the_one_that_is_named(tmp_path):
    beat = {"phase": "step", "step": 7, "part": "backward", "beat": 30}
    line = watchdog.describe_hang([beat, beat], 9.0, tmp_path, [1])
    assert line.startswith("rank 1 was stopped by a signal (SIGSTOP): in step (backward) after step 7, with nothing done for 9 s")


def test_collectives_wait_longer_than_any_rank_is_given():
    assert watchdog.collectives_s([10.0, 20.0]) > 20.0 * watchdog.PATIENCE
    assert watchdog.collectives_s([10.0, None]) is None


def orphaned(recipe, run):
    """A rank whose parent, torchrun in earnest, ends while it trains."""
    os.environ["TORCHELASTIC_RUN_ID"] = "x"
    if os.fork() == 0:
        processes.rank_of_test(toy_family.train, recipe, run, *LIMIT)
    while not (now := beats.read(run)) or now["step"] < 3:
        time.sleep(0.01)


def test_a_rank_that_torchrun_left_alone_saves_and_stops(tmp_path, monkeypatch, capfd):
    recipe, run = toy_family.install(monkeypatch, tmp_path), tmp_path / "run"
    process = processes.FORK.Process(target=orphaned, args=(recipe, run))  # without faulthandler's timer, which no process inherits
    process.start()
    assert processes.codes([process]) == [0]
    pid = beats.read(run)["pid"]
    deadline = time.monotonic() + processes.LIMIT_S
    while processes.is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert re.search(r"Paused: stopped by SIGTERM after step \d+ of 4000, all saved", capfd.readouterr().err)


def test_a_rank_without_a_beat_and_ranks_beyond_eight_are_told(tmp_path):
    beat = {"phase": "data", "step": 5, "part": "", "beat": 3}
    told = watchdog.describe_hang([None, beat, beat | {"beat": 4}], 9.0, tmp_path)
    assert told.startswith("ranks 0, 1 are late: in its start, with nothing done for 9 s")
    assert watchdog.describe_hang([None], 9.0, tmp_path).startswith("rank 0 is late: in its start")
    line = watchdog.describe_hang([beat] * 10 + [beat | {"beat": 4}], 2.5, tmp_path)
    assert line.startswith("ranks 0, 1, 2, 3, 4, 5, 6, 7 and 2 more are late: in data after step 5, with nothing done for 2.5 s")
    assert line.endswith(f"what each rank does is in {tmp_path / 'heartbeat'}/rank-*.stacks; the same command continues")
    told = watchdog.describe_hang([beat] * 8 + [beat | {"beat": 4}], 1.0, tmp_path)
    assert told.startswith("ranks 0, 1, 2, 3, 4, 5, 6, 7 are late: in data")
    assert watchdog.describe_hang([beat], 1.0, tmp_path).startswith("rank 0 is late: in data after step 5")


@pytest.mark.parametrize(("timeout_s", "poll_s"), [(None, 5.0), (40.0, 2.0), (100.0, 5.0), (1000.0, 5.0)])
def test_it_looks_twenty_times_per_time_allowed_and_every_five_seconds_at_least(tmp_path, timeout_s, poll_s):
    heart = heartbeat.Heartbeat(tmp_path, 0)
    assert watchdog.Watchdog(heart, ALONE, timeout_s).poll_s == poll_s
    heart.close()


@pytest.mark.parametrize(("phase", "allowed_s"), [("start", 120.0), ("stage", 120.0), ("step", 40.0), ("data", 40.0), ("save", 40.0)])
def test_setting_up_may_take_three_times_as_long(tmp_path, monkeypatch, phase, allowed_s):
    timers, heart = [], heartbeat.Heartbeat(tmp_path, 0)
    heart.phase(phase, 1)
    monkeypatch.setattr(watchdog.faulthandler, "dump_traceback_later", lambda limit_s, **more: timers.append((limit_s, more["exit"])))
    with watchdog.Watchdog(heart, ALONE, 40.0) as dog:
        pass
    assert timers == [(allowed_s + 2.0, True)]  # one look later than its own thread
    assert dog.process is None  # which a run that ends before the first look does not start
    heart.close()


def test_without_a_limit_nothing_ends_the_rank_and_collectives_wait_as_torch_lets_them(tmp_path, monkeypatch):
    heart = heartbeat.Heartbeat(tmp_path, 0)
    monkeypatch.setattr(watchdog.faulthandler, "dump_traceback_later", lambda *_, **__: pytest.fail("armed"))
    monkeypatch.setattr(watchdog.subprocess, "Popen", lambda *_, **__: pytest.fail("started"))
    monkeypatch.setattr(watchdog, "_POLL_MAX_S", 0.05)
    with watchdog.Watchdog(heart, ALONE, None):
        time.sleep(0.3)
    heart.close()
    assert watchdog.collectives_s([10.0, None]) is None
    assert watchdog.collectives_s([10.0, 20.0]) == 120.0


@pytest.mark.parametrize(
    ("looks_s", "beats_s", "ended"),
    [
        ([2.0] * 19, [], []),  # 38 s
        ([2.0] * 21, [], [40.0]),
        ([2.0] * 21, [4.0], []),  # a beat in between
        ([2.0] * 23, [4.0], [40.0]),
        ([2.0, 9000.0, 2.0], [], []),  # stopped for hours: 4 s of it count
        ([4.0] * 9 + [9000.0], [], []),
        ([4.0] * 10 + [9000.0], [], [40.0]),
    ],
)
def test_a_rank_is_ended_once_it_was_silent_for_longer_than_allowed_but_for_the_time_it_was_stopped(
    tmp_path, monkeypatch, looks_s, beats_s, ended
):
    heart, calls, now = heartbeat.Heartbeat(tmp_path, 0), [], [1000.0]
    heart.phase("step", 1)
    heart.last_s = 1000.0
    dog = watchdog.Watchdog(heart, ALONE, 40.0)
    looks = iter(looks_s)

    def wait(limit_s):
        assert limit_s == 2.0
        now[0] += (seconds := next(looks, 0.0))
        if now[0] - 1000.0 in beats_s:
            heart.last_s = now[0]
        return not seconds or bool(calls)

    monkeypatch.setattr(dog, "_left", SimpleNamespace(wait=wait))
    monkeypatch.setattr(dog, "_end", calls.append)
    monkeypatch.setattr(dog, "_tell", lambda allowed_s: None)
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    dog._watch()
    assert calls == ended
    heart.close()


def beating(run, limit_s, seconds):
    """A rank that has heartbeats all the time."""
    heart = heartbeat.Heartbeat(run, 0)
    with watchdog.Watchdog(heart, ALONE, limit_s):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            heart.phase("step", 1)
            time.sleep(0.01)
    os._exit(0)


@pytest.mark.parametrize("all_processes", [False, True])
def test_a_rank_that_was_stopped_for_longer_than_its_limit_goes_on(tmp_path, all_processes):
    process = processes.FORK.Process(target=beating, args=(tmp_path, 1.0, 6.0))
    process.start()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not (beside := [child for task in children.parent.parent.iterdir() for child in (task / "children").read_text().split()]):
        time.sleep(0.01)
    time.sleep(0.5)
    group = [process.pid, *map(int, beside if all_processes else [])]
    for pid in group:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(3.0)
    for pid in group:
        os.kill(pid, signal.SIGCONT)
    assert processes.codes([process]) == [0]
    assert not [pid for pid in beside if processes.is_alive(pid)]


def test_the_process_beside_a_rank_ends_with_it(tmp_path):
    process = processes.FORK.Process(target=beating, args=(tmp_path, 1.0, 60.0))
    process.start()
    tasks = Path(f"/proc/{process.pid}/task")
    while not (beside := [child for task in tasks.iterdir() for child in (task / "children").read_text().split()]):
        time.sleep(0.01)
    process.kill()
    process.join()
    deadline = time.monotonic() + processes.LIMIT_S
    while any(map(processes.is_alive, beside)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(processes.is_alive, beside))


def test_a_rank_whose_torchrun_is_gone_asks_itself_to_stop_once(tmp_path, monkeypatch):
    heart, killed, looks = heartbeat.Heartbeat(tmp_path, 0), [], iter([False, False, True])
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    dog = watchdog.Watchdog(heart, ALONE, None)
    monkeypatch.setattr(watchdog.os, "getppid", lambda: dog.parent + 1 if dog.parent else 0)
    monkeypatch.setattr(watchdog.os, "kill", lambda *given: killed.append(given))
    monkeypatch.setattr(dog, "_left", SimpleNamespace(wait=lambda limit_s: next(looks)))
    dog._watch()
    assert killed == [(os.getpid(), signal.SIGTERM)]
    heart.close()


def outlives(run, allowed):
    """Leave a watchdog, or set it no limit, and live on for longer than its first limit."""
    heart = heartbeat.Heartbeat(run, 0)
    heart.phase("step", 1)
    with watchdog.Watchdog(heart, ALONE, 0.4) as dog:
        dog.allow(allowed)
        time.sleep(1.0 if allowed is None else 0.0)
    time.sleep(0.0 if allowed is None else 1.0)
    os._exit(0)


@pytest.mark.parametrize("allowed", [None, 0.4])
def test_a_watchdog_that_was_left_or_has_no_limit_any_more_ends_nothing(tmp_path, allowed):
    process = processes.FORK.Process(target=outlives, args=(tmp_path, allowed))
    process.start()
    assert processes.codes([process]) == [0]


@pytest.mark.parametrize(
    ("settings", "torchrun", "watched"),
    [
        ((), False, True),
        (("guard.hang_timeout_s=null",), False, False),
        (("guard.hang_timeout_s=null", "stages=[{name: only, guard: {hang_timeout_s: 60}}]"), False, True),
        (("guard.hang_timeout_s=null",), True, True),
    ],
)
def test_a_run_is_watched_where_a_stage_limits_a_hang_or_torchrun_may_die(tmp_path, monkeypatch, settings, torchrun, watched):
    if torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    recipe, run = toy_family.install(monkeypatch, tmp_path), tmp_path / "run"
    toy_family.train(recipe, run, "stages=[]", "train.steps=1", "evaluate=[]", "checkpoint.best=null", *settings)
    assert watchdog.stacks_of(run, 0).exists() is watched


def test_a_watchdog_that_was_left_leaves_no_thread_process_handler_or_open_file(tmp_path, monkeypatch):
    heart = heartbeat.Heartbeat(tmp_path, 0)
    monkeypatch.setattr(watchdog, "_POLL_MAX_S", 0.02)
    with watchdog.Watchdog(heart, ALONE, 60.0) as dog:
        while dog.process is None:
            time.sleep(0.01)
    heart.close()
    assert "plait-watchdog" not in [thread.name for thread in threading.enumerate()]
    assert dog.process.returncode == 0  # it was waited for
    assert dog.stacks.closed
    assert faulthandler.unregister(watchdog._STACKS_SIGNAL) is False


class Ended(Exception):
    pass


@pytest.mark.parametrize(("allowed_s", "waits_s"), [(4.0, 4.0), (40.0, 10.0)])
def test_a_rank_that_hangs_writes_its_stacks_names_who_is_late_and_waits_for_the_others_before_it_ends(
    tmp_path, monkeypatch, caplog, allowed_s, waits_s
):
    def end(code):
        raise Ended(code)

    def sleep(pause_s):
        now[0] += pause_s

    heart, now, told = heartbeat.Heartbeat(tmp_path, 0), [100.0], []
    dog = watchdog.Watchdog(heart, ALONE, allowed_s)
    monkeypatch.setattr(dog, "_tell", lambda limit_s: told.append((now[0], limit_s)))
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    monkeypatch.setattr(watchdog.os, "_exit", end)
    with watchdog.stacks_of(tmp_path, 0).open("w") as dog.stacks, pytest.raises(Ended) as ended:
        dog._end(allowed_s)
    heart.close()
    assert ended.value.args == (Stopped.exit_code,) == (1,)
    assert now[0] - 100.0 == pytest.approx(waits_s, abs=dog.poll_s)
    assert (
        told == [(pytest.approx(100.0 + look * dog.poll_s), allowed_s) for look in range(len(told))] and len(told) >= waits_s / dog.poll_s
    )
    assert "test_a_rank_that_hangs_writes_its_stacks" in watchdog.stacks_of(tmp_path, 0).read_text()
    (line,) = caplog.messages
    assert line.startswith(f"plait: rank 0: rank 0 is late: in start after step 0, with nothing done for {allowed_s:g} s")


@pytest.mark.parametrize(
    ("looks", "stopped", "answer", "limits_s"),
    [
        ([(5.0, None)] * 3 + [(1.0, b"")], False, None, [5.0] * 4),  # before the first line nothing is known to be too long
        ([(1.0, b"10 2\n"), *[(2.0, None)] * 6, (0.0, b"")], False, None, [5.0, *[2.0] * 7]),
        ([(1.0, b"10 2\n"), *[(2.0, None)] * 7], False, 10.0, [5.0, *[2.0] * 7]),  # longer than allowed and one look more
        ([(1.0, b"10 2\n"), *[(2.0, None)] * 6, (1.0, b"10 2\n"), *[(2.0, None)] * 7], False, 10.0, [5.0, *[2.0] * 14]),
        ([(1.0, b"10 2\n30 4\n9"), *[(4.0, None)] * 9], False, 30.0, [5.0, *[4.0] * 9]),  # the last whole line holds
        ([(1.0, b"10 2\n"), *[(2.0, None)] * 20, (0.0, b"")], True, None, [5.0, *[2.0] * 21]),  # a stopped rank is not late
        ([(1.0, b"10 2\n"), (9000.0, None), *[(2.0, None)] * 5], False, 10.0, [5.0, *[2.0] * 6]),  # of a stop of itself 4 s count
    ],
)
def test_the_process_beside_a_rank_finds_it_late_once_it_was_silent_for_longer_than_its_last_line_allows(
    monkeypatch, looks, stopped, answer, limits_s
):
    now, waiting, limits = [100.0], iter(looks), []

    def select(reading, writing, failing, limit_s):
        assert (reading, writing, failing) == ([0], [], [])
        limits.append(limit_s)
        seconds, select.body = next(waiting)
        now[0] += seconds
        return ([] if select.body is None else [0]), [], []

    monkeypatch.setattr(watchdog_process, "select", SimpleNamespace(select=select))
    monkeypatch.setattr(watchdog_process, "os", SimpleNamespace(read=lambda file, most: select.body[:most]))
    monkeypatch.setattr(watchdog_process, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(watchdog_process, "is_stopped", lambda process: stopped and process == 7)
    assert watchdog_process.watch(7) == answer
    assert limits == limits_s


def test_a_process_is_stopped_between_the_signals_that_stop_it_and_let_it_go_on():
    process = processes.FORK.Process(target=time.sleep, args=(60,))
    process.start()
    states = [watchdog_process.is_stopped(process.pid)]
    for number, state in ((signal.SIGSTOP, True), (signal.SIGCONT, False)):
        os.kill(process.pid, number)
        deadline = time.monotonic() + processes.LIMIT_S
        while watchdog_process.is_stopped(process.pid) is not state and time.monotonic() < deadline:
            time.sleep(0.01)
        states.append(watchdog_process.is_stopped(process.pid))
    process.kill()
    process.join()
    assert states == [False, True, False]
    assert watchdog_process.is_stopped(process.pid) is False  # it is gone


@pytest.mark.parametrize("allowed_s", [9.0, None])
def test_the_process_beside_a_late_rank_asks_for_its_stacks_and_kills_it_a_second_later(monkeypatch, capsys, allowed_s):
    calls, ignored = [], {}
    monkeypatch.setattr(sys, "argv", ["watchdog_process.py", "7", "41", "rank 3"])
    monkeypatch.setattr(watchdog_process, "watch", lambda rank: allowed_s if rank == 7 else -1.0)
    monkeypatch.setattr(watchdog_process.signal, "signal", ignored.__setitem__)
    monkeypatch.setattr(watchdog_process.os, "kill", lambda *given: calls.append(given))
    monkeypatch.setattr(watchdog_process.time, "sleep", calls.append)
    watchdog_process.main()
    assert ignored == dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT), signal.SIG_IGN)
    assert calls == ([] if allowed_s is None else [(7, 41), 1.0, (7, signal.SIGKILL)])
    told = "plait: rank 3 is late: it holds Python's lock, with nothing done for 9 s (guard.hang_timeout_s); what it does is in its .stacks"
    assert capsys.readouterr().err.startswith(told) is (allowed_s is not None)
