import ast
import io
import json
import math
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from plait import files
from plait.config.schema import Wandb
from plait.engine.checkpoints.rundir import identity
from plait.engine.monitoring import wandb_mirror
from plait.engine.monitoring.screen import Screen
from plait.engine.monitoring.tracking import Tracker, open_tracker
from plait.engine.monitoring.wandb_mirror import WandB
from plait.engine.state import State

from .. import processes
from .toy import Net, make_config

ROW = {"step": 3, "loss": 1.5, "samples_per_s": 8.0}


def test_metrics_hold_every_row_once_after_a_resume(tmp_path):
    tracker = Tracker(tmp_path, [])
    for step in (1, 2, 3):
        tracker.row({**ROW, "step": step, "loss": 1.0 / step})
    config = make_config(track={"tensorboard": False})
    again = open_tracker(tmp_path, config, "id", State(Net(), step=2, evaluated_step=2))
    again.row({**ROW, "step": 3, "loss": 0.5})
    assert [(row["step"], row["loss"]) for row in files.read_rows(tmp_path / "metrics.jsonl")] == [(1, 1.0), (2, 0.5), (3, 0.5)]


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert files.read_rows(path) == [{"step": 1}]


def test_numbers_that_are_not_finite_stay_readable_json(tmp_path):
    Tracker(tmp_path, []).row({"step": 1, "loss": math.nan})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": "nan"}


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """stand_in(body of init): a module `wandb` for the child, whose session writes what is logged to `logged`."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    def write(body: str) -> Path:
        logged = tmp_path / "logged"
        session = (
            f"    def log(self, values): open({str(logged)!r}, 'a').write(repr(values) + chr(10))\n"
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
    monkeypatch.setattr(wandb_mirror, "_CLOSE_TIMEOUT_S", 120.0)
    tracker = Tracker(tmp_path, [WandB(tmp_path, Wandb(project="test"), {"seed": 0}, "abc123")])
    tracker.row(ROW)
    tracker.close()
    kept = {path: path.read_bytes() for path in (tmp_path / "wandb").rglob("*") if path.is_file()}
    assert any(path.suffix == ".wandb" and b"samples_per_s" in body for path, body in kept.items())
    assert not any(b"0123456789" * 4 in body for body in kept.values())


def test_a_resumed_run_goes_on_in_its_first_wandb_run(tmp_path, stand_in, capfd):
    asked = tmp_path / "asked"
    stand_in(f"open({str(asked)!r}, 'a').write(asked['id'] + ' ' + asked['resume'] + chr(10))")
    for _ in range(2):
        WandB(tmp_path, Wandb(project="test"), {}, identity(tmp_path)).close()
    assert asked.read_text().splitlines() == [f"{identity(tmp_path)} allow"] * 2
    assert capfd.readouterr().err == ""  # a run without a row yet is nothing to tell of


def test_wandb_gets_every_row_of_this_start_in_order_and_numbers_alone(tmp_path, stand_in):
    logged = stand_in("assert (asked['id'], asked['settings']) == ('abc123', {'silent': True})")
    Tracker(tmp_path, []).row({**ROW, "step": 2})
    tracker = Tracker(tmp_path, [WandB(tmp_path, Wandb(project="test"), {}, "abc123")])
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
    mirror = WandB(tmp_path, Wandb(project="test"), {}, "abc123")
    while not ready.exists():
        time.sleep(0.01)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
        os.kill(mirror.process.pid, number)
    tracker = Tracker(tmp_path, [mirror])
    tracker.row(ROW)
    tracker.close()
    assert logged.read_text().splitlines()[2:] == [repr(ROW), "'finished'"]
    assert capfd.readouterr().err == ""


def test_what_a_killed_wandb_had_started_ends_with_it(tmp_path, stand_in, monkeypatch):
    started = tmp_path / "started"
    starts = f"open({str(started)!r}, 'a').write(str(subprocess.Popen(['sleep', '1000']).pid) + chr(10))"
    stand_in(f"import os, subprocess; {starts}; os.kill(os.getpid(), 9)")
    monkeypatch.setattr(wandb_mirror, "_RESTARTS", 1)
    mirror = WandB(tmp_path, Wandb(project="test"), {}, "abc123")
    first = mirror.process
    first.wait()
    mirror.row(ROW)
    assert first.stdin.closed
    mirror.process.wait()
    mirror.close()
    pids = started.read_text().split()
    deadline = time.monotonic() + 30
    while any(map(processes.is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(pids) == 2 and not any(map(processes.is_alive, pids))


def test_the_sender_of_a_killed_trainer_has_a_minute_for_the_last_rows(monkeypatch):
    ended, timers = threading.Event(), []

    def start(timer):
        assert ended.is_set()
        timers.append((timer.interval, timer.function, timer.args, timer.daemon))

    monkeypatch.setattr(threading.Timer, "start", start)
    monkeypatch.setattr(sys, "stdin", io.StringIO("more\n"))
    wandb_mirror._wait_for_end(ended)
    assert timers == [(60.0, os._exit, (1,), True)]


def test_a_failing_wandb_costs_one_line_and_no_row(tmp_path, stand_in, capfd):
    stand_in("raise OSError('no network')")
    tracker = Tracker(tmp_path, [WandB(tmp_path, Wandb(project="test"), {}, "abc123")])
    tracker.row(ROW)
    tracker.close()
    assert capfd.readouterr().err == "W&B is off for this run: no network; metrics.jsonl has every row\n"
    assert files.read_rows(tmp_path / "metrics.jsonl") == [ROW]


def test_a_failing_wandb_ends_at_once_whatever_its_threads_wait_for(tmp_path, stand_in, capfd):
    stand_in("import threading; threading.Thread(target=time.sleep, args=(1000,)).start(); raise OSError")
    mirror = WandB(tmp_path, Wandb(project="test"), {}, "abc123")
    mirror.close()
    assert mirror.process.returncode == 1
    assert capfd.readouterr().err == "W&B is off for this run: OSError; metrics.jsonl has every row\n"


def test_a_wandb_that_hangs_is_ended_with_the_run(tmp_path, stand_in, monkeypatch, capfd):
    stand_in("time.sleep(1000)")
    monkeypatch.setattr(wandb_mirror, "_CLOSE_TIMEOUT_S", 1.0)
    mirror = WandB(tmp_path, Wandb(project="test"), {}, "abc123")
    mirror.close()
    assert mirror.process.returncode == -signal.SIGKILL
    assert capfd.readouterr().err == "warning: W&B has not taken the last rows within 1 s; metrics.jsonl has every row\n"


def test_a_killed_wandb_is_started_again_and_gets_every_row(tmp_path, stand_in, capfd):
    logged = stand_in("pass")
    mirror = WandB(tmp_path, Wandb(project="test"), {}, "abc123")
    tracker = Tracker(tmp_path, [mirror])
    tracker.row({**ROW, "step": 3})
    os.kill(mirror.process.pid, signal.SIGKILL)
    mirror.process.wait()
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
    mirror = WandB(tmp_path, Wandb(project="test"), {}, "abc123")
    for step in range(4, 10):
        mirror.process.wait()
        mirror.row({**ROW, "step": step})
    mirror.close()
    lines = capfd.readouterr().err.splitlines()
    assert [line.partition("signal 9: ")[2] for line in lines] == [
        *["it is started again; metrics.jsonl has every row"] * 2,
        "it is started a last time; metrics.jsonl has every row",
        "W&B may lack rows of metrics.jsonl",
    ]


def told(tmp_path, monitors, rows):
    """The rows of the file after a tracker with these monitors took `rows`."""
    tracker = Tracker(tmp_path, [], None, monitors)
    for row in rows:
        tracker.row(row)
    return files.read_rows(tmp_path / "metrics.jsonl")


def every_other():
    """A monitor that speaks of every second row it reads."""
    seen = []
    return lambda row: seen.append(row) or ([f"step {row['step']}: second"] if len(seen) % 2 == 0 else [])


def test_what_a_monitor_says_is_recorded_in_its_row(tmp_path):
    rows = told(tmp_path, [every_other()], [{**ROW, "step": step} for step in (1, 2, 3)])
    assert [row.get("warnings") for row in rows] == [None, ["step 2: second"], None]


def test_after_a_resume_monitors_know_what_they_knew(tmp_path):
    told(tmp_path, [every_other()], [{**ROW, "step": step, "eval/x": math.nan} for step in (1, 2, 3)])
    seen = []
    monitor = every_other()
    config = make_config(track={"tensorboard": False})
    again = open_tracker(
        tmp_path, config, "id", State(Net(), step=3, evaluated_step=3), [monitor, lambda row: seen.append(row["eval/x"]) or []]
    )
    again.row({**ROW, "step": 4, "eval/x": 0.0})
    assert files.read_rows(tmp_path / "metrics.jsonl")[-1]["warnings"] == ["step 4: second"]
    assert all(isinstance(value, float) for value in seen) and len(seen) == 4  # "nan" in the file is a number again


def test_warnings_are_shown_on_the_screen(tmp_path):
    screen = Screen()
    screen.console = Console(file=io.StringIO(), force_terminal=False)
    tracker = Tracker(tmp_path, [], screen, [lambda row: ["lower optim.lr [now]"]])
    tracker.row({"step": 5, "eval/loss": 1.0})
    assert screen.console.file.getvalue().splitlines()[-1] == "warning: lower optim.lr [now]"


class Mirror:
    def __init__(self):
        self.rows, self.shown, self.closed = [], [], 0

    def row(self, row):
        self.rows.append(dict(row))

    def pictures(self, step, pictures):
        self.shown.append((step, pictures))

    def close(self):
        self.closed += 1


def test_mirrors_get_every_row_with_its_warnings_every_picture_and_the_end(tmp_path):
    mirrors = [Mirror(), Mirror()]
    tracker = Tracker(tmp_path, mirrors, None, [lambda row: ["too high"] if row["loss"] > 1 else []])
    tracker.row({"step": 1, "loss": 0.5})
    tracker.row({"step": 2, "loss": 2.0})
    tracker.pictures(2, {"a": 1})
    tracker.close()
    for mirror in mirrors:
        assert mirror.rows == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 2.0, "warnings": ["too high"]}]
        assert (mirror.shown, mirror.closed) == ([(2, {"a": 1})], 1)


def test_a_tracker_without_a_screen_begins_a_stage():
    Tracker(None, []).begin("train", 0, 9)


def test_a_tracker_of_no_run_writes_nothing_and_shows_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mirror = Mirror()
    tracker = Tracker(None, [mirror])
    tracker.begin("a", 0, 1)
    tracker.row(ROW)
    assert mirror.rows == [] and list(tmp_path.iterdir()) == []


def test_held_out_rows_of_a_step_that_is_judged_again_are_dropped(tmp_path):
    tracker = Tracker(tmp_path, [])
    for step in (1, 2):
        tracker.row({**ROW, "step": step})
        tracker.row({"step": step, "eval/loss": 1.0})
    open_tracker(tmp_path, make_config(track={"tensorboard": False}), "id", State(Net(), step=2, evaluated_step=1)).close()
    kept = [(row["step"], "eval/loss" in row) for row in files.read_rows(tmp_path / "metrics.jsonl")]
    assert kept == [(1, False), (1, True), (2, False)]


def test_only_what_is_set_is_mirrored(tmp_path):
    assert open_tracker(tmp_path, make_config(track={"tensorboard": False}), "id", State(Net())).mirrors == []


def test_numbers_for_wandb_leave_out_words_and_the_step():
    assert wandb_mirror.numbers(
        {"step": 4, "loss": "nan", "a": 1, "ids": "0a", "b": "-inf", "warnings": ["w"], "intervals": {"c": [0, 1]}}
    ) == {
        "loss": pytest.approx(math.nan, nan_ok=True),
        "a": 1,
        "b": -math.inf,
    }


def test_rows_of_a_file_that_grows_come_whole_until_its_end(tmp_path):
    ended, path, got = threading.Event(), tmp_path / "metrics.jsonl", []
    path.write_text('{"step": 1}\n{"st')
    with open(path, encoding="utf-8") as file, open(path, "a", encoding="utf-8") as writer:
        for row in wandb_mirror.rows(file, ended):
            got.append(row)
            writer.write('ep": 2}\n{"step": 3' if len(got) == 1 else "")
            writer.flush()
            if len(got) == 2:
                ended.set()
    assert got == [{"step": 1}, {"step": 2}]


def test_a_file_that_does_not_grow_is_looked_at_twice_a_second(tmp_path):
    waits_s, path = [], tmp_path / "metrics.jsonl"
    path.touch()
    ended = SimpleNamespace(is_set=lambda: len(waits_s) == 3, wait=waits_s.append)
    with path.open(encoding="utf-8") as file:
        assert list(wandb_mirror.rows(file, ended)) == []
    assert waits_s == [0.5] * 3
