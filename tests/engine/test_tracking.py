import io
import json
import math
from types import SimpleNamespace

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from plait import files
from plait.engine.rundir import identity
from plait.engine.state import State
from plait.engine.tracking import Screen, TensorBoard, Tracker, WandB, open_tracker
from plait.schema import Wandb

from .toy import Net, make_config

ROW = {"step": 3, "loss": 1.5, "samples_per_s": 8.0}


def test_metrics_hold_every_row_once_after_a_resume(tmp_path):
    tracker = Tracker(tmp_path, [])
    for step in (1, 2, 3):
        tracker.row({**ROW, "step": step, "loss": 1.0 / step})
    config = make_config(track={"tensorboard": False})
    again = open_tracker(tmp_path, config, "id", State(Net(), step=2, judged=2))
    again.row({**ROW, "step": 3, "loss": 0.5})
    assert [(row["step"], row["loss"]) for row in files.read_rows(tmp_path / "metrics.jsonl")] == [(1, 1.0), (2, 0.5), (3, 0.5)]


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert files.read_rows(path) == [{"step": 1}]


def test_numbers_that_are_not_finite_stay_readable_json(tmp_path):
    Tracker(tmp_path, []).row({"step": 1, "loss": math.nan})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": "nan"}


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_tensorboard_mirrors_the_rows(tmp_path):
    mirror = TensorBoard(tmp_path, 0)
    mirror.row(ROW)
    mirror.close()
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 1.5)]


def test_wandb_writes_offline_and_never_sees_a_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    mirror = WandB(tmp_path, Wandb(project="test"), {"seed": 0}, "abc123")
    mirror.row(ROW)
    mirror.close()
    kept = [path for path in (tmp_path / "wandb").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in kept)
    assert not any(b"0123456789" * 4 in path.read_bytes() for path in kept)


def test_a_resumed_run_goes_on_in_its_first_wandb_run(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("wandb.init", lambda **into: asked.append(into) or SimpleNamespace(log=lambda *_, **__: None, finish=lambda: None))
    for _ in range(2):
        WandB(tmp_path, Wandb(project="test"), {}, identity(tmp_path)).close()
    assert [(into["id"], into["resume"]) for into in asked] == [(asked[0]["id"], "allow")] * 2


def test_a_failing_wandb_costs_one_line_and_no_row(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("wandb.init", lambda **_: (_ for _ in ()).throw(OSError("no network")))
    mirror = WandB(tmp_path, Wandb(project="test"), {}, "abc123")
    mirror.thread.join(10)
    mirror.row(ROW)
    mirror.close()
    assert "W&B is off for this run: no network; metrics.jsonl has every row" in capfd.readouterr().err


def test_the_screen_degrades_to_plain_lines_with_time_left():
    screen = Screen()
    screen.console = Console(file=io.StringIO(), force_terminal=False)
    screen.begin("projection", 0, 10)
    screen.row({**ROW, "step": 5})
    screen.row({"step": 5, "eval/accuracy/accuracy": 0.25})
    lines = screen.console.file.getvalue().splitlines()
    assert lines[0].startswith("projection 5/10  loss 1.5000  8.0 samples/s  0:00:")
    assert lines[1] == "projection 5/10  accuracy/accuracy 0.25"
