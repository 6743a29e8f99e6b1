"""Folders that appear whole or not at all, whoever is killed while filling them."""

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
