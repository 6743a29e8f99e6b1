"""Datasets of the Hub that are JSON or CSV files are read as local ones are: no cell is taken for another type, or for nothing."""

import importlib

import pytest

from plait.config.schema import SourceEntry
from plait.data.sources.open import open_source
from plait.errors import BadSample, PlaitError
from tests import hub_server
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


def test_the_last_download_is_read_where_the_hub_cannot_be_asked_and_a_card_of_classes_is_heeded(tmp_path, hub):
    hub.repositories["datasets", "someone/data"] = Repository({"train.csv": CSV})
    entry = SourceEntry(source="datasets", name="someone/data")
    first = open_source(entry, seed=0, cache=tmp_path / "cache")
    hub.repositories["datasets", "someone/data"].fault = 403
    again = open_source(entry, seed=0, cache=tmp_path / "cache")
    assert told(again) == told(first) and again.fingerprint == first.fingerprint
    with pytest.raises(PlaitError, match=r"datasets cannot load someone/data \(train\): "):
        open_source(entry, seed=0, cache=tmp_path / "other")
    card = b"---\ndataset_info:\n  features:\n  - {name: kind, dtype: {class_label: {names: {'0': cat, '1': dog}}}}\n---\n"
    hub.repositories["datasets", "someone/classes"] = Repository({"train.csv": b"kind\n1\n0\n", "README.md": card})
    entry = SourceEntry(source="datasets", name="someone/classes", template={"assistant": "{kind}"})
    assert told(open_source(entry, seed=0, cache=tmp_path / "cache")) == ["dog", "cat"]
