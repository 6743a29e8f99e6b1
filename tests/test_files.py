"""Files that appear whole or not at all, and rows of which a bad one costs that row alone."""

import errno
import io
import itertools
import json
import os
import stat
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file

from plait import files
from plait.engine.checkpoints import folders
from plait.engine.checkpoints.folders import new_folder

from .processes import kill_inside

BAD = [b"\x00\x00", b'{"n": "\xff"}', b"5", b'{"n": ', b"[" * 100_000]


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_line_costs_that_line_alone_and_is_told(tmp_path, caplog, bad):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"n": 1}\n' + bad + b'\n{"n": 2, "text": "a\xe2\x80\xa8b"}\n{"n": 3}\n')
    assert [row["n"] for row in files.read_rows(path)] == [1, 2, 3]
    assert files.read_rows(path)[1]["text"] == "a\u2028b"
    assert f"line 2 of {path} cannot be read and is left out" in caplog.text
    files.keep_rows(path, lambda row: row["n"] != 3)
    assert path.read_bytes() == b'{"n": 1}\n{"n": 2, "text": "a\xe2\x80\xa8b"}\n'


def test_a_line_that_a_kill_cut_short_is_left_out_without_a_word(tmp_path, caplog):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": 2')
    assert files.read_rows(path) == [{"n": 1}]
    files.keep_rows(path, lambda row: True)
    assert path.read_bytes() == b'{"n": 1}\n'
    assert caplog.text == ""
    assert files.read_rows(tmp_path / "none.jsonl") == []


def test_of_a_long_file_the_ends_are_read_and_no_row_of_the_middle_is_lost(tmp_path, caplog):
    path, filler = tmp_path / "rows.jsonl", "x" * 1000
    files.append_rows(path, ({"step": step, "text": filler} for step in range(1, 8001)))
    middle = path.read_bytes().replace(b'{"step": 2000,', b'{"step" 2000,')
    path.write_bytes(middle)
    steps = [row["step"] for row in files.read_rows(path, files.STEP_KINDS, ends=True)]
    assert steps[:2] == [1, 2] and steps[-1] == 8000 and 1000 < len(steps) < 1400
    assert [later - step for step, later in itertools.pairwise(steps) if later != step + 1] == [8000 - len(steps) + 1]
    files.keep_rows(path, lambda row: row["step"] <= 7900, files.STEP_KINDS)
    assert path.read_bytes() == middle[: middle.index(b'{"step": 7901,')]  # the middle is not looked at
    assert caplog.text == ""
    files.keep_rows(path, lambda row: row["step"] <= 3000, files.STEP_KINDS)  # further back than the end that is looked at
    assert [row["step"] for row in files.read_rows(path)] == [step for step in range(1, 3001) if step != 2000]
    assert f"line 2000 of {path} cannot be read" in caplog.text


def test_a_bad_line_at_the_end_of_a_long_file_is_told_and_left_out(tmp_path, caplog):
    path = tmp_path / "rows.jsonl"
    files.append_rows(path, ({"step": step, "text": "x" * 1000} for step in range(8000)))
    with path.open("ab") as file:
        file.write(b"[\n")
    files.keep_rows(path, lambda row: True, files.STEP_KINDS)
    assert f"a line of {path} cannot be read" in caplog.text and path.read_bytes().endswith(b'"}\n')


def test_half_of_a_surrogate_pair_is_written_as_json_escapes_it(tmp_path):
    row = {"sample": "a\udcff ü 😀", "step": 1}
    files.append_rows(tmp_path / "a.jsonl", [row])
    files.write_json(tmp_path / "a.json", row)
    files.write_whole(tmp_path / "b.json", files.json_text(row))
    assert files.read_rows(tmp_path / "a.jsonl") == [row]
    assert (tmp_path / "a.jsonl").read_text(encoding="utf-8") == '{"sample": "a\\udcff ü 😀", "step": 1}\n'
    assert json.loads((tmp_path / "a.json").read_bytes()) == json.loads((tmp_path / "b.json").read_bytes()) == row


def test_rows_are_whole_where_the_system_takes_a_part_of_them_at_a_time(tmp_path, monkeypatch):
    class Slow(io.FileIO):
        def write(self, body):
            return super().write(body[:5])

    (tmp_path / "a.jsonl").write_text('{"step": 1}\n{"st')
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode, buffering: Slow(path, mode))
        files.append_rows(tmp_path / "a.jsonl", [{"step": 2}, {"step": 3}])
    assert (tmp_path / "a.jsonl").read_text() == '{"step": 1}\n{"st\n{"step": 2}\n{"step": 3}\n'


def test_rows_make_no_folder_that_has_gone(tmp_path):
    with pytest.raises(FileNotFoundError):
        files.append_rows(tmp_path / "gone" / "rows.jsonl", [{"n": 1}])
    assert not (tmp_path / "gone").exists()


def test_a_file_of_a_library_gets_the_permissions_of_any_other(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    (tmp_path / "plain").write_text("")
    folders.follow_umask(tmp_path / "x.safetensors")
    modes = {stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("x.safetensors", "plain")}
    assert len(modes) == 1


def write_file(target, wait):
    files.os.fsync = lambda descriptor: wait()
    files.write_whole(target, "half")


def test_what_a_kill_left_beside_a_file_is_gone_after_the_next_write(tmp_path):
    kill_inside(tmp_path / "x.idx", write_file)
    assert [path.name for path in tmp_path.iterdir()] == [".x.idx.tmp"]
    files.write_whole(tmp_path / "x.idx", "1")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"x.idx": "1"}


def test_two_writers_of_one_file_do_not_touch_each_others_bytes(tmp_path, monkeypatch):
    target, fsync, inner = tmp_path / "x", os.fsync, []

    def write_between(descriptor):
        if not inner:
            inner.append(1)
            files.write_whole(target, "second, longer")
            assert sorted(path.name for path in tmp_path.iterdir()) == [".x.tmp", "x"]
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", write_between)
    files.write_whole(target, "first")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"x": "first"}


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "no locks"), OSError(errno.ENOTSUP, "no locks")])
def test_a_file_system_without_locks_is_written_too(tmp_path, monkeypatch, error):
    monkeypatch.setattr(files.fcntl, "flock", mock.Mock(side_effect=error))
    files.write_whole(tmp_path / "x", "1")
    with new_folder(tmp_path / "out"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    files.write_whole(tmp_path / "x", "old")
    monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        files.write_whole(tmp_path / "x", "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"x": "old"}


def test_rows_after_a_line_that_was_cut_short_are_kept(tmp_path):
    path = tmp_path / "a.jsonl"
    files.append_rows(path, [{"step": 1}])
    with path.open("a") as file:
        file.write('{"step": 2, "a"')
    files.append_rows(path, [{"step": 3}])
    files.append_rows(path, [{"step": 4}])
    assert [row["step"] for row in files.read_rows(path)] == [1, 3, 4]
    path.write_text('{"step": 1}')  # whole, but for its end
    files.append_rows(path, [{"step": 2}])
    assert [row["step"] for row in files.read_rows(path)] == [1, 2]
