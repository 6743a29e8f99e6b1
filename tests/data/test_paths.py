"""Patterns to files."""

from pathlib import Path

import fsspec
import pytest

from plait.data import paths
from plait.errors import BadSample, PlaitError


@pytest.fixture
def folder(tmp_path):
    for name in ("train-00000.tar", "train-00001.tar", "validation-00000.tar", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def names(pattern, **options):
    return [Path(path).name for path in paths.files(str(pattern), ".tar", **{"split": None} | options)]


def test_braces_count_and_list():
    assert paths.braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert paths.braces("{a,b}-{1..2}") == ["a-1", "a-2", "b-1", "b-2"]
    assert paths.braces("plain") == ["plain"]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("x-{1...3}", "cannot read the braces in 'x-{1...3}'"),
        ("x-{3..1}", "is empty: 3 is after 1"),
        ("x-{0..99999999}.tar", "stand for 100,000,000 paths, more than 1,000,000"),
        ("{0..999}{0..999}{a,b}", "stand for 2,000,000 paths"),
        ("{0.." + "9" * 5000 + "}", "cannot read the braces"),
    ],
)
def test_braces_that_say_nothing_are_refused(pattern, words):
    with pytest.raises(PlaitError) as caught:
        paths.braces(pattern)
    assert words in str(caught.value)


def test_files_come_from_a_file_braces_a_glob_or_a_folder(folder):
    assert names(folder / "train-00001.tar") == ["train-00001.tar"]
    assert names(folder / "train-{00000..00001}.tar") == ["train-00000.tar", "train-00001.tar"]
    assert names(folder / "*-00000.tar") == ["train-00000.tar", "validation-00000.tar"]
    assert names(folder, split="validation") == ["validation-00000.tar"]


def test_a_folder_with_splits_never_gives_held_out_files_to_training(folder):
    assert names(folder) == ["train-00000.tar", "train-00001.tar"]
    assert names(folder, default_split="validation") == ["validation-00000.tar"]
    with pytest.raises(PlaitError, match=r"no file of split 'test' in .*; it has train-00000.tar, train-00001.tar, validation-00000.tar"):
        names(folder, split="test")


def test_a_folder_without_split_names_gives_all(tmp_path):
    for name in ("b.tar", "a.tar"):
        (tmp_path / name).write_bytes(b"x")
    assert names(tmp_path) == ["a.tar", "b.tar"]


def test_nothing_found_is_an_error_that_shows_the_pattern(folder):
    with pytest.raises(PlaitError, match=r"no file matches '.*test-\*\.tar'"):
        names(folder / "test-*.tar")
    with pytest.raises(PlaitError, match=r"there is no file '.*train-00002\.tar'"):
        names(folder / "train-{00001..00002}.tar")
    with pytest.raises(PlaitError, match="twice"):
        names(folder / "{train-00000,train-00000}.tar")


def test_a_variable_in_a_path_is_spelled_out(folder, monkeypatch):
    monkeypatch.setenv("SOMEWHERE", str(folder))
    assert names("$SOMEWHERE/train-00000.tar") == ["train-00000.tar"]
    with pytest.raises(PlaitError, match=r"^\$ELSEWHERE/train-00000\.tar needs the environment variable ELSEWHERE, which is not set$"):
        names("$ELSEWHERE/train-00000.tar")


def test_addresses_are_listed_by_their_store():
    store = fsspec.filesystem("memory")
    for name in ("train-0.tar", "train-1.tar", "validation-0.tar"):
        store.pipe(f"/listing/{name}", b"x")
    assert names("memory://listing/train-{0..1}.tar") == ["train-0.tar", "train-1.tar"]
    assert paths.files("memory://listing/*.tar", ".tar", split=None)[0].startswith("memory://")
    assert names("memory://listing") == ["train-0.tar", "train-1.tar"]
    with pytest.raises(PlaitError, match="no file matches 'memory://listing/none-"):
        names("memory://listing/none-*.tar")


@pytest.mark.parametrize("root", [".", "..", "../folder"])
def test_a_plain_name_is_inside_of_a_relative_folder_and_one_above_it_is_not(tmp_path, monkeypatch, root):
    (tmp_path / "work" / "deep").mkdir(parents=True)
    (tmp_path / "work" / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "work" / "deep")
    (Path(root) / "a.png").write_bytes(b"x")
    assert paths.inside(Path(root), "a.png", anywhere=False).read_bytes() == b"x"
    for name in ("../a.png", "../../a.png", str(tmp_path / "a.png")):
        with pytest.raises(BadSample, match="leaves the folder"):
            paths.inside(Path(root), name, anywhere=False, links=True)
