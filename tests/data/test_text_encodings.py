"""What text files are told to be: their encoding, their delimiter, and what of one object is a record."""

import json
import re

import pytest

from plait.data.formats.encodings import wide_encoding
from plait.errors import BadSample, PlaitError
from tests.data.test_dirty_records import opened, outcomes, picture

WIDE = {
    "utf-16": "UTF-16", "utf-32": "UTF-32",
    "utf-16-le": "UTF-16LE", "utf-16-be": "UTF-16BE", "utf-32-le": "UTF-32LE", "utf-32-be": "UTF-32BE",
}  # fmt: skip


@pytest.mark.parametrize("encoding", WIDE)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_file_in_a_wide_encoding_is_told_as_that(tmp_path, encoding, name):
    body = "caption,n\nx,1\n" if name == "a.csv" else '{"caption": "x"}\n'
    (tmp_path / name).write_bytes(body.encode(encoding))
    kind = "datasets" if name == "a.csv" else "jsonl"
    says, ending = WIDE[encoding], name.partition(".")[2]
    with pytest.raises(PlaitError, match=rf"is {says}; \w+ is UTF-8: iconv -f {says} -t UTF-8 {name} > new\.{ending}$"):
        opened(kind, tmp_path / name)


@pytest.mark.parametrize("encoding", WIDE)
def test_a_caption_in_a_wide_encoding_is_a_bad_sample(tmp_path, encoding):
    for name, text in (("a", b"a cat"), ("b", "a dog".encode(encoding))):
        (tmp_path / f"{name}.png").write_bytes(picture(1))
        (tmp_path / f"{name}.txt").write_bytes(text)
    good, bad = outcomes(opened("folder", tmp_path))
    assert good == "a cat"
    assert isinstance(bad, BadSample) and str(bad).endswith(f"b.txt is not UTF-8 text: it is {WIDE[encoding]}")


@pytest.mark.parametrize("text", ["é", "a", "ab", "日本", "\ufeffx", "a\0b"])
def test_short_texts_in_utf8_are_of_no_wide_encoding(text):
    assert wide_encoding(text.encode()) is None


@pytest.mark.parametrize(
    ("header", "column"),
    [
        ('"caption";"a, b, c, d"', "a, b, c, d"), ('"a; ""b""; c";caption', 'a; "b"; c'), ('"x,\ny,\nz";caption', "x,\ny,\nz"),
        ('"a|b|c|d",caption', "a|b|c|d"), ('"a,b"\tcaption', "a,b"), ("caption;n", "n"), ("caption,n", "n"),
    ],
)  # fmt: skip
def test_the_delimiter_is_that_of_the_header_outside_of_quotes(tmp_path, header, column):
    delimiter = "\t" if "\t" in header else "," if header.endswith((",caption", ",n")) else ";"
    first = header.startswith(("caption", '"caption"'))
    row = delimiter.join(["hello", "1"] if first else ["1", "hello"])
    (tmp_path / "a.csv").write_text(f"{header}\n{row}\n", newline="")
    source = opened("datasets", tmp_path / "a.csv")
    assert outcomes(source) == ["hello"]
    assert source[0]["fields"][column] == "1"


@pytest.mark.parametrize(
    ("items", "told"),
    [
        ([{}, None], ["nothing", "a.json[1] holds null, not an object of fields"]),
        ([{"caption": "x"}, None, {"caption": "y"}], ["x", "a.json[1] holds null, not an object of fields", "y"]),
        ([{"caption": "x"}, 3], ["x", "a.json[1] holds a number, not an object of fields"]),
        (
            ["a", {"caption": "x"}, [1]],
            ["a.json[0] holds text, not an object of fields", "x", "a.json[2] holds a list, not an object of fields"],
        ),
    ],
)
@pytest.mark.parametrize("wrapped", [True, False])
def test_an_item_of_an_array_of_records_that_is_no_object_is_a_bad_sample(tmp_path, items, told, wrapped):
    (tmp_path / "a.json").write_text(json.dumps({"data": items} if wrapped else items))
    source = opened("jsonl", tmp_path / "a.json")
    assert len(source) == len(items)
    for i, right in enumerate(told):
        if right == "nothing":
            assert source[i]["messages"] == []
        elif "holds" in right:
            with pytest.raises(BadSample, match=re.escape(right)):
                source[i]
        else:
            assert source[i]["messages"][-1]["content"] == right
