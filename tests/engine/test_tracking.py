import io
import json
import math

from rich.console import Console

from plait import files
from plait.engine.monitoring.screen import Screen
from plait.engine.monitoring.tracking import Tracker, open_tracker
from plait.engine.state import State

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

    def table(self, step, name, table):
        self.shown.append((step, name, list(table.columns), list(table.rows)))

    def close(self):
        self.closed += 1


def test_mirrors_get_every_row_with_its_warnings_every_picture_and_the_end(tmp_path):
    mirrors = [Mirror(), Mirror()]
    tracker = Tracker(tmp_path, mirrors, None, [lambda row: ["too high"] if row["loss"] > 1 else []])
    tracker.row({"step": 1, "loss": 0.5})
    tracker.row({"step": 2, "loss": 2.0})
    tracker.pictures(2, {"a": 1})
    tracker.answers(2, "vqa", [{"id": "x", "answer": "red", "correct": True}])
    tracker.close()
    table = (2, "eval/vqa/answers", ["id", "answer", "correct"], [["x", "red", True]])
    for mirror in mirrors:
        assert mirror.rows == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 2.0, "warnings": ["too high"]}]
        assert (mirror.shown, mirror.closed) == ([(2, {"a": 1}), table], 1)


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
