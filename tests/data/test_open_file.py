"""Reads of local files from a disk that fails once, or for good."""

import errno
import os

import pytest

from plait.data import paths
from plait.data.formats import open_file
from plait.data.formats.open_file import OpenFile
from plait.errors import BadSample


@pytest.fixture
def failing(monkeypatch):
    """failing("pread", errno.EIO, 2): the first two calls of os.pread fail; returns the waits between attempts, which take no time."""
    waits = []
    monkeypatch.setattr(open_file.time, "sleep", waits.append)

    def fail(name, number, times):
        real, calls = getattr(os, name), iter(range(10**6))

        def call(*arguments, **named):
            if next(calls) < times:
                raise OSError(number, os.strerror(number))
            return real(*arguments, **named)

        monkeypatch.setattr(os, name, call)
        return waits

    return fail


@pytest.mark.parametrize(("name", "number"), [("pread", errno.EIO), ("open", errno.ESTALE), ("open", errno.ETIMEDOUT)])
def test_a_disk_that_fails_three_times_costs_no_sample_and_is_told(tmp_path, failing, caplog, name, number):
    (tmp_path / "a").write_bytes(b"0123456789")
    waits = failing(name, number, 3)
    assert OpenFile(tmp_path / "a").read(2, 5) == b"23456"
    assert waits == [0.1, 0.5, 2.0]
    assert caplog.messages == [f"{tmp_path}/a: {os.strerror(number)}; it is read again in {wait_s} s" for wait_s in ("0.1", "0.5", "2")]


def test_a_disk_that_fails_for_good_is_an_error_after_the_last_attempt(tmp_path, failing):
    (tmp_path / "a").write_bytes(b"0123456789")
    file, _ = OpenFile(tmp_path / "a"), failing("pread", errno.EIO, 10**6)
    with pytest.raises(OSError, match="Input/output error"):
        file.read(0, 5)


def test_what_another_attempt_would_meet_again_is_told_at_once(tmp_path, failing):
    waits = failing("open", errno.EACCES, 1)
    with pytest.raises(PermissionError):
        OpenFile(tmp_path / "a")
    assert waits == []


def test_a_picture_that_a_record_names_is_read_again_too(tmp_path, failing):
    (tmp_path / "a.png").write_bytes(b"body")
    waits = failing("open", errno.EIO, 1)
    assert paths.read_regular(tmp_path / "a.png") == b"body"
    assert waits == [0.1]


def test_a_picture_that_cannot_be_read_is_a_bad_sample(tmp_path, failing):
    (tmp_path / "a.png").write_bytes(b"body")
    failing("open", errno.EIO, 10**6)
    with pytest.raises(BadSample, match=r"cannot read .*a.png': Input/output error"):
        paths.read_regular(tmp_path / "a.png")


def test_a_file_that_was_cut_is_a_bad_sample(tmp_path):
    (tmp_path / "a").write_bytes(b"0123456789")
    with pytest.raises(BadSample, match="it ends before byte 12"):
        OpenFile(tmp_path / "a").read(8, 4)
