"""How records of text files are named, in reasons and in samples without an id: by the line that an editor shows."""

import json

import pytest
import yaml

from plait import cli
from plait.config.schema import SourceEntry
from plait.data.formats import index
from plait.data.sources.indexed import LAYOUTS, index_records
from plait.data.sources.open import open_source
from plait.errors import BadSample
from tests.data.packing import picture
from tests.families.test_conformance import TINY


def opened(kind, path, cache):
    return open_source(SourceEntry(source=kind, path=str(path)), seed=0, cache=cache)


def name_of(source, index):
    """The name of a record, or the first word of the reason why it cannot be read."""
    try:
        return source.reader.read(index).id
    except BadSample as error:
        return str(error).split(" ")[0]


@pytest.mark.parametrize(
    ("name", "body", "names"),
    [
        ("a.csv", 'caption,n\n"one\nrow",1\n\nx,2\n"y\n\n\nz",3,4\nlast,5\n', ["a.csv:2", "a.csv:5", "a.csv:6", "a.csv:10"]),
        ("a.tsv", 'caption\tn\r\n"one\r\nrow"\t1\r\nx\t2\r\n', ["a.tsv:2", "a.tsv:4"]),
        ("a.csv", 'caption,n\r"one\rrow",1\rx,2', ["a.csv:2", "a.csv:4"]),
        ("a.csv", '"cap\ntion",n\nx,2\n', ["a.csv:3"]),
        ("a.jsonl", '\n{"caption": "x"}\n\n  \n{"caption": "y"}\n{,}\n', ["a.jsonl:2", "a.jsonl:5", "a.jsonl:6"]),
        ("a.json", '[\n  {\n    "caption": "x"\n  },\n  {\n    "caption": null\n  }\n]\n', ["a.json:2", "a.json:5"]),
        ("a.json", '{"data":\n [{"caption": "x"},\n\n  {"caption": "y"}]}', ["a.json:2", "a.json:4"]),
        ("a.json", '[{"caption": "x"}, {"caption": "y"},\n{"caption": "z"}]', ["a.json[0]", "a.json[1]", "a.json[2]"]),
    ],
)
def test_a_record_is_named_by_the_line_on_which_it_begins(tmp_path, name, body, names):
    (tmp_path / name).write_bytes(body.encode())
    source = opened("datasets", tmp_path / name, tmp_path / "cache")
    assert [name_of(source, i) for i in range(len(source))] == names


def test_an_index_without_lines_is_made_again(tmp_path):
    (tmp_path / "a.csv").write_text('caption\n"x\ny"\nz\n')
    head, _ = index_records(tmp_path / "a.csv", LAYOUTS[".csv"], tmp_path / "cache")
    arrays = {name: array for name, array in index.map_arrays(head).items() if name != "line"}
    facts = {name: fact for name, fact in head.facts.items() if name != "lines"}
    head.path.write_bytes(index.pack(head.stamp, facts, arrays))
    assert opened("datasets", tmp_path / "a.csv", tmp_path / "cache")[1]["id"] == "a.csv:4"
    assert index_records(tmp_path / "a.csv", LAYOUTS[".csv"], tmp_path / "cache")[1] is False


FILES = {
    "csv": ("a.csv", 'image,caption\nx.png,"two\nlines"\nno.png,b\nx.png,""\n', ["a.csv:4", "a.csv:5"]),
    "jsonl": ("a.jsonl", '{"caption": "x"}\n\n{"image": "no.png", "caption": "b"}\n{"id": "own", "caption": ""}\n', ["a.jsonl:3", "own"]),
    "metadata": ("metadata.csv", "file_name,caption\nx.png,a\nno.png,b\nx.png,\n", ["metadata.csv:3", "metadata.csv:4"]),
    "folder": ("y.json", "{", ["y"]),
}


@pytest.mark.parametrize("form", FILES)
@pytest.mark.parametrize("workers", [0, 1])
def test_the_quarantine_names_a_bad_sample_as_its_source_does(tmp_path, form, workers):
    name, body, bad = FILES[form]
    (tmp_path / "data").mkdir()
    for picture_name in ("x.png", *(["y.png"] if form == "folder" else [])):
        (tmp_path / "data" / picture_name).write_bytes(picture(1))
    (tmp_path / "data" / "x.txt").write_text("a caption")
    (tmp_path / "data" / name).write_text(body)
    kind = {"csv": "datasets", "jsonl": "jsonl"}.get(form, "folder")
    entry = {"source": kind, "path": str(tmp_path / "data" / (name if kind != "folder" else ""))}
    recipe = {"data": {"train": [entry], "workers": workers, "cache": str(tmp_path / "cache")}, "train": {"steps": 2, "global_batch": 3}}
    recipe |= {"family": "theworld", "guard": {"max_bad_fraction": 0.9, "no_input": "continue"}, "track": {"tensorboard": False}}
    (tmp_path / "recipe.yaml").write_text(yaml.dump({**recipe, **yaml.safe_load(TINY["theworld"])}))
    assert cli.main(["train", str(tmp_path / "recipe.yaml"), f"--run={tmp_path / 'run'}"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert {row["sample"] for row in rows} == set(bad)
