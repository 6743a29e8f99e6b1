"""Datasets of the Hub that are JSON, CSV or picture files are read as local ones are, and those that it refuses are not read."""

import importlib
import io
import json
import re
import zipfile

import huggingface_hub
import pytest

from plait import cli
from plait.config.schema import SourceEntry
from plait.data.sources.open import open_source
from plait.errors import BadSample, PlaitError
from tests import hub_server
from tests.data.packing import picture
from tests.hub_server import Repository

datasets = pytest.importorskip("datasets")
CSV = b"caption,label\nNA,1\nnull,2\n007,3\n,4\n2024-01-15,5\n"
JSON = b'{"caption": "NA"}\n{"caption": "null"}\n{"caption": "007"}\n{"caption": null}\n{"caption": "a", "caption": "b"}\n'


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with hub_server.serving(monkeypatch, tmp_path) as server:
        monkeypatch.setattr(importlib.import_module("datasets.config"), "HF_ENDPOINT", server.url)
        monkeypatch.setattr(importlib.import_module("datasets.config"), "HF_HUB_OFFLINE", False)
        yield server


def told(source):
    texts = []
    for index in range(len(source)):
        try:
            texts.append(source[index]["messages"][-1]["content"])
        except BadSample as error:
            texts.append(str(error))
    return texts


@pytest.mark.parametrize(
    ("file", "body", "last"), [("train.csv", CSV, "2024-01-15"), ("train.jsonl", JSON, "train.jsonl:5: the key 'caption' is given twice")]
)
def test_a_dataset_of_texts_keeps_them_as_they_are(tmp_path, hub, file, body, last):
    hub.repositories["datasets", "someone/data"] = Repository({file: body})
    source = open_source(SourceEntry(source="datasets", name="someone/data"), seed=0, cache=tmp_path / "cache")
    assert told(source) == ["NA", "null", "007", "no text: `caption` is null", last]
    with pytest.raises(PlaitError, match="someone/data has no split 'test'; it has train"):
        open_source(SourceEntry(source="datasets", name="someone/data", split="test"), seed=0, cache=tmp_path / "cache")


ENTRY = SourceEntry(source="datasets", name="someone/data")


@pytest.fixture
def no_waits(monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)


def parquet(**columns):
    import pyarrow
    import pyarrow.parquet

    body = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), body)
    return body.getvalue()


FORMATS = {"train.csv": CSV, "train.parquet": lambda: parquet(caption=["NA", "null"]), "train/a.png": picture(3)}


def published(file):
    body = FORMATS[file]
    beside = {"train/a.txt": b"beside it"} if file.endswith(".png") else {}
    return Repository({file: body() if callable(body) else body, **beside})


@pytest.mark.parametrize("file", FORMATS)
def test_the_last_download_is_read_where_the_hub_cannot_be_asked_and_that_is_told(tmp_path, hub, no_waits, caplog, file):
    repository = hub.repositories["datasets", "someone/data"] = published(file)
    first = open_source(ENTRY, seed=0, cache=tmp_path / "cache")
    assert "could not be asked" not in caplog.text
    repository.fault = 503
    again = open_source(ENTRY, seed=0, cache=tmp_path / "cache")
    assert told(again) == told(first) and again.fingerprint == first.fingerprint
    unasked = r"someone/data: the Hub could not be asked \(\w+\)"
    *asked, line = [record.getMessage() for record in caplog.records if record.name.startswith("plait")]
    assert re.fullmatch(unasked + "; it is asked again in 1 s", asked[0]) and len(asked) == 3
    assert re.fullmatch(unasked + ", so what was downloaded of it before is read", line)


@pytest.mark.parametrize("file", FORMATS)
@pytest.mark.parametrize("fault", [429, 503])
def test_a_passing_failure_of_the_hub_changes_nothing(tmp_path, hub, monkeypatch, caplog, file, fault):
    repository = hub.repositories["datasets", "someone/data"] = published(file)
    first = open_source(ENTRY, seed=0, cache=tmp_path / "cache")
    repository.fault = fault
    waits = []
    monkeypatch.setattr("time.sleep", lambda wait_s: waits.append(wait_s) or setattr(repository, "fault", None))
    again = open_source(ENTRY, seed=0, cache=tmp_path / "other")
    assert waits[0] == 1 and told(again) == told(first) and again.fingerprint == first.fingerprint
    assert "is read" not in caplog.text


@pytest.mark.parametrize("file", FORMATS)
def test_a_job_without_a_network_reads_what_inspect_downloaded_on_a_login_node(tmp_path, hub, monkeypatch, caplog, file):
    monkeypatch.setattr(importlib.import_module("datasets.config"), "HF_DATASETS_CACHE", tmp_path / "home")
    hub.repositories["datasets", "someone/data"] = published(file)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("family: theworld\nmodel: {base: tiny}\ndata: {train: [{source: datasets, name: someone/data}]}\ntrain: {steps: 1}\n")
    with monkeypatch.context() as offline:
        for name in ("huggingface_hub.constants", "datasets.config"):
            offline.setattr(importlib.import_module(name), "HF_HUB_OFFLINE", True)
        with pytest.raises(PlaitError) as error:
            open_source(ENTRY, seed=0, cache=tmp_path / "node")
    assert str(error.value) == (
        "data source someone/data: datasets cannot load someone/data (train): it is not in the cache, and HF_HUB_OFFLINE is set: "
        "unset it, or download it before: plait data inspect CONFIG, with the same HF_HOME"
    )
    assert cli.main(["data", "inspect", str(recipe), f"--out={tmp_path / 'look'}"]) in (0, 2)
    online = told(open_source(ENTRY, seed=0, cache=None))
    for name in ("huggingface_hub.constants", "datasets.config"):
        monkeypatch.setattr(importlib.import_module(name), "HF_HUB_OFFLINE", True)
    assert told(open_source(ENTRY, seed=0, cache=tmp_path / "node")) == online
    assert "so what was downloaded of it before is read" in caplog.text


@pytest.mark.parametrize("file", FORMATS)
def test_a_hub_that_does_not_answer_and_of_which_nothing_was_downloaded_is_refused(tmp_path, hub, no_waits, file):
    repository = hub.repositories["datasets", "someone/data"] = published(file)
    repository.fault = 503
    line = r"datasets cannot load someone/data \(train\): the Hub could not be asked \(\w+\), and nothing was downloaded of it before: "
    with pytest.raises(PlaitError, match=line + r"try again when it answers$"):
        open_source(ENTRY, seed=0, cache=tmp_path / "cache")


def test_a_copy_with_the_guesses_of_the_package_is_not_read(tmp_path, hub, no_waits):
    repository = hub.repositories["datasets", "someone/data"] = published("train.csv")
    cache = tmp_path / "cache"
    datasets.load_dataset("someone/data", cache_dir=str(cache))
    repository.fault = 503
    line = "someone/data: the Hub could not be asked, and the package's own copy of its csv files holds guesses (`007` as 7): try again"
    with pytest.raises(PlaitError, match=re.escape(line)):
        open_source(ENTRY, seed=0, cache=cache)


def test_the_last_download_is_that_of_the_last_format(tmp_path, hub, no_waits):
    repository = hub.repositories["datasets", "someone/data"] = published("train.csv")
    open_source(ENTRY, seed=0, cache=tmp_path / "cache")
    repository.files = {"train.parquet": parquet(caption=["new"])}
    huggingface_hub.HfFileSystem.clear_instance_cache()  # it keeps what it listed of a commit
    assert told(open_source(ENTRY, seed=0, cache=tmp_path / "cache")) == ["new"]
    repository.fault = 503
    assert told(open_source(ENTRY, seed=0, cache=tmp_path / "cache")) == ["new"]


@pytest.mark.parametrize("file", FORMATS)
@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"fault": 403}, "the Hub refuses access to it (403): ask for access at {url}/datasets/someone/data, and set HF_TOKEN"),
        ({"fault": 401}, "someone/data"),
        ({"gated": True}, "it is gated: accept its licence at {url}/datasets/someone/data, and set HF_TOKEN"),
        ({"private": True}, "there is no {url}/datasets/someone/data, or it is private"),
    ],
    ids=["403", "401", "gated", "private"],
)
def test_what_the_hub_refuses_is_refused_although_it_was_downloaded_before(tmp_path, hub, caplog, file, change, line):
    repository = hub.repositories["datasets", "someone/data"] = published(file)
    open_source(ENTRY, seed=0, cache=tmp_path / "cache")
    for name, value in change.items():
        setattr(repository, name, value)
    with pytest.raises(PlaitError) as error:
        open_source(ENTRY, seed=0, cache=tmp_path / "cache")
    assert line.format(url=hub.url) in str(error.value) and "\n" not in str(error.value)
    assert "could not be asked" not in caplog.text


def with_card(card, **files):
    return Repository({"README.md": f"---\n{card}\n---\n".encode(), **{name.replace("_", "."): body for name, body in files.items()}})


CLASSES = "dataset_info:\n  features:\n  - {name: kind, dtype: {class_label: {names: {'0': cat, '1': dog}}}}\n"
KINDS = {
    "train_csv": b"kind,note\n1,NA\n0,007\ndog,null\n-1,x\n7,x\nnine,x\n",
    "train_jsonl": b"".join(
        json.dumps({"kind": kind, "note": note}).encode() + b"\n"
        for kind, note in ((1, "NA"), (0, "007"), ("dog", "null"), (-1, "x"), (7, "x"), ("nine", "x"))
    ),
}


@pytest.mark.parametrize("file", KINDS)
def test_classes_of_a_card_are_named_and_other_texts_stay(tmp_path, hub, file):
    hub.repositories["datasets", "someone/data"] = with_card(CLASSES, **{file: KINDS[file]})
    for columns, name in (({}, "kind"), ({"sort": "kind"}, "sort")):
        entry = SourceEntry(source="datasets", name="someone/data", columns=columns, template={"assistant": f"{{{name}}} {{note}}"})
        null, beyond, unknown = told(source := open_source(entry, seed=0, cache=tmp_path / "cache"))[3:]
        assert told(source)[:3] == ["dog NA", "cat 007", "dog null"]
        assert "is null" in null and f"`{name}` is class 7 of 2" in beyond and "no name or number of one of its 2 classes" in unknown


@pytest.mark.parametrize("file", KINDS)
def test_a_column_under_the_name_of_a_class_keeps_its_values(tmp_path, hub, file):
    hub.repositories["datasets", "someone/data"] = with_card(CLASSES, **{file: KINDS[file]})
    entry = SourceEntry(source="datasets", name="someone/data", columns={"kind": "note"}, template={"assistant": "{kind}"})
    assert told(open_source(entry, seed=0, cache=tmp_path / "cache"))[:2] == ["NA", "007"]


def test_a_card_that_says_how_files_are_parsed_is_refused(tmp_path, hub):
    card = "configs:\n- {config_name: default, data_files: train.csv, column_names: [a, b]}"
    hub.repositories["datasets", "someone/data"] = with_card(card, train_csv=b"1,2\n")
    with pytest.raises(
        PlaitError, match=r"its card sets how its files are parsed \(.*column_names.*\), which is not followed: download it"
    ):
        open_source(ENTRY, seed=0, cache=tmp_path / "cache")


def test_files_of_another_format_are_counted(tmp_path, hub):
    hub.repositories["datasets", "someone/data"] = Repository({"train.csv": CSV, "train-2.csv": CSV, "train-3.jsonl": JSON})
    source = open_source(ENTRY, seed=0, cache=tmp_path / "cache")
    assert len(source) == 10
    assert source.left_out == {"data files of other formats than csv, such as train-3.jsonl": 1}


def test_an_imagefolder_is_read_as_a_local_one(tmp_path, hub):
    pictures = {f"train/{name}.png": picture(1) for name in "abc"}
    rows = b"file_name,text\na.png,NA\nb.png,007\nc.png,\n"
    hub.repositories["datasets", "someone/data"] = Repository({**pictures, "train/metadata.csv": rows, "test/a.png": picture(2)})
    source = open_source(ENTRY, seed=0, cache=tmp_path / "cache")
    assert told(source) == ["NA", "007", "no text: `text` is null"] and source[0]["images"] == [picture(1)]
    hub.repositories["datasets", "someone/sorted"] = Repository({"cat/a.png": picture(1), "dog/b.png": picture(1), "dog/b.txt": b"x"})
    entry = SourceEntry(source="datasets", name="someone/sorted", template={"assistant": "{folder}"})
    assert told(open_source(entry, seed=0, cache=tmp_path / "cache")) == ["cat", "dog"]


def zipped():
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as file:
        file.writestr("b.png", picture(1))
    return body.getvalue()


@pytest.mark.parametrize(
    ("files", "line"),
    [
        (["train/a.psd"], "none of its files is a picture of a format that is read, as train/a.psd: download it"),
        (["train/pictures.zip", "train/a.png"], "its pictures are packed, as in train/pictures.zip: download it"),
    ],
)
def test_an_imagefolder_that_no_reader_takes_is_refused(tmp_path, hub, files, line):
    hub.repositories["datasets", "someone/data"] = Repository({name: zipped() if name.endswith(".zip") else picture(1) for name in files})
    with pytest.raises(PlaitError, match=re.escape(line)):
        open_source(ENTRY, seed=0, cache=tmp_path / "cache")
