"""What TensorBoard's own reader finds in a run's event files: each row once, whatever was killed, damaged, lost or taken again."""

import errno
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from plait.engine.monitoring import event_files, event_records
from plait.engine.monitoring.event_files import TensorBoard
from plait.engine.monitoring.tracking import Tracker, open_tracker
from plait.engine.state import State
from tests.failing_disk import failing

from .toy import Net, make_config

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
PICTURE = np.full((4, 8, 3), 200, np.uint8)


def shown(run, tag="loss"):
    """(step, value) of a tag, as TensorBoard shows it."""
    reader = EventAccumulator(str(run / "events"), size_guidance={"scalars": 0, "images": 0}).Reload()
    return [(event.step, event.value) for event in reader.Scalars(tag)] if tag in reader.Tags()["scalars"] else []


def opened(run, step, evaluated_step=None):
    return open_tracker(
        run, make_config(), "id", State(Net(), step=step, evaluated_step=step if evaluated_step is None else evaluated_step)
    )


def attempt(run, begin, end, value, **more):
    """Rows of the steps after `begin` up to `end`; an evaluation with a picture at every fourth."""
    tracker = opened(run, begin, **more)
    for step in range(begin + 1, end + 1):
        tracker.row({"step": step, "loss": value, "samples_per_s": 8.0, "ids": "0a"})
        if step % 4 == 0:
            tracker.pictures(step, {"grid/8x4": PICTURE})
            tracker.row({"step": step, "eval/loss": value})
    tracker.close()


def files_of(run):
    return sorted((run / "events").iterdir())


def test_rows_are_shown_as_scalars_and_texts_are_not(tmp_path):
    attempt(tmp_path, 0, 3, 1.5)
    assert shown(tmp_path) == [(1, 1.5), (2, 1.5), (3, 1.5)]
    assert EventAccumulator(str(tmp_path / "events")).Reload().Tags()["scalars"] == ["loss", "samples_per_s"]


def test_a_row_can_be_read_at_once(tmp_path):
    tracker = opened(tmp_path, 0)
    for step in (1, 2):
        tracker.row({"step": step, "loss": 1.5})
        assert shown(tmp_path) == [(n, 1.5) for n in range(1, step + 1)]
    tracker.close()
    tracker.close()  # the second time, its descriptor may be another file's


@pytest.mark.parametrize("length", [8, 400])
def test_checksums_are_those_of_tensorboard(length):
    data = np.random.default_rng(length).bytes(length)
    assert event_records.masked_crc(data) == masked_crc32c(data)


def test_pictures_are_shown(tmp_path):
    mirror = TensorBoard(tmp_path, 0)
    Tracker(tmp_path, [mirror]).pictures(4, {"grid/8x4": PICTURE})
    mirror.close()
    (event,) = EventAccumulator(str(tmp_path / "events")).Reload().Images("grid/8x4")
    assert (event.step, event.width, event.height) == (4, 8, 4)


@pytest.mark.parametrize("step", [0, 1, 8])
def test_steps_taken_again_are_shown_once_with_their_new_values(tmp_path, step):
    attempt(tmp_path, 0, 12, 1.0)
    attempt(tmp_path, step, 16, 2.0)
    assert shown(tmp_path) == [(n, 1.0 if n <= step else 2.0) for n in range(1, 17)]
    assert shown(tmp_path, "eval/loss") == [(n, 1.0 if n <= step else 2.0) for n in (4, 8, 12, 16)]
    images = EventAccumulator(str(tmp_path / "events"), size_guidance={"images": 0}).Reload().Images("grid/8x4")
    assert [image.step for image in images] == [4, 8, 12, 16]


def test_an_evaluation_taken_again_is_shown_once_beside_its_step(tmp_path):
    attempt(tmp_path, 0, 8, 1.0)
    tracker = opened(tmp_path, 8, evaluated_step=4)
    tracker.row({"step": 8, "eval/loss": 2.0})
    tracker.close()
    assert shown(tmp_path) == [(n, 1.0) for n in range(1, 9)]
    assert shown(tmp_path, "eval/loss") == [(4, 1.0), (8, 2.0)]


def test_a_viewer_that_is_open_drops_what_a_dead_attempt_showed(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    attempt(tmp_path, 0, 12, 1.0)
    viewer = EventAccumulator(str(tmp_path / "events"), size_guidance={"scalars": 0}).Reload()
    assert len(viewer.Scalars("loss")) == 12
    monkeypatch.setattr(time, "time", lambda: 2000.0)
    attempt(tmp_path, 8, 10, 2.0)
    points = [(event.step, event.value) for event in viewer.Reload().Scalars("loss")]
    assert points == [*((n, 1.0) for n in range(1, 9)), (9, 2.0), (10, 2.0)]


@pytest.mark.parametrize("lost", [1, 40, 4000])
def test_rows_that_a_kill_lost_or_damaged_are_written_again(tmp_path, lost):
    attempt(tmp_path, 0, 8, 1.0)
    (path,) = files_of(tmp_path)
    path.write_bytes(path.read_bytes()[:-lost])
    attempt(tmp_path, 8, 10, 2.0)
    assert shown(tmp_path) == [*((n, 1.0) for n in range(1, 9)), (9, 2.0), (10, 2.0)]


@pytest.mark.parametrize("damage", [b"\0" * 64, b"\xff" * 64, b"\x05\0\0\0\0\0\0\0"], ids=["zeros", "ones", "cut"])
def test_what_follows_a_damaged_record_is_cut_off(tmp_path, damage):
    attempt(tmp_path, 0, 4, 1.0)
    (path,) = files_of(tmp_path)
    body = path.read_bytes()
    path.write_bytes(body + damage)
    kept = event_files.cut(tmp_path, lambda step, held_out: True)
    steps = {(n, frozenset({"loss", "samples_per_s"})) for n in (1, 2, 3, 4)}
    assert kept == {(4, frozenset({name})) for name in ("eval/loss", "grid/8x4")} | steps
    assert files_of(tmp_path)[0].read_bytes() == body
    assert event_files.cut(tmp_path, lambda step, held_out: False) == set()  # only its head stays


def test_a_clock_that_went_back_leaves_the_files_in_their_order(tmp_path, monkeypatch):
    for begin, now in ((0, 3000), (4, 2000), (6, 1000), (6, 1000)):
        monkeypatch.setattr(time, "time", lambda now=now: float(now))
        attempt(tmp_path, begin, begin + 4, float(now))
    assert [path.name.split(".")[3] for path in files_of(tmp_path)] == ["0000000000", "0000000001", "0000000002", "0000001000"]
    assert shown(tmp_path) == [*((n, 3000.0) for n in range(1, 5)), (5, 2000.0), (6, 2000.0), *((n, 1000.0) for n in range(7, 11))]


def test_a_disk_that_takes_no_events_costs_one_line_and_no_run(tmp_path, caplog):
    tracker = opened(tmp_path, 0)
    (board,) = tracker.mirrors
    board.file.write = full
    for step in (1, 2):
        tracker.row({"step": step, "loss": 1.0, "samples_per_s": 8.0})
        tracker.pictures(step, {"grid": PICTURE})
    tracker.close()
    line = "TensorBoard gets no more rows of this start: [Errno 28] No space left on device; metrics.jsonl has every row"
    assert [record.getMessage() for record in caplog.records] == [line]
    attempt(tmp_path, 2, 3, 2.0)
    assert shown(tmp_path) == [(1, 1.0), (2, 1.0), (3, 2.0)]


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_event_files_that_cannot_be_read_turn_the_mirror_off(tmp_path, caplog):
    attempt(tmp_path, 0, 2, 1.0)
    with failing(tmp_path / "events", 1.0, 0):
        assert opened(tmp_path, 2).mirrors == []
    assert "TensorBoard is off for this run: [Errno 5] Input/output error" in caplog.text


def test_a_mirror_turned_off_and_on_again_shows_every_row_once(tmp_path):
    attempt(tmp_path, 0, 12, 1.0)
    quiet = open_tracker(tmp_path, make_config(track={"tensorboard": False}), "id", State(Net(), step=8, evaluated_step=8))
    for step in range(9, 14):
        quiet.row({"step": step, "loss": 3.0, "samples_per_s": 8.0})
    quiet.close()
    attempt(tmp_path, 13, 14, 2.0)
    assert shown(tmp_path) == [*((n, 1.0) for n in range(1, 9)), *((n, 3.0) for n in range(9, 14)), (14, 2.0)]


def test_a_file_without_one_sound_event_is_emptied(tmp_path):
    attempt(tmp_path, 0, 2, 1.0)
    (path,) = files_of(tmp_path)
    path.write_bytes(b"\0" * 64)
    assert event_files.cut(tmp_path, lambda step, held_out: True) == set()
    assert files_of(tmp_path)[0].stat().st_size == 0
