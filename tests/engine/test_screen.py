import io
import os
import sys

import pytest
from rich.console import Console

from plait.engine.monitoring import screen as screens
from plait.engine.monitoring.screen import Screen
from plait.engine.monitoring.tracking import Tracker

ROW = {"step": 3, "loss": 1.5, "samples_per_s": 8.0}
LONG = {**ROW, "step": 123_456, "loss": 12.3456, "samples_per_s": 1234.5, "mfu": 0.4567, "data_wait_s": 0.2, "step_s": 0.8}


def lines_of(screen):
    return screen.console.file.getvalue().splitlines()


@pytest.fixture
def plain():
    """A screen that is no terminal."""
    return Screen(Console(file=io.StringIO(), force_terminal=False, width=200))


@pytest.fixture
def now(monkeypatch):
    """The clock of the screen, as a list of one number."""
    now = [1000.0]
    monkeypatch.setattr("plait.engine.monitoring.screen.time.monotonic", lambda: now[0])
    return now


def terminal(width):
    return Screen(Console(file=io.StringIO(), force_terminal=True, width=width, soft_wrap=True, legacy_windows=False))


def test_a_screen_that_is_no_terminal_gets_plain_lines_with_time_left(plain):
    plain.begin("projection", 0, 10)
    plain.advance({**ROW, "step": 5})
    plain.row({"step": 5, "eval/accuracy/accuracy": 0.25})
    plain.row({"step": 5, "eval/loss": 2.0, "eval/loss/loss": 2.0})
    plain.row({"step": 5, "eval/loss": 2.0, "eval/loss/text": 4.0})
    plain.row({"step": 5, "eval/loss": 2.0, "eval/loss/loss": 2.0, "eval/loss/cut": 0.0})
    lines = lines_of(plain)
    assert lines[0].startswith("projection step 5/10  loss 1.5000  0:00:") and lines[0].endswith(" left  8.0 samples/s")
    assert lines[1:] == [
        "projection step 5/10  held out: accuracy/accuracy 0.25",
        "projection step 5/10  held out: loss 2",
        "projection step 5/10  held out: loss 2 (text 4)",
        "projection step 5/10  held out: loss 2 (cut 0)",
    ]


def test_figures_of_one_bench_stand_together_and_counts_are_whole_numbers(plain):
    plain.begin("a", 0, 20_000)
    plain.row({"step": 20_000, "eval/accuracy": 0.16249, "eval/accuracy/samples": 12_345.0, "eval/accuracy/colour": 0.0, "eval/fid": 31.25})
    assert lines_of(plain) == ["a step 20000/20000  held out: accuracy 0.1625 (samples 12,345, colour 0)  fid 31.25"]


def test_a_bench_with_and_without_an_input_shows_each_way_once(plain):
    ways = {"": 0.5, "/colour": 0.25, "/image_off": 0.3, "/colour/image_off": 0.2, "/image_shuffled": 0.31, "/colour/image_shuffled": 0.1}
    plain.begin("a", 0, 5)
    plain.row({"step": 5, **{f"eval/accuracy{name}": value for name, value in ways.items()}, "eval/fid/at/64": 2.5, "eval/fid": 2.0})
    assert lines_of(plain) == ["a step 5/5  held out: accuracy 0.5 (colour 0.25, image_off 0.3, image_shuffled 0.31)  fid 2 (at/64 2.5)"]


def test_a_figure_of_few_samples_says_how_sure_it_is_and_those_in_brackets_do_not(plain):
    figures = {"eval/accuracy": 0.5, "eval/accuracy/colour": 0.25, "eval/loss": 2.5}
    plain.row({"step": 5, **figures, "intervals": {"accuracy": (0.4, 0.62), "accuracy/colour": (0.0, 0.5)}})
    assert lines_of(plain) == ["step 5/0  held out: accuracy 0.5 ±0.12 (colour 0.25)  loss 2.5"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(100.0, "100"), (1e6, "1,000,000"), (0.43243, "0.4324"), (-2.0, "-2"), (98765.4, "98,765"), (float("nan"), "nan"), (3e-5, "3e-05")],
)
def test_whole_numbers_are_printed_whole(value, text):
    assert screens.number(value) == text


def test_a_plain_line_comes_every_ten_seconds_and_at_the_last_step(plain, now):
    plain.begin("vision", 100, 200)
    for step, seconds in ((101, 1), (102, 9), (103, 10.9), (104, 11), (200, 12)):
        now[0] = 1000.0 + seconds
        plain.advance({**ROW, "step": step})
    assert [line.split("  ")[0] for line in lines_of(plain)] == ["vision step 101/200", "vision step 104/200", "vision step 200/200"]


def test_the_time_left_goes_by_the_steps_of_this_start(plain, now):
    plain.begin("vision", 100, 200)
    now[0] += 500
    plain.advance({**ROW, "step": 110})  # 10 steps in 500 s, 90 to go
    assert "  1:15:00 left" in lines_of(plain)[0]
    plain.begin("vision", 100, 200)
    plain.advance({**ROW, "step": 100})  # no step yet: no division by zero
    assert "  0:00:00 left" in lines_of(plain)[1]


def test_the_line_has_the_share_of_the_peak_where_it_is_known(plain):
    plain.begin("a", 0, 10)
    plain.advance({**ROW, "mfu": 0.4567})
    assert lines_of(plain)[0].endswith("  8.0 samples/s  MFU 45.7 %")


def test_a_slow_speed_is_not_rounded_to_nothing(plain):
    plain.begin("a", 0, 10)
    plain.advance({**ROW, "samples_per_s": 0.0213})
    assert lines_of(plain)[0].endswith("  0.021 samples/s")


def test_waiting_for_data_is_told_once_a_stage_with_its_cure(plain):
    plain.begin("a", 0, 100)
    for step in range(1, 40):
        plain.advance({**ROW, "step": step, "data_wait_s": 99.0 if step == 1 else 2.0, "step_s": 1.0})
    told = [line for line in lines_of(plain) if "workers" in line]
    assert told == ["a step 11/100  data 67 % of the step: more workers (data.workers), or processes (data.worker_kind)"]
    assert "  data 67 % of the step" in str(plain.line(200))


def test_a_run_that_does_not_wait_says_nothing_of_it(plain):
    plain.begin("a", 0, 100)
    for step in range(1, 40):
        plain.advance({**ROW, "step": step, "data_wait_s": 0.05, "step_s": 1.0})
    assert "data" not in str(plain.line(200)) and not any("workers" in line for line in lines_of(plain))


@pytest.mark.parametrize("width", [60, 72, 80, 100, 120, 160, 200])
@pytest.mark.parametrize("stage", ["all", "a-stage-with-a-rather-long-name"])
def test_the_line_fits_any_terminal_and_cuts_nothing_in_two(width, stage, now):
    screen = terminal(width)
    screen.begin(stage, 0, 500_000)
    screen.close()
    now[0] += 3600
    screen.advance({**LONG, "step": 1})
    screen.advance(LONG)
    line = str(screen.line(width))
    figures = {"loss 12.3456", "3:03:00 left", "1,234.5 samples/s", "data 20 % of the step", "MFU 45.7 %", "1:00:00 so far", ""}
    head, *shown = [part.strip() for part in line.split("  ")]
    assert len(line) <= width and head.startswith(stage[:17]) and " step 123456/500000" in head
    assert set(shown) <= figures and "loss 12.3456" in shown and "…" not in line
    assert (set(shown) | {""} == figures) == (width >= 160)


def test_a_line_too_wide_for_a_sliver_of_a_terminal_stays_one_line():
    screen = terminal(20)
    screen.begin("projection", 0, 500_000)
    screen.advance({**LONG})
    screen.close()
    assert all("\n" not in str(screen.line(width)) for width in (1, 5, 20))


def test_the_bar_moves_with_every_step_though_not_every_step_is_recorded(tmp_path):
    screen = terminal(100)
    tracker = Tracker(tmp_path, [], screen)
    tracker.begin("a", 0, 40)
    seen = []
    for step in range(1, 41):
        tracker.advance({**ROW, "step": step})
        seen.append(str(screen.line(100)))
    tracker.close()
    assert [f"a step {step}/40" in line for step, line in enumerate(seen, 1)] == [True] * 40
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_terminal_gets_one_line_per_stage_and_is_left_as_it_was():
    screen = terminal(150)
    screen.begin("a", 2, 10)
    first = screen.live
    screen.advance({**ROW, "step": 5})
    assert "a step 5/10 ━" in str(screen.line(150)) and "loss 1.5000" in str(screen.line(150))
    screen.begin("b", 0, 4)
    assert screen.live is not first and not first.is_started
    screen.close()
    assert screen.live is None and "\x1b[?25h" in screen.console.file.getvalue()


def test_lines_of_a_log_are_not_broken_at_the_terminals_width(monkeypatch):
    monkeypatch.setattr(sys, "stdout", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})())
    screen = terminal(60)
    screen.begin("a", 0, 10)
    print("checkpoint /a/very/long/path/" + "x" * 80, "with words after it")
    screen.close()
    assert "checkpoint /a/very/long/path/" + "x" * 80 + " with words after it\n" in screen.console.file.getvalue()


def test_a_file_that_standard_output_goes_to_gets_its_lines(tmp_path, monkeypatch):
    screen = terminal(80)
    with (tmp_path / "log").open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        screen.begin("a", 0, 10)
        print("a line")
        screen.close()
    assert (tmp_path / "log").read_text() == "a line\n" and "a line" not in screen.console.file.getvalue()


def test_where_standard_output_is_a_pipe_there_is_no_bar_to_break(monkeypatch):
    read, write = os.pipe()
    with os.fdopen(write, "w") as pipe, os.fdopen(read):
        monkeypatch.setattr(sys, "stdout", pipe)
        screen = terminal(80)
        screen.begin("a", 0, 10)
        screen.advance({**ROW, "step": 1})
        assert screen.live is None and lines_of(screen)[0].startswith("a step 1/10  loss 1.5000")
