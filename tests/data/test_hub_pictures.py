"""Imagefolders of the Hub: a split has the pictures, metadata and labels that the package `datasets` gives it, and no others."""

import errno
import importlib
import json
import re

import pytest

from plait.config.schema import SourceEntry
from plait.data.sources.open import open_source
from plait.errors import PlaitError
from tests import hub_server
from tests.data.packing import picture
from tests.hub_server import Repository

datasets = pytest.importorskip("datasets")
OTHERS = "pictures of other splits or configurations of the dataset, such as {}"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with hub_server.serving(monkeypatch, tmp_path) as server:
        monkeypatch.setattr(importlib.import_module("datasets.config"), "HF_ENDPOINT", server.url)
        monkeypatch.setattr(importlib.import_module("datasets.config"), "HF_HUB_OFFLINE", False)
        yield server


def opened(tmp_path, **entry):
    entry = SourceEntry(source="datasets", name="someone/data", **{"template": {"assistant": "x"}, **entry})
    return open_source(entry, seed=0, cache=tmp_path / "cache")


def ids(source):
    return [source[index]["id"] for index in range(len(source))]


def texts(source):
    return [source[index]["messages"][-1]["content"] for index in range(len(source))]


def with_configs(configs, names, **beside):
    card = f"---\nconfigs: {json.dumps(configs)}\n---\n".encode()
    files = {name: picture(number) for number, name in enumerate(names)}
    return Repository({"README.md": card, **files, **{name.replace("__", "/"): body for name, body in beside.items()}})


TWO = [{"config_name": "small", "data_files": "images/0*.jpg"}, {"config_name": "full", "data_files": "images/*.jpg"}]
SEVEN = [f"images/{name}.jpg" for name in ("00", "01", "02", "10", "11", "12", "13")]


@pytest.mark.parametrize("most", [1000, 1], ids=["few", "many"])
def test_a_configuration_has_its_own_pictures_alone(tmp_path, hub, monkeypatch, most):
    monkeypatch.setattr("plait.data.sources.hub_files._NAMED_MOST", most)
    hub.repositories["datasets", "someone/data"] = with_configs(TWO, SEVEN, **{"images__00.txt": b"x", "images__10.txt": b"y"})
    small = opened(tmp_path, options={"config": "small"})
    assert ids(small) == ["00", "01", "02"] and small[0]["fields"]["caption"] == "x"
    assert small.left_out == {OTHERS.format("images/10.jpg"): 4, ".txt without a picture of the split": 1}
    assert [file for file in hub.downloaded() if file.endswith("jpg")] == (SEVEN[:3] if most > 1 else SEVEN)
    full = opened(tmp_path, options={"config": "full"})
    assert len(full) == 7 and full.left_out == {}
    assert ids(opened(tmp_path, options={"config": "small"})) == ["00", "01", "02"]


def test_pictures_of_two_splits_in_one_folder_are_told_apart(tmp_path, hub):
    hub.repositories["datasets", "someone/data"] = Repository({f"data/{name}-1.png": picture(1) for name in ("train", "test")})
    for split in ("train", "test"):
        source = opened(tmp_path, split=split)
        assert ids(source) == [f"{split}-1"]
        assert source.left_out == {OTHERS.format(f"data/{'test' if split == 'train' else 'train'}-1.png"): 1}


@pytest.mark.parametrize("most", [1000, 1], ids=["few", "many"])
def test_pictures_of_several_first_folders_are_those_of_the_split(tmp_path, hub, monkeypatch, most):
    monkeypatch.setattr("plait.data.sources.hub_files._NAMED_MOST", most)
    names = ["cats/0.png", "cats/9.png", "dogs/0.png", "drafts/0.png"]
    hub.repositories["datasets", "someone/data"] = with_configs([{"config_name": "a", "data_files": ["cats/0*", "dogs/0*"]}], names)
    source = opened(tmp_path, template={"assistant": "{label}"})
    assert ids(source) == ["cats/0", "dogs/0"] and texts(source) == ["cats", "dogs"]
    assert source.left_out == {OTHERS.format("cats/9.png"): 2, ".md: not read": 1}
    assert "drafts/0.png" not in hub.downloaded()


def test_rows_of_metadata_with_pictures_of_another_split_are_left_out(tmp_path, hub):
    parts = [{"split": split, "path": [f"images/{digit}*.jpg", "images/metadata.csv"]} for split, digit in (("train", 0), ("test", 1))]
    rows = "file_name,text\n" + "".join(f"{name.partition('/')[2]},{name[7:9]}\n" for name in [*SEVEN, "images/99.jpg"])
    hub.repositories["datasets", "someone/data"] = with_configs(
        [{"config_name": "a", "data_files": parts}], SEVEN, **{"images__metadata.csv": rows.encode()}
    )
    source = opened(tmp_path, template=None)
    assert [source[index]["messages"][-1]["content"] for index in range(3)] == ["00", "01", "02"] and len(source) == 4
    with pytest.raises(PlaitError, match=r"99\.jpg"):  # a picture that is missing is a bad sample
        source[3]
    assert source.left_out == {OTHERS.format("images/10.jpg"): 4, "rows of metadata.csv with pictures of another split": 4}
    assert len(opened(tmp_path, template=None, split="test")) == 5


@pytest.mark.parametrize(
    ("settings", "fields"),
    [({}, {"text"}), ({"drop_metadata": True}, {"folder"}), ({"drop_metadata": True, "drop_labels": False}, {"folder"})],
    ids=str,
)
def test_a_card_may_drop_metadata(tmp_path, hub, settings, fields):
    hub.repositories["datasets", "someone/data"] = with_configs(
        [{"config_name": "a", "data_files": "cats/**", **settings}], ["cats/a.png"], **{"cats__metadata.csv": b"file_name,text\na.png,x\n"}
    )
    source = opened(tmp_path, template={"assistant": "x"})
    assert set(source[0]["fields"]) & {"text", "folder", "label"} == fields


@pytest.mark.parametrize(
    ("names", "settings", "labels"),
    [
        (["cats/0.png", "dogs/0.png"], {}, ["cats", "dogs"]),
        (["cats/0.png", "dogs/0.png"], {"drop_labels": True}, None),
        (["all/0.png", "all/1.png"], {}, None),
        (["train/cats/0.png", "test/cats/0.png", "test/dogs/0.png"], None, ["cats"]),
        (["all/0.png", "all/1.png"], {"drop_labels": False}, ["all", "all"]),
        (["cats/0.png", "dogs/far/0.png"], {}, None),
    ],
    ids=str,
)
def test_folders_are_labels_where_the_package_has_them_so(tmp_path, hub, names, settings, labels):
    configs = [] if settings is None else [{"config_name": "a", "data_files": "*/**", **settings}]
    hub.repositories["datasets", "someone/data"] = with_configs(configs, names)
    if labels is None:
        with pytest.raises(PlaitError, match=r"template.assistant wants the field 'label'; the records have folder"):
            opened(tmp_path, template={"assistant": "{label}"})
    else:
        assert texts(opened(tmp_path, template={"assistant": "{label}"})) == labels


@pytest.mark.parametrize("setting", [{"metadata_filenames": ["rows.csv"]}, {"filters": [["a", "==", 1]]}], ids=str)
def test_a_card_that_says_how_pictures_are_described_is_refused(tmp_path, hub, setting):
    hub.repositories["datasets", "someone/data"] = with_configs([{"config_name": "a", "data_files": "*/**", **setting}], ["cats/0.png"])
    line = f"its card sets how its files are parsed ({next(iter(setting))}), which is not followed: download it"
    with pytest.raises(PlaitError, match=re.escape(line)):
        opened(tmp_path)


def test_a_download_of_which_pictures_are_gone_is_not_read_for_the_whole(tmp_path, hub, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    repository = hub.repositories["datasets", "someone/data"] = Repository({f"train/{name}.png": picture(1) for name in "ab"})
    assert len(opened(tmp_path)) == 2
    repository.fault = 503
    assert len(opened(tmp_path)) == 2
    (gone,) = tmp_path.rglob("train/b.png")
    gone.unlink()
    with pytest.raises(PlaitError, match=r"could not be asked \(\w+\), and nothing was downloaded of it before: try again"):
        opened(tmp_path)


def test_a_cache_that_cannot_be_written_is_told_and_the_dataset_read(tmp_path, hub, monkeypatch, caplog):
    def refuse(path, body):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("plait.data.sources.hub_files.write_whole", refuse)
    hub.repositories["datasets", "someone/data"] = Repository({"train/a.png": picture(1)})
    assert len(opened(tmp_path)) == 1
    assert re.search(r"someone/data: what was downloaded of it cannot be noted in .*someone--data.*: Read-only file system", caplog.text)
