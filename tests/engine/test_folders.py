"""Folders that appear whole or not at all, whoever is killed while filling them."""

import errno
import os
from pathlib import Path

import pytest

from plait.engine.checkpoints.folders import copy_folder, new_folder
from plait.errors import PlaitError

from ..processes import kill_inside


def write_folder(target, wait):
    with new_folder(target) as folder:
        (folder / "part").mkdir()
        (folder / "part" / "weights").write_text("half")
        (folder / "link").symlink_to("part")
        wait()


def test_what_a_kill_left_beside_a_folder_is_gone_after_the_next_call(tmp_path):
    kill_inside(tmp_path / "out", write_folder)
    assert [path.name for path in tmp_path.iterdir()] == [".out.tmp"]
    with new_folder(tmp_path / "out") as folder:
        (folder / "whole").write_text("1")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {"whole": "1"}


def test_of_two_makers_of_one_folder_the_later_is_told_and_leaves_nothing(tmp_path):
    later = new_folder(tmp_path / "out")
    (later.__enter__() / "a").write_text("1")
    with new_folder(tmp_path / "out") as folder:
        (folder / "b").write_text("2")
    with pytest.raises(PlaitError, match="out was made by another process meanwhile"):
        later.__exit__(None, None, None)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b"]


def test_a_copy_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        copy_folder(tmp_path / "none", tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_made_with_its_parents_and_flushed_and_only_after_the_block(tmp_path, monkeypatch):
    flushed, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: flushed.append(os.readlink(f"/proc/self/fd/{file}")) or fsync(file))
    open_before = len(os.listdir("/proc/self/fd"))
    with new_folder(tmp_path / "a" / "b" / "out") as folder:
        (folder / "x").touch()
        assert not (tmp_path / "a" / "b" / "out").exists()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["out"]
    assert flushed == [str(tmp_path / "a" / "b")]
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_a_copy_holds_all_of_its_source(tmp_path):
    (tmp_path / "from" / "part").mkdir(parents=True)
    (tmp_path / "from" / "part" / "weights").write_text("1")
    copy_folder(tmp_path / "from", tmp_path / "copy")
    assert (tmp_path / "copy" / "part" / "weights").read_text() == "1"


@pytest.mark.parametrize(
    ("code", "raised"),
    [(errno.EEXIST, PlaitError), (errno.ENOTEMPTY, PlaitError), (errno.ENOTDIR, PlaitError), (errno.EIO, OSError), (errno.ENOSPC, OSError)],
)
def test_only_a_target_that_is_there_is_told_as_another_makers(tmp_path, monkeypatch, code, raised):
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(code, os.strerror(code))))
    with pytest.raises(raised), new_folder(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []
