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

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from plait import files
from plait.config.sections.track import Mlflow, Trackio, Wandb
from plait.engine.checkpoints.rundir import identity
from plait.engine.monitoring.beside import process, tracker_process, trackers
from plait.engine.monitoring.beside.shown import KeptPictures
from plait.engine.monitoring.tracking import Tracker, open_tracker
from plait.engine.state import State

from .. import processes
from .toy import Net, make_config

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
        ends = f"def teardown(): open({str(logged)!r}, 'a').write(repr('torn down') + chr(10))"
        starts = f"{ends}\ndef Settings(**asked): return asked\ndef init(**asked):\n    import time\n    {body}\n    return Session()"
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
    waits_s, settings = [], {"run": str(tmp_path), "from": dict.fromkeys(trackers.FILES, 0)}
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


def test_a_wandb_that_cannot_be_reached_keeps_the_rows_on_the_disk_to_be_sent_later(tmp_path, stand_in, capfd, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    fails = 'exec(\'class CommError(Exception): pass\\nif asked["mode"] == "online": raise CommError(1)\')'
    logged = stand_in(f"{fails}; Session.url = None")
    tracker = Tracker(tmp_path, [mirror(tmp_path)])
    tracker.row(ROW)
    tracker.close()
    assert logged.read_text().splitlines()[0] == "'torn down'" and repr(ROW) in logged.read_text()
    assert capfd.readouterr().out == "W&B (not reached, so kept on the disk): wandb sync /there/offline-run\n"


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


PICTURE = np.full((4, 8, 3), 200, np.uint8)
ANSWERS = [{"id": "a", "question": "What?", "answer": "x|y\nz", "gold": "x", "correct": True}, {"id": "b", "answer": "w", "correct": None}]
_IMAGE = (
    "class Image:\n    def __init__(self, path): self.body = open(path, 'rb').read()\n"
    "    def __repr__(self): return f'Image({len(self.body) > 50})'\n"
)
SESSIONS = {
    "wandb": (
        f"{_IMAGE}class Table:\n    def __init__(self, columns, data, allow_mixed_types): self.shown = (columns, data)\n"
        "    def __repr__(self): return f'Table{self.shown}'\n"
        "class Session:\n    url = 'here'\n    def define_metric(self, *names, **options): pass\n"
        "    def log(self, values): tell('log', values)\n    def finish(self): tell('end')\n"
        "def Settings(**asked): return asked\ndef init(**asked):\n    tell('begin', asked['name'], asked['id'])\n    return Session()\n"
    ),
    "trackio": (
        f"{_IMAGE}def Markdown(text): return text\n"
        "def init(project, name, space_id, config, resume, embed, auto_log_gpu, auto_log_cpu): tell('begin', project, name, resume)\n"
        "def log(values, step): tell('log', step, values)\ndef finish(): tell('end')\n"
    ),
    "mlflow": (
        "import sys\nfrom types import SimpleNamespace\n"
        "sys.modules['mlflow.entities'] = SimpleNamespace(Metric=lambda name, value, time, step: (name, value, step))\n"
        "RUNS = {}\nclass MlflowClient:\n    def __init__(self, uri): tell('open', uri)\n"
        "    def get_experiment_by_name(self, name): return None\n    def create_experiment(self, name): return '7'\n"
        "    def search_runs(self, experiments, text, max_results): tell('search', text); return []\n"
        "    def create_run(self, experiment, tags, run_name):\n        tell('begin', tags, run_name)\n"
        "        return SimpleNamespace(info=SimpleNamespace(run_id='r1'))\n"
        "    def log_dict(self, run, value, file): tell('dict', file, value if 'answers' in file else sorted(value))\n"
        "    def log_batch(self, run, metrics): tell('log', metrics)\n"
        "    def log_artifact(self, run, path, folder): tell('file', open(path, 'rb').read(4)[1:], folder)\n"
        "    def set_terminated(self, run): tell('end')\n"
    ),
}
MIRRORS = {
    "wandb": lambda run: trackers.wandb_mirror(run, Wandb(project="p", name="demo"), {"seed": 0}, "abc123"),
    "mlflow": lambda run: trackers.mlflow_mirror(run, Mlflow(experiment="e", name="demo", uri="http://$HOST:1"), {"seed": 0}, "abc123"),
    "trackio": lambda run: trackers.trackio_mirror(run, Trackio(project="p", name="demo"), {"seed": 0}, "abc123"),
}
TOLD = {
    "wandb": [
        ("begin", "demo", "abc123"),
        ("log", "{'step': 3, 'loss': 1.5, 'samples_per_s': 8.0}"),
        ("log", "{'step': 3, 'grid/8x4': Image(True)}"),
        (
            "log",
            "{'step': 3, 'eval/vqa/answers': Table(['id', 'question', 'gold', 'answer', 'correct'], "
            "[['a', 'What?', 'x', 'x|y\\nz', True], ['b', None, None, 'w', None]])}",
        ),
        ("end",),
    ],
    "trackio": [
        ("begin", "p", "demo-abc123", "allow"),
        ("log", 3, "{'loss': 1.5, 'samples_per_s': 8.0}"),
        ("log", 3, "{'grid/8x4': Image(True)}"),
        (
            "log",
            3,
            "{'eval/vqa/answers': '| id | question | gold | answer | correct |\\n| --- | --- | --- | --- | --- |\\n"
            "| a | What? | x | x\\\\|y z | True |\\n| b | None | None | w | None |'}",
        ),
        ("end",),
    ],
    "mlflow": [
        ("open", "http://there:1"),
        ("search", "tags.`plait.identity` = 'abc123'"),
        ("begin", "{'plait.identity': 'abc123'}", "demo"),
        ("dict", "config.json", "['seed']"),
        ("log", "[('loss', 1.5, 3), ('samples_per_s', 8.0, 3)]"),
        ("file", "b'PNG'", "grid/8x4/step-00000003"),
        (
            "dict",
            "eval/vqa/answers/step-00000003.json",
            "{'columns': ['id', 'question', 'gold', 'answer', 'correct'], "
            "'data': [['a', 'What?', 'x', 'x|y\\nz', True], ['b', None, None, 'w', None]]}",
        ),
        ("end",),
    ],
}


@pytest.mark.parametrize("service", SESSIONS)
def test_every_service_gets_the_same_rows_pictures_and_answers(tmp_path, monkeypatch, service, capfd):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("HOST", "there")
    told = tmp_path / "told"
    body = f"open({str(told)!r}, 'a').write(repr(tuple(w if isinstance(w, str | int) else repr(w) for w in what)) + chr(10))"
    tell = f"def tell(*what): {body}\n"
    (tmp_path / f"{service}.py").write_text(tell + SESSIONS[service])
    run = tmp_path / "run"
    run.mkdir()
    tracker = Tracker(run, [KeptPictures(run), MIRRORS[service](run)])
    tracker.row({**ROW, "ids": "0a"})
    tracker.pictures(3, {"grid/8x4": PICTURE})
    files.append_rows(run / "answers.jsonl", [{"step": 3, "bench": "vqa", "answers": ANSWERS}])
    tracker.close()
    assert sorted(map(ast.literal_eval, told.read_text().splitlines()), key=str) == sorted(TOLD[service], key=str)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("service", "title"), [("mlflow", "MLflow"), ("trackio", "Trackio")])
def test_a_service_whose_package_is_absent_names_the_extra(tmp_path, monkeypatch, service, title, capfd):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / f"{service}.py").write_text(f"raise ModuleNotFoundError('No module named {service}')")
    MIRRORS[service](tmp_path).close()
    line = f"warning: {title} is off for this run: No module named {service}: pip install 'plait[{service}]'; metrics.jsonl has every row\n"
    assert capfd.readouterr().err == line


def test_pictures_are_kept_for_services_and_cut_where_the_run_goes_back(tmp_path):
    kept = KeptPictures(tmp_path)
    for step in (2, 4):
        kept.pictures(step, {"grid/8x4": PICTURE, "grid 8x4": PICTURE})
        files.append_rows(tmp_path / "answers.jsonl", [{"step": step, "bench": "vqa", "answers": ANSWERS}])
    first, second = files.read_rows(tmp_path / "pictures.jsonl")
    assert first["pictures"] == {"grid/8x4": "pictures/step-00000002/grid-8x4.png", "grid 8x4": "pictures/step-00000002/grid-8x4-1.png"}
    assert all((tmp_path / path).is_file() for row in (first, second) for path in row["pictures"].values())
    open_tracker(tmp_path, make_config(track={"tensorboard": False}), "id", State(Net(), step=3, evaluated_step=3)).close()
    assert files.read_rows(tmp_path / "pictures.jsonl") == [first]
    assert [row["step"] for row in files.read_rows(tmp_path / "answers.jsonl")] == [2]


def test_a_disk_that_takes_no_picture_costs_a_line(tmp_path, caplog):
    (tmp_path / "pictures").write_text("in the way")
    KeptPictures(tmp_path).pictures(3, {"grid": PICTURE})
    (line,) = caplog.messages
    assert line.startswith("pictures of step 3 do not reach the tracking services: ")


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_tensorboard_has_answers_as_a_text_and_gets_again_what_a_kill_took(tmp_path):
    state = State(Net(), step=3, evaluated_step=3)
    KeptPictures(tmp_path).pictures(3, {"grid/8x4": PICTURE})
    files.append_rows(tmp_path / "answers.jsonl", [{"step": 3, "bench": "vqa", "answers": ANSWERS}])
    for _ in range(2):
        open_tracker(tmp_path, make_config(), "id", state).close()
        reader = EventAccumulator(str(tmp_path / "events"), size_guidance={"tensors": 0, "images": 0}).Reload()
        assert [(event.step, event.width) for event in reader.Images("grid/8x4")] == [(3, 8)]
        (event,) = reader.Tensors("eval/vqa/answers/text_summary")
        assert event.tensor_proto.string_val[0].decode().startswith("| id | question | gold | answer | correct |\n")
