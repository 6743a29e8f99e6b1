"""A rank's heartbeat: one line, always whole."""

import os

from plait.engine.monitoring import heartbeat
from plait.engine.monitoring.heartbeat import Heartbeat


def test_a_heartbeat_tells_the_latest_phase_only(tmp_path):
    heart = Heartbeat(tmp_path, 3)
    heart.phase("evaluate", 100_000)
    heart.phase("data", 7)
    heart.part("next")
    heart.close()
    told = heartbeat.read(tmp_path, 3)
    assert heartbeat.position(told) == ("data", 7, os.getpid())
    assert (told["part"], told["beat"]) == ("next", 4)
    assert len(heartbeat.path_of(tmp_path, 3).read_bytes()) == 160


def test_there_is_no_heartbeat_before_the_first_and_a_part_of_one_is_none(tmp_path):
    assert heartbeat.read(tmp_path) is None
    Heartbeat(tmp_path, 0).close()
    path = heartbeat.path_of(tmp_path, 0)
    path.write_bytes(path.read_bytes()[:60])
    assert heartbeat.read(tmp_path) is None
