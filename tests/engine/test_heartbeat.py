"""A rank's heartbeat: one line, always whole."""

import errno
import os
from unittest import mock

from plait.engine.monitoring import beats, heartbeat
from plait.engine.monitoring.heartbeat import Heartbeat


def test_a_heartbeat_tells_the_latest_phase_only(tmp_path):
    heart = Heartbeat(tmp_path, 3)
    heart.phase("evaluate", 100_000)
    heart.phase("data", 7)
    heart.part("next")
    heart.close()
    told = beats.read(tmp_path, 3)
    assert beats.position(told) == ("data", 7, os.getpid())
    assert (told["part"], told["beat"]) == ("next", 4)
    assert len(heartbeat.path_of(tmp_path, 3).read_bytes()) == 160


def test_there_is_no_heartbeat_before_the_first_and_a_part_of_one_is_none(tmp_path):
    assert beats.read(tmp_path) is None
    Heartbeat(tmp_path, 0).close()
    path = heartbeat.path_of(tmp_path, 0)
    path.write_bytes(path.read_bytes()[:60])
    assert beats.read(tmp_path) is None


def test_every_phase_and_part_is_a_beat_and_a_sign_of_life(tmp_path, monkeypatch):
    now = [100]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(heartbeat.time, "time", lambda: 12.5)
    heart = Heartbeat(tmp_path, 0)
    assert (heart.beats, heart.last_s) == (1, 100)
    now[0] = 101
    heart.part("backward")
    assert (heart.beats, heart.last_s) == (2, 101)
    heart.close()
    wanted = {"phase": "start", "step": 0, "part": "backward", "beat": 2, "pid": os.getpid(), "time_s": 12.5}
    assert beats.read(tmp_path, 0) == wanted


def test_a_new_phase_is_in_no_part_and_overwrites_a_longer_one(tmp_path):
    heart = Heartbeat(tmp_path, 0)
    heart.phase("step", 123_456_789)
    heart.part("a part with a long name")
    heart.phase("save", 3)
    heart.close()
    told = beats.read(tmp_path)
    assert (told["phase"], told["step"], told["part"]) == ("save", 3, "")


def test_a_disk_that_takes_no_heartbeat_costs_one_line_and_no_training(tmp_path, monkeypatch, caplog):
    heart = heartbeat.Heartbeat(tmp_path, 0)
    with monkeypatch.context() as failing:
        failing.setattr(os, "pwrite", mock.Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
        heart.phase("data", 1)
        heart.phase("step", 1)
    assert beats.read(tmp_path)["phase"] == "start"
    heart.phase("data", 2)
    assert beats.read(tmp_path)["phase"] == "data"
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}/heartbeat/rank-0.json: No space left on device; training goes on, and later failures of it are not told"
    ]
