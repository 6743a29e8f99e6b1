"""How records of text files are named, in reasons and in samples without an id: by the line that an editor shows."""

import pytest

from plait.config.schema import SourceEntry
from plait.data.formats import index
from plait.data.sources.indexed import LAYOUTS, index_records
from plait.data.sources.open import open_source
from plait.errors import BadSample


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
