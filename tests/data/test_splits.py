"""Held-out files of a folder are never trained on, whatever the kind of source and however names tell the split."""

import json

import pytest

from plait import cli
from plait.config.schema import SourceEntry
from plait.data import splits
from plait.data.sources.open import open_source
from plait.errors import PlaitError
from tests.data.packing import pack, picture

RECIPE = """family: theworld
preset: tiny
data:
  train: [{{source: folder, path: {root}}}]
  validation: [{{source: folder, path: {root}}}]
train: {{steps: 1, global_batch: 1}}
"""


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000.tar", "train"), ("TRAIN.jsonl", "train"), ("train2017", "train"), ("trainval.json", "train"),
        ("training_set", "train"), ("val2014", "validation"), ("valid.csv", "validation"), ("validation-1.tar", "validation"),
        ("cats-dev.jsonl", "validation"), ("mydata_test_1.tar", "test"), ("Testing", "test"), ("test-dev2015", "test"),
        ("trained.jsonl", None), ("values.jsonl", None), ("device-1.tar", None), ("contest.tar", None), ("latest", None), ("a.tar", None),
    ],
)  # fmt: skip
def test_a_name_tells_its_split_by_a_word_of_its_own(name, split):
    assert splits.of(name) == split


def folders(root, *names):
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        (root / name / "a.png").write_bytes(picture(number))
        (root / name / "a.txt").write_text(name)
    return root


def opened(kind, path, listed, **more):
    return open_source(SourceEntry(source=kind, path=str(path), **more), seed=0, split=listed)


def answers(source):
    return [source[i]["messages"][-1]["content"] for i in range(len(source))]


@pytest.mark.parametrize(
    ("train", "held_out"), [("train", "validation"), ("train2017", "val2017"), ("Training", "dev"), ("train", "valid")]
)
def test_a_folder_of_splits_gives_each_list_its_own_and_counts_the_others(tmp_path, train, held_out):
    root = folders(tmp_path, train, held_out, "test", "extra")
    (root / "cover.png").write_bytes(picture(9))
    (root / "README").write_text("x")
    source = opened("folder", root, "train")
    assert (answers(source), source[0]["id"]) == ([train], "a")
    assert source.left_out == {f"folders and pictures beside {train}/, such as cover.png": 4}
    assert answers(opened("folder", root, "validation")) == [held_out]
    asked = opened("folder", root, "train", split="test")
    assert (answers(asked), asked.left_out) == (["test"], {})


@pytest.mark.parametrize("names", [("train", "car", "bus"), ("crash-test", "crash-train"), ("a", "b"), ("test", "testing")])
def test_folders_that_are_not_of_two_splits_are_all_read(tmp_path, names):
    assert sorted(answers(opened("folder", folders(tmp_path, *names), "train"))) == sorted(names)


def test_a_split_that_is_not_there_or_there_twice_is_refused_with_those_that_are(tmp_path):
    root = folders(tmp_path / "a", "train", "test")
    with pytest.raises(
        PlaitError, match=r"has folders of splits, and none of validation \(test, train\): name one with `split`, as in split"
    ):
        opened("folder", root, "validation")
    root = folders(tmp_path / "b", "train2014", "train2017", "val2017")
    with pytest.raises(PlaitError, match=r"has several folders of split train \(train2014, train2017\): name one with `split`"):
        opened("folder", root, "train")
    with pytest.raises(PlaitError, match=r"b/train is not a folder; .*b has train2014, train2017, val2017$"):
        opened("folder", root, "train", split="train")


def test_metadata_of_all_splits_is_refused_where_their_folders_would_be_read_without_it(tmp_path):
    root = folders(tmp_path, "train", "test")
    (root / "metadata.jsonl").write_text('{"file_name": "train/a.png", "text": "x"}\n{"file_name": "test/a.png", "text": "y"}\n')
    with pytest.raises(PlaitError, match=r"metadata.jsonl lies beside train/ and test/: write the rows of each into its own folder"):
        opened("folder", root, "train")


@pytest.mark.parametrize("kind", ["jsonl", "datasets", "shards"])
@pytest.mark.parametrize("names", [("train", "test"), ("train-0", "val-0"), ("cats-train", "cats-test"), ("train_1", "dev_1")])
def test_files_of_other_splits_are_counted_and_not_trained_on(tmp_path, kind, names):
    for name in names:
        if kind == "shards":
            pack(tmp_path / f"{name}.tar", [("a.txt", name.encode())])
        else:
            (tmp_path / f"{name}.jsonl").write_text(json.dumps({"caption": name}) + "\n")
    ending = "tar" if kind == "shards" else "jsonl"
    source = opened(kind, tmp_path, "train")
    assert answers(source) == [names[0]]
    assert source.left_out == {f"files of other splits or formats, such as {names[1]}.{ending}": 1}
    if "test" in names[1]:
        with pytest.raises(PlaitError, match=rf"no file of split 'validation' in .*; it has .*{names[1]}\.{ending}"):
            opened(kind, tmp_path, "validation")
        assert answers(opened(kind, tmp_path, "train", split="test")) == [names[1]]
    else:
        assert answers(opened(kind, tmp_path, "validation")) == [names[1]]


def test_a_file_whose_name_begins_like_a_split_is_read(tmp_path):
    (tmp_path / "values.jsonl").write_text('{"caption": "x"}\n')
    assert answers(opened("jsonl", tmp_path, "train")) == ["x"]


def test_the_look_tells_which_part_of_a_folder_is_trained_on(tmp_path, capsys):
    root = folders(tmp_path / "pictures", "train", "validation", "test")
    (tmp_path / "c.yaml").write_text(RECIPE.format(root=root))
    assert cli.main(["data", "inspect", str(tmp_path / "c.yaml"), f"--out={tmp_path / 'out'}"]) == 0
    said = capsys.readouterr().out
    assert "1 samples, all looked at" in said and "folders and pictures beside train/, such as test" in said
    assert "held out too" not in said
