"""The processes that send a run's rows to W&B: beside the run, in its session, whatever the network and the system do to them."""

import ast
import io
import math
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from plait import files
from plait.config.schema import Wandb
from plait.engine.checkpoints.rundir import identity
from plait.engine.monitoring.beside import process, tracker_process, trackers
from plait.engine.monitoring.tracking import Tracker

from .. import processes

ROW = {"step": 3, "loss": 1.5, "samples_per_s": 8.0}


def mirror(folder, own="abc123"):
    return trackers.wandb_mirror(folder, Wandb(project="test"), {"seed": 0}, own)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """stand_in(body of init): a module `wandb` for the child, whose session writes what is logged to `logged`."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    def write(body: str) -> Path:
        logged = tmp_path / "logged"
        session = (
            f"    def log(self, values): open({str(logged)!r}, 'a').write(repr(values) + chr(10))\n"
            f"    url = 'https://wandb.test/r'\n"
            f"    settings = type('Settings', (), {{'sync_dir': '/there/offline-run'}})\n"
            f"    def finish(self): open({str(logged)!r}, 'a').write(repr('finished') + chr(10))\n"
            f"    def define_metric(self, *names, **options): open({str(logged)!r}, 'a').write(repr((names, options)) + chr(10))"
        )
        starts = f"def Settings(**asked): return asked\ndef init(**asked):\n    import time\n    {body}\n    return Session()"
        (tmp_path / "wandb.py").write_text(f"class Session:\n{session}\n{starts}\n")
        return logged

    return write


def test_wandb_writes_offline_and_never_sees_a_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setattr(process, "CLOSE_TIMEOUT_S", 120.0)
    tracker = Tracker(tmp_path, [mirror(tmp_path)])
    tracker.row(ROW)
    tracker.close()
    kept = {path: path.read_bytes() for path in (tmp_path / "wandb").rglob("*") if path.is_file()}
    assert any(path.suffix == ".wandb" and b"samples_per_s" in body for path, body in kept.items())
    assert not any(b"0123456789" * 4 in body for body in kept.values())


def test_a_resumed_run_goes_on_in_its_first_wandb_run(tmp_path, stand_in, capfd):
    asked = tmp_path / "asked"
    stand_in(f"open({str(asked)!r}, 'a').write(asked['id'] + ' ' + asked['resume'] + chr(10))")
    for _ in range(2):
        mirror(tmp_path, identity(tmp_path)).close()
    assert asked.read_text().splitlines() == [f"{identity(tmp_path)} allow"] * 2
    assert capfd.readouterr().err == ""  # a run without a row yet is nothing to tell of


def test_wandb_gets_every_row_of_this_start_in_order_and_numbers_alone(tmp_path, stand_in):
    logged = stand_in("assert (asked['id'], asked['settings']) == ('abc123', {'silent': True})")
    Tracker(tmp_path, []).row({**ROW, "step": 2})
    tracker = Tracker(tmp_path, [mirror(tmp_path)])
    for step in (3, 4):
        tracker.row({**ROW, "step": step, "loss": math.inf, "ids": "0a"})
    tracker.close()
    assert logged.read_text().splitlines() == [
        "(('step',), {})",
        "(('*',), {'step_metric': 'step'})",
        *(f"{{'step': {step}, 'loss': inf, 'samples_per_s': 8.0}}" for step in (3, 4)),
        "'finished'",
    ]


def test_a_stop_of_the_whole_group_is_left_to_the_trainer(tmp_path, stand_in, capfd):
    ready = tmp_path / "ready"
    logged = stand_in(f"open({str(ready)!r}, 'w')")
    sender = mirror(tmp_path)
    while not ready.exists():
        time.sleep(0.01)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
        os.kill(sender.side.process.pid, number)
    tracker = Tracker(tmp_path, [sender])
    tracker.row(ROW)
    tracker.close()
    assert logged.read_text().splitlines()[2:] == [repr(ROW), "'finished'"]
    assert capfd.readouterr().err == ""


def test_what_a_killed_wandb_had_started_ends_with_it(tmp_path, stand_in, monkeypatch):
    started = tmp_path / "started"
    starts = f"open({str(started)!r}, 'a').write(str(subprocess.Popen(['sleep', '1000']).pid) + chr(10))"
    stand_in(f"import os, subprocess; {starts}; os.kill(os.getpid(), 9)")
    monkeypatch.setattr(process, "_RESTARTS", 1)
    sender = mirror(tmp_path)
    first = sender.side.process
    first.wait()
    sender.row(ROW)
    assert first.stdin.closed
    sender.side.process.wait()
    sender.close()
    pids = started.read_text().split()
    deadline = time.monotonic() + 30
    while any(map(processes.is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(pids) == 2 and not any(map(processes.is_alive, pids))


def test_the_sender_of_a_killed_trainer_has_a_minute_for_the_last_rows(monkeypatch):
    timers, before = [], os.dup(1)
    monkeypatch.setattr(threading.Timer, "start", lambda timer: timers.append((timer.interval, timer.function, timer.args, timer.daemon)))
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"a": 1}\n{"b": 2}\nmore'))
    monkeypatch.setattr(process, "_IGNORED", ())
    inbox = process.Inbox()
    inbox.ended.wait()
    inbox._out.close()
    os.dup2(before, 1)
    os.close(before)
    assert (inbox.settings, inbox.next(), inbox.next()) == ({"a": 1}, {"b": 2}, None)  # the last line was cut short by the kill
    assert timers == [(60.0, os._exit, (1,), True)]


def test_a_failing_wandb_costs_one_line_and_no_row(tmp_path, stand_in, capfd):
    stand_in("raise OSError('no network')")
    tracker = Tracker(tmp_path, [mirror(tmp_path)])
    tracker.row(ROW)
    tracker.close()
    assert capfd.readouterr().err == "warning: W&B is off for this run: no network; metrics.jsonl has every row\n"
    assert files.read_rows(tmp_path / "metrics.jsonl") == [ROW]


def test_a_failing_wandb_ends_at_once_whatever_its_threads_wait_for(tmp_path, stand_in, capfd):
    stand_in("import threading; threading.Thread(target=time.sleep, args=(1000,)).start(); raise OSError")
    sender = mirror(tmp_path)
    sender.close()
    assert sender.side.process.returncode == 1
    assert capfd.readouterr().err == "warning: W&B is off for this run: OSError; metrics.jsonl has every row\n"


def test_a_wandb_that_hangs_is_ended_with_the_run(tmp_path, stand_in, monkeypatch, capfd):
    stand_in("time.sleep(1000)")
    monkeypatch.setattr(process, "CLOSE_TIMEOUT_S", 1.0)
    sender = mirror(tmp_path)
    sender.close()
    assert sender.side.process.returncode == -signal.SIGKILL
    assert capfd.readouterr().err == "warning: W&B has not taken the last rows within 1 s; metrics.jsonl has every row\n"


def test_a_killed_wandb_is_started_again_and_gets_every_row(tmp_path, stand_in, capfd):
    logged = stand_in("pass")
    sender = mirror(tmp_path)
    tracker = Tracker(tmp_path, [sender])
    tracker.row({**ROW, "step": 3})
    os.kill(sender.side.process.pid, signal.SIGKILL)
    sender.side.process.wait()
    for step in (4, 5):
        tracker.row({**ROW, "step": step})
    tracker.close()
    rows = [line for line in map(ast.literal_eval, logged.read_text().splitlines()) if isinstance(line, dict)]
    assert {row["step"] for row in rows} == {3, 4, 5}
    assert capfd.readouterr().err == (
        "warning: the process that sends metrics to W&B was killed by signal 9: it is started again; metrics.jsonl has every row\n"
    )


def test_a_wandb_that_is_killed_again_and_again_costs_a_line_each_and_ends(tmp_path, stand_in, capfd):
    stand_in("import os; os.kill(os.getpid(), 9)")
    sender = mirror(tmp_path)
    for step in range(4, 10):
        sender.side.process.wait()
        sender.row({**ROW, "step": step})
    sender.close()
    lines = capfd.readouterr().err.splitlines()
    assert [line.partition("signal 9: ")[2] for line in lines] == [
        *["it is started again; metrics.jsonl has every row"] * 2,
        "it is started a last time; metrics.jsonl has every row",
        "W&B may lack rows of metrics.jsonl",
    ]


def test_numbers_for_wandb_leave_out_words_and_the_step():
    row = {"step": 4, "loss": "nan", "a": 1, "ids": "0a", "b": "-inf", "warnings": ["w"], "intervals": {"c": [0, 1]}}
    assert tracker_process.numbers(row) == {"loss": pytest.approx(math.nan, nan_ok=True), "a": 1, "b": -math.inf}


def test_rows_of_a_file_that_grows_come_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = tracker_process.Lines(path, 0)
    assert lines.new() == []  # it is not there yet
    path.write_text('{"step": 1}\n{"st')
    assert lines.new() == [{"step": 1}]
    with path.open("a") as file:
        file.write('ep": 2}\n\n{"step": 3')
    assert (lines.new(), lines.new()) == ([{"step": 2}], [])


def test_a_file_that_does_not_grow_is_looked_at_twice_a_second(tmp_path):
    waits_s, settings = [], {"metrics": str(tmp_path / "metrics.jsonl"), "from": 0}
    ended = SimpleNamespace(is_set=lambda: len(waits_s) == 3, wait=waits_s.append)
    tracker_process.send(SimpleNamespace(settings=settings, ended=ended), None)
    assert waits_s == [0.5] * 3


def test_the_run_says_where_it_is_seen(tmp_path, stand_in, capfd, monkeypatch):
    stand_in("Session.url = None if asked['mode'] == 'offline' else Session.url")
    monkeypatch.setenv("WANDB_MODE", "online")
    mirror(tmp_path).close()
    monkeypatch.setenv("WANDB_MODE", "offline")
    mirror(tmp_path).close()
    assert capfd.readouterr().out == "W&B: https://wandb.test/r\nW&B (offline): wandb sync /there/offline-run\n"


def test_a_trial_of_a_sweep_is_the_run_that_its_agent_waits_for_and_stays_it(tmp_path, stand_in, monkeypatch):
    asked = tmp_path / "asked"
    stand_in(f"open({str(asked)!r}, 'a').write(asked['id'] + chr(10))")
    monkeypatch.setenv("WANDB_RUN_ID", "trial7")
    mirror(tmp_path).close()
    monkeypatch.delenv("WANDB_RUN_ID")
    mirror(tmp_path).close()  # continued by hand
    assert asked.read_text().split() == ["trial7"] * 2


def test_what_a_service_prints_goes_nowhere(tmp_path, stand_in, capfd):
    stand_in("print('x' * 200000, flush=True)")  # more than a pipe holds
    mirror(tmp_path).close()
    assert capfd.readouterr().out.startswith("W&B")
