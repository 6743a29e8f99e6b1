"""Records as people have them: absent text, odd names, wrong types, paths that lead elsewhere. Each is right, or one bad sample.

The same record gives the same result through every kind of source that can hold it.
"""

import csv
import io
import json
import os
import pickle
import re
import shutil
import tarfile
from collections import Counter

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from plait.config.schema import SourceEntry, Template
from plait.data import text
from plait.data.sources.open import open_source
from plait.errors import BadSample, PlaitError, printable, sample_errors
from tests.conftest import REAL_DATA
from tests.data.packing import pack, picture

CASES = REAL_DATA.parent / "cases"
NO_TEXT = "no text at all"
CAPTION = Template(assistant="{caption}")


def opened(kind, path, cache=None, **more):
    return open_source(SourceEntry(source=kind, path=str(path), **more), seed=0, cache=cache)


def outcomes(source):
    """The answer of each sample, or why it is a bad one."""
    told = []
    for i in range(len(source)):
        try:
            turns = source[i]["messages"]
            told.append(turns[-1]["content"] if turns else NO_TEXT)
        except BadSample as error:
            told.append(error)
    return told


def reasons(source):
    return Counter(str(told) for told in outcomes(source) if isinstance(told, BadSample))


def lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json rows", "parquet", "shards", "folder"])
@pytest.mark.parametrize("template", [None, CAPTION], ids=["caption", "template"])
@pytest.mark.parametrize("nothing", [None, float("nan")], ids=["null", "nan"])
def test_absent_text_is_absent_through_every_source(tmp_path, kind, template, nothing):
    captions = ["a frog", nothing, "None", "nan"]
    records = [{"caption": caption} for caption in captions]
    if kind in ("jsonl", "json rows"):
        path = lines(
            tmp_path / "a.jsonl", records if kind == "jsonl" else [{"caption": caption} for caption in ("a frog", None, "None", "nan")]
        )
        kind = kind.replace("json rows", "datasets")
    elif kind == "parquet":
        datasets = pytest.importorskip("datasets")
        path = tmp_path / "a.parquet"
        datasets.Dataset.from_dict({"caption": [c if isinstance(c, str) else None for c in captions]}).to_parquet(path)
        kind = "datasets"
    else:
        bodies = {f"{i}.json": json.dumps(record).encode() for i, record in enumerate(records)} | {f"{i}.png": picture(i) for i in range(4)}
        if kind == "shards":
            path = pack(tmp_path / "a.tar", sorted(bodies.items()))
        else:
            path = tmp_path / "pictures"
            path.mkdir()
            for name, body in bodies.items():
                (path / name).write_bytes(body)
    told = outcomes(opened(kind, path, tmp_path / "cache", template=template))
    assert [told[0], *told[2:]] == ["a frog", "None", "nan"]
    assert isinstance(told[1], BadSample) and "null" in str(told[1])


@pytest.mark.parametrize("own", ["hh", "h"])
def test_two_texts_for_one_picture_are_one_bad_sample_unless_they_are_equal(tmp_path, own):
    files = {"a.png": picture(2), "a.txt": b"a", "h.jpeg": picture(1), "h.jpeg.txt": own.encode(), "h.txt": b"h\n"}
    for name, body in files.items():
        (tmp_path / name).write_bytes(body)
    told = outcomes(opened("folder", tmp_path))
    assert told[0] == "a"
    assert told[1] == "h" if own == "h" else "two different files of one kind, .txt and .jpeg.txt" in str(told[1])


def test_a_picture_with_its_own_text_beside_another_of_its_stem_keeps_it(tmp_path):
    for name, body in {"h.jpeg": picture(1), "h.png": picture(2), "h.jpeg.txt": b"own", "h.txt": b"shared"}.items():
        (tmp_path / name).write_bytes(body)
    assert outcomes(opened("folder", tmp_path)) == ["own", "shared"]


def test_a_value_inside_a_list_or_object_may_not_be_null_where_it_is_written():
    fields = {"tags": ["a", None], "meta": {"size": float("nan"), "n": 7}}
    for pattern in ("{tags[1]}", "{meta[size]}"):
        with pytest.raises(BadSample, match=r"is null"):
            text.messages(fields, Template(assistant=pattern))
    assert text.messages(fields, Template(assistant="{tags[0]} {meta[n]}"))[-1]["content"] == "a 7"


UNSPELLED = [["yes"], [], {}, {"a": 1}, [""], [None], True, float("inf"), -float("inf")]


@pytest.mark.parametrize("value", [*UNSPELLED, b"abc"], ids=repr)
def test_a_value_that_has_no_one_spelling_is_a_bad_sample(value):
    with pytest.raises(BadSample, match=r"the field 'a' is .*, not text or a number"):
        text.messages({"a": value}, Template(assistant="{a}"))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_python_never_spells_an_answer(tmp_path, kind):
    if kind == "jsonl":
        path = lines(tmp_path / "a.jsonl", [{"answer": value} for value in [*UNSPELLED, "yes", 7, 0.5]])
        told = outcomes(opened("jsonl", path, template={"assistant": "{answer}"}))
        assert [isinstance(one, BadSample) for one in told] == [True] * len(UNSPELLED) + [False] * 3 and told[-3:] == ["yes", "7", "0.5"]
    else:
        datasets = pytest.importorskip("datasets")
        path = tmp_path / "a.parquet"
        datasets.Dataset.from_dict({"words": [["a"], []], "size": [float("inf"), 2.0], "body": [b"abc", b""]}).to_parquet(path)
        for column, good in (("words", []), ("size", ["2.0"]), ("body", [])):
            told = outcomes(opened("datasets", path, tmp_path / "cache", template={"assistant": f"{{{column}}}"}))
            assert [one for one in told if not isinstance(one, BadSample)] == good


@pytest.mark.parametrize("answer", ["\u200b", "\ufeff", "\u00ad ", "\u2800", "\u3164\n", "\0"])
@pytest.mark.parametrize("template", [None, {"assistant": "{caption}"}])
def test_an_answer_that_shows_nothing_is_blank(tmp_path, answer, template):
    path = lines(tmp_path / "a.jsonl", [{"caption": answer}, {"caption": f"x{answer}y"}])
    told = outcomes(opened("jsonl", path, template=template))
    assert "empty" in str(told[0]) and isinstance(told[0], BadSample)
    assert "a text with a NUL" in str(told[1]) if "\0" in answer else told[1] == f"x{answer}y"


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_csv_cell_is_the_text_it_holds_and_an_empty_one_is_absent(tmp_path, delimiter):
    pytest.importorskip("datasets")
    rows = [("n", "caption"), ("1", "NA"), ("2", "null"), ("3", "none"), ("4", "007"), ("5", "1.50"), ("6", ""), ("7", "NaN")]
    (tmp_path / "a.csv").write_text("".join(delimiter.join(row) + "\n" for row in rows))
    told = outcomes(opened("datasets", tmp_path / "a.csv", tmp_path / "cache"))
    assert [*told[:5], told[6]] == ["NA", "null", "none", "007", "1.50", "NaN"]
    assert str(told[5]) == "no text: `caption` is null"


@pytest.mark.parametrize("answer", ["", "  \n"])
def test_a_blank_answer_is_a_bad_sample_unless_it_is_allowed(tmp_path, answer):
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    path = lines(tmp_path / "a.jsonl", [{"caption": answer}, {"messages": turns}, {"caption": "x"}])
    told = outcomes(opened("jsonl", path))
    assert [str(one) for one in told[:2]] == ["an empty answer; `allow_blank: true` of the source trains on it"] * 2
    assert [one.strip() for one in outcomes(opened("jsonl", path, allow_blank=True))] == ["", "", "x"]


GUESSED = [
    "2024-01-15",
    "2024-01-16T10:00:00",
    "10:00",
    "007",
    "1e5",
    "true",
    "NA",
    "null",
    "None",
    "nan",
    "1.50",
    "-0",
    "1_000",
    "Infinity",
]
"""Texts that readers of tables take for dates, numbers, truth and nothing."""


@pytest.mark.parametrize("kind", ["jsonl", "datasets json", "csv", "tsv", "parquet", "metadata.jsonl", "metadata.csv", "shards", "folder"])
@pytest.mark.parametrize("template", [None, CAPTION], ids=["caption", "template"])
def test_text_that_looks_like_another_type_stays_that_text(tmp_path, kind, template):
    columns = {"caption": GUESSED, "file_name": [f"{i}.png" for i in range(len(GUESSED))]}
    root = folder(tmp_path / "data", **{f"{i}.png": picture(i) for i in range(len(GUESSED))})
    path, source = root / (kind if kind.startswith("metadata") else f"a.{kind.split()[-1]}"), "datasets"
    if kind in ("shards", "folder"):
        texts = {f"{i:02d}.json" if i % 2 else f"{i:02d}.txt": json.dumps({"caption": c}) if i % 2 else c for i, c in enumerate(GUESSED)}
        members = {f"{i:02d}.png": picture(i) for i in range(len(GUESSED))} | {name: body.encode() for name, body in texts.items()}
        source, path = kind, pack(root / "a.tar", sorted(members.items())) if kind == "shards" else folder(tmp_path / "f", **members)
    elif kind == "parquet":
        pytest.importorskip("datasets").Dataset.from_dict(columns).to_parquet(path)
    elif "csv" in kind or kind == "tsv":
        with path.open("w", newline="") as file:
            csv.writer(file, delimiter="\t" if kind == "tsv" else ",").writerows([columns, *zip(*columns.values(), strict=True)])
    else:
        lines(path, [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
    if kind == "jsonl" or kind.startswith("metadata"):
        source, path = ("jsonl", path) if kind == "jsonl" else ("folder", root)
    assert outcomes(opened(source, path, tmp_path / "cache", template=template)) == GUESSED


@pytest.mark.parametrize("kind", ["jsonl", "datasets", "metadata.jsonl"])
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"caption": "half \\ud83d"}', "half of a surrogate pair"),
        ('{"caption": "cut', ":2 is not JSON: "),
        ('{"caption": "x", "caption": "y"}', ":2: the key 'caption' is given twice"),
        ('{"caption": ["a"]}', "`caption` is a list, not text"),
        ('{"caption": 7, "n": {"a": 1}}', "`caption` is a number, not text"),
        ('["x"]', ":2 holds a list, not an object of fields"),
        ('{"caption": "x \x00"}', ":2 is not JSON: Invalid control character"),
    ],
)
def test_a_broken_line_costs_that_line_through_every_reader_of_lines(tmp_path, kind, line, reason):
    root = folder(tmp_path / "data", **{"x.png": picture(1)})
    named = [line if line.startswith("[") or not line.startswith("{") else '{"file_name": "x.png", ' + line[1:]]
    good = [json.dumps({"file_name": "x.png", "caption": text}) for text in "ab"]
    path = root / ("metadata.jsonl" if kind.startswith("metadata") else "a.jsonl")
    path.write_text("\n".join([good[0], *named, good[1]]) + "\n")
    source = opened("folder", root) if kind.startswith("metadata") else opened(kind, path)
    first, bad, last = outcomes(source)
    assert (first, last) == ("a", "b")
    assert isinstance(bad, BadSample) and reason in str(bad)


@pytest.mark.parametrize("kind", ["datasets", "folder"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"x.png,b,c,d", "a.csv:3 has 4 cells, and the header 2: quote cells that hold ','"),
        (b"x.png", "a.csv:3 has 1 cells, and the header 2: give it the others, empty ones if need be"),
        (b"x.png,h\xe4llo", "a.csv:3 is not UTF-8 text: invalid"),
        (b'x.png,"a" b', "a.csv:3 is no row of CSV: ',' expected after '\"'"),
        (b'x.png,"a NEWLINE c "b', "a.csv:3 (2 lines, by a quote) is no row of CSV: ',' expected after '\"'"),
        (b"x.png,", "no text: `caption` is null"),
        (b'x.png,"  "', "an empty answer"),
        (b"x.png," + b"y" * 1_000_001, "a text of 1,000,001 characters is over the limit"),
        (b"x.png," + b"y" * (1 << 24) + b"y", "is no row of CSV: field larger than field limit"),
        (b"../x.png,b", "the path '../x.png' leaves the folder"),
    ],
    ids=["long", "short", "latin1", "after a quote", "two lines", "empty", "blank", "1 MB", "16 MB", "outside"],
)
def test_a_broken_row_of_csv_costs_that_row(tmp_path, kind, newline, row, reason):
    root = folder(tmp_path / "data", **{"x.png": picture(1)})
    end, name = newline.encode(), "a.csv" if kind == "datasets" else "metadata.csv"
    rows = [b"file_name,caption", b"x.png,a", row.replace(b" NEWLINE ", end), b"", b'x.png,"say ""hi"",' + end + b'then go"', b"x.png,z"]
    (root / name).write_bytes(b"\xef\xbb\xbf" + end.join(rows))
    told = outcomes(opened(kind, root / name if kind == "datasets" else root))
    assert [*told[:1], *told[2:]] == ["a", f'say "hi",{newline}then go', "z"]
    assert isinstance(told[1], BadSample) and reason.replace("a.csv", name) in str(told[1])


def test_several_files_of_lines_and_tables_are_one_source_each_with_its_own_header(tmp_path):
    (tmp_path / "a.csv").write_text("caption,n\nx,1\n")
    (tmp_path / "b.csv").write_text("n;caption\n2;y\n3;z\n")
    source = opened("datasets", tmp_path / "*.csv")
    assert outcomes(source) == ["x", "y", "z"]
    assert [source[i]["fields"]["n"] for i in range(3)] == ["1", "2", "3"]
    assert outcomes(pickle.loads(pickle.dumps(source))) == ["x", "y", "z"]
    lines(tmp_path / "c.jsonl", [{"caption": "j"}])
    with pytest.raises(
        PlaitError, match=r"2 formats \(1 csv and 1 json\), and a source reads one: name it, as path: .*/\*\.csv or path: .*/\*\.jsonl"
    ):
        opened("datasets", tmp_path / "[ac].*")


def test_a_table_is_no_file_of_lines(tmp_path):
    (tmp_path / "a.csv").write_text("caption\nx\n")
    with pytest.raises(PlaitError, match=r"a\.csv ends in \.csv, which is no JSON: `source: datasets` reads it"):
        opened("jsonl", tmp_path / "a.csv")
    assert outcomes(opened("datasets", tmp_path / "a.csv")) == ["x"]


BLANK = "the field 'label' is empty; `allow_blank: true` of the source trains on it"


@pytest.mark.parametrize("kind", ["jsonl", "datasets", "csv", "parquet", "shards", "folder"])
@pytest.mark.parametrize("template", [Template(assistant="a photo of {label}"), Template(user="which {label}?", assistant="yes")])
def test_a_blank_field_inside_a_template_is_absent_through_every_source(tmp_path, kind, template):
    labels = ["frog", "  \t", "cat"] if kind == "csv" else ["frog", "", " \n", "cat"]
    if kind in ("jsonl", "datasets"):
        path = lines(tmp_path / "a.jsonl", [{"label": label} for label in labels])
    elif kind in ("shards", "folder"):
        members = [(f"{i}{end}", body) for i, label in enumerate(labels) for end, body in ((".cls", label.encode()), (".png", picture(i)))]
        path = pack(tmp_path / "a.tar", members) if kind == "shards" else folder(tmp_path / "f", **dict(members))
    else:
        datasets = pytest.importorskip("datasets")
        path = tmp_path / f"a.{kind}"
        made = datasets.Dataset.from_dict({"label": labels})
        made.to_csv(path, index=False) if kind == "csv" else made.to_parquet(path)
    kind = "datasets" if kind in ("csv", "parquet") else kind
    good = [text.messages({"label": label}, template)[-1]["content"] for label in ("frog", "cat")]
    told = outcomes(opened(kind, path, tmp_path / "cache", template=template))
    assert [one for one in told if not isinstance(one, BadSample)] == good
    assert reasons(opened(kind, path, tmp_path / "cache", template=template)) == {BLANK: len(labels) - 2}
    allowed = outcomes(opened(kind, path, tmp_path / "cache", template=template, allow_blank=True))
    assert not any(isinstance(one, BadSample) for one in allowed) and len(allowed) == len(labels)


def folder(root, **files):
    for name, body in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(body)
    return root


def test_a_stem_ends_at_the_last_dot_and_captions_go_to_their_own_picture(tmp_path):
    files = {
        "cat.jpg": picture(1), "cat.txt": b"a cat", "cat.edited.jpg": picture(2), "cat.edited.txt": b"an edited cat",
        "Screenshot 2024-01-15 at 10.15.33.png": picture(3), "Screenshot 2024-01-15 at 10.15.33.caption": b"first",
        "Screenshot 2024-01-15 at 10.15.40.png": picture(4), "Screenshot 2024-01-15 at 10.15.40.TXT": b"second",
        "dog.png": picture(5), "dog.png.txt": b"a dog", "dog.prompt.txt": b"which?",
    }  # fmt: skip
    source = opened("folder", folder(tmp_path, **files))
    told = {source[i]["id"]: (source[i]["messages"][-1]["content"], len(source[i]["images"])) for i in range(len(source))}
    assert told == {
        "cat": ("a cat", 1), "cat.edited": ("an edited cat", 1), "dog": ("a dog", 1),
        "Screenshot 2024-01-15 at 10.15.33": ("first", 1), "Screenshot 2024-01-15 at 10.15.40": ("second", 1),
    }  # fmt: skip
    assert source.left_out == {}
    fields = next(source[i]["fields"] for i in range(len(source)) if source[i]["id"] == "dog")
    assert fields["prompt"] == "which?"


def test_two_pictures_of_one_stem_are_two_samples_and_share_its_text(tmp_path):
    files = {"a.png": picture(1), "a.jpg": picture(2), "a.txt": b"both", "a.jpg.txt": b"its own"}
    source = opened("folder", folder(tmp_path, **files))
    assert {source[i]["id"]: source[i]["messages"][-1]["content"] for i in range(2)} == {"a.jpg": "its own", "a.png": "both"}
    assert [len(source[i]["images"]) for i in range(2)] == [1, 1]


def test_frames_of_a_clip_belong_to_their_sample(tmp_path):
    source = opened(
        "folder", folder(tmp_path, **{"a.png": picture(0), "a.frame1.png": picture(1), "a.frame2.png": picture(2), "a.txt": b"x"})
    )
    assert (len(source), source[0]["images"], source[0]["frames"]) == (1, [picture(0)], [picture(1), picture(2)])


def test_frames_beside_a_picture_come_in_the_order_of_their_numbers(tmp_path):
    files = {f"a.frame{i}.png": picture(i) for i in (1, 2, 10, 11)}
    source = opened("folder", folder(tmp_path, **{"a.png": picture(0), "a.txt": b"x", **files}))
    assert source[0]["frames"] == [picture(i) for i in (1, 2, 10, 11)]


@pytest.mark.parametrize("ending", ["heic", "EPS", "pdf"])
def test_a_caption_whose_picture_is_not_read_is_not_trained_on_alone(tmp_path, ending):
    alone = [(f"a.{ending}", b"x"), ("a.txt", b"a cat"), ("b.txt", b"text alone")]
    pack(tmp_path / "a.tar", [*alone, ("c.png", picture(1)), ("c.eps", b"x"), ("c.txt", b"c")])
    told = outcomes(opened("shards", tmp_path / "a.tar"))
    assert told[1:] == ["text alone", "c"]
    assert str(told[0]) == f"a/a.{ending} is a picture of a format that is not read: convert it, to JPEG or PNG"


def test_what_a_folder_does_not_read_is_counted(tmp_path):
    root = folder(tmp_path / "root", **{"a.png": picture(1), "a.txt": b"x", "b.heic": b"", "c.HEIC": b"", "lost.txt": b"y", "README": b""})
    folder(tmp_path / "elsewhere", **{"far.png": picture(2)})
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(root)
    (root / "gone.png").symlink_to(tmp_path / "nothing")
    os.mkfifo(root / "pipe.png")
    source = opened("folder", root)
    assert [source[i]["id"] for i in range(len(source))] == ["a", "linked/far"]
    assert source.left_out == {
        "links to nothing": 1, "no regular files": 1, ".heic: not read": 2, ".txt without a picture": 1, "files without an ending": 1,
    }  # fmt: skip
    with pytest.raises(PlaitError, match=r"there is no image under .*; 1 of \.heic: not read$"):
        opened("folder", folder(tmp_path / "heic", **{"a.heic": b""}))


def test_hidden_pictures_of_a_folder_are_counted_and_those_behind_a_link_are_read(tmp_path):
    root = folder(
        tmp_path, **{"a.png": picture(1), "._a.png": b"x", ".DS_Store": b"", ".cache/b.PNG": picture(2), ".store/c.png": picture(3)}
    )
    (root / "in").symlink_to(".store")
    source = opened("folder", root)
    assert [source[i]["id"] for i in range(len(source))] == ["a", "in/c"]
    assert source.left_out == {"hidden pictures (a name begins with a dot)": 2}


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_pictures_that_the_metadata_does_not_list_are_counted_hidden_ones_too(tmp_path, name):
    names = ["a.png", "./in/b.png", ".listed.png"]
    body = "".join(json.dumps({"file_name": n, "text": "x"}) + "\n" for n in names)
    body = body + '{"file_name"' if name.endswith("l") else "file_name,text\n" + "".join(f"{n},x\n" for n in names) + "z,z,z\n"
    files = dict.fromkeys(["a.png", "in/b.png", "in/c.PNG", ".listed.png", ".d.png", ".e/f.jpg", "g.jpg"], picture(1))
    root = folder(tmp_path / "f", **files, **{"h.heic": b"", "a.txt": b"lost", name: body.encode()})
    source = opened("folder", root)
    assert [str(one)[:40] for one in outcomes(source)][:3] == ["x", "x", "x"] and len(source) == 4
    assert source.left_out == {f"pictures that {name} does not list": 4, ".heic: not read": 1, ".txt: not read": 1}


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
@pytest.mark.parametrize("column", ["text", "caption"])
def test_the_metadata_of_an_imagefolder_is_read(tmp_path, name, column):
    pytest.importorskip("datasets")
    body = json.dumps({"file_name": "x.png", column: "seven"}) if name.endswith("l") else f"file_name,{column}\nx.png,seven\n"
    source = opened("folder", folder(tmp_path / "f", **{"x.png": picture(7), name: body.encode()}), tmp_path / "cache")
    assert (outcomes(source), source[0]["images"]) == (["seven"], [picture(7)])


@pytest.mark.parametrize("column", ["image", "image_path", "file_name"])
def test_columns_of_image_paths_are_read_relative_to_the_file_or_to_an_option(tmp_path, column):
    datasets = pytest.importorskip("datasets")
    folder(tmp_path, **{"in/x.png": picture(1), "other/in/x.png": picture(2)})
    made = datasets.Dataset.from_dict({column: ["in/x.png"], "text": ["seven"]})
    made.to_parquet(tmp_path / "a.parquet")
    made.to_csv(tmp_path / "a.csv", index=False)
    for name in ("a.parquet", "a.csv"):
        assert opened("datasets", tmp_path / name, tmp_path / "cache")[0]["images"] == [picture(1)]
        elsewhere = opened("datasets", tmp_path / name, tmp_path / "cache", options={"images": str(tmp_path / "other")})
        assert (elsewhere[0]["images"], outcomes(elsewhere)) == ([picture(2)], ["seven"])


def test_the_layout_of_the_cauldron_is_read():
    pairs = [{"user": "What?", "assistant": "A frog.", "source": "x"}, {"user": "Sure?", "assistant": "Yes."}]
    assert [turn["content"] for turn in text.messages({"texts": pairs}, None)] == ["What?", "A frog.", "Sure?", "Yes."]
    with pytest.raises(BadSample, match="an item of `texts` needs 'user' and 'assistant', each a text; this one is an object"):
        text.messages({"texts": [{"user": "What?"}]}, None)


def test_image_parts_of_parquet_hold_nulls_for_what_they_do_not_have():
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "what?"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": "a frog", "image": None}]}]
    assert [turn["content"] for turn in text.messages({"messages": turns, "caption": None}, None)] == ["<image>what?", "a frog"]


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_an_image_outside_of_the_users_turns_is_a_bad_sample(tmp_path, role):
    turns = {"system": "be brief", "user": "what?", "assistant": "x"} | {role: "see <image>"}
    path = lines(
        tmp_path / "a.jsonl", [{"messages": [{"role": name, "content": content} for name, content in turns.items()]}, {"caption": "x"}]
    )
    assert str(outcomes(opened("jsonl", path))[0]) == f"the text of the {role} holds <image>: images stand in the user's turns"


@pytest.mark.parametrize(
    ("body", "answers"),
    [
        (b'{"data": [{"caption": "x"}, {"caption": "y"}]}', ["x", "y"]),
        (b'{\n "info": {"data": [1]}, "n": 2,\n "data": [\n  {"caption": "x"},\n  {"caption": "y"}]\n}', ["x", "y"]),
        (b'[{"caption": "x"}] \n', ["x"]),
        (b'{"data": [{"caption": "x"}]}\n\n \n', ["x"]),
        (b'{"info": {"n": 1, "n": 2}, "data": [{"caption": "x"}]}', ["x"]),
    ],
)
def test_an_array_is_read_wherever_a_file_holds_it(tmp_path, body, answers):
    (tmp_path / "a.json").write_bytes(body)
    assert outcomes(opened("jsonl", tmp_path / "a.json")) == answers


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            b'[{"caption": "x"}]\n[{"caption": "y"}]',
            "goes on after its array of 1 records, at offset 19; make it one array",
        ),
        (b'{"a": [{"caption": "x"}],\n "b": [{"caption": "y"}]}', r"a\.json holds 2 arrays of records: a, b; write the one"),
        (b'{"data": [{"caption": "x"}],\n "data": [{"caption": "y"}]}', r"a\.json gives the key 'data' twice: make one array of the two"),
        (b'{"data": "x", "data": [{"caption": "y"}]}\n', r"a\.json gives the key 'data' twice"),
        ('{"caption": "x"}'.encode("utf-16"), r"a\.json is UTF-16; JSON is UTF-8: iconv -f UTF-16 -t UTF-8"),
        (b"[" * 100_000, "is not a JSON array of records: offset 1"),
    ],
)
def test_a_file_that_is_not_records_is_refused_with_its_place(tmp_path, body, message):
    (tmp_path / "a.json").write_bytes(body)
    with pytest.raises(PlaitError, match=message):
        opened("jsonl", tmp_path / "a.json")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"caption": "x", "caption": "y"}', "a.jsonl:2: the key 'caption' is given twice"),
        ('{"caption": "x \\ud83d"}', "a text with half of a surrogate pair, which is no character"),
        ('{"caption": ' + "[" * 100_000 + "]" * 100_000 + "}", "a.jsonl:2 is nested too deeply to be read"),
        ('{"caption": 7}', "`caption` is a number, not text"),
        (
            '{"messages": [{"role": ["user"], "content": "x"}]}',
            "unknown speaker in 'role'; known: human, user, gpt",
        ),
        (json.dumps({"caption": "x" * 5_000_000}), "a text of 5,000,000 characters is over the limit of 1,000,000"),
        ('{"caption": "x", "image": "../secret.png"}', "the path '../secret.png' leaves the folder"),
        ('{"caption": "x", "image": "/etc/passwd"}', "the path '/etc/passwd' leaves the folder"),
        ('{"caption": "x", "image": "./"}', "the path './' names no file"),
        ('{"caption": "x", "image": "."}', "the path '.' names no file"),
        ('{"caption": "x", "image": "none/.."}', "the path 'none/..' names no file"),
        ('{"caption": "x", "image": "pipe.png"}', "pipe.png is no regular file"),
        ('{"caption": "x", "image": "zero"}', "the path 'zero' leaves the folder"),
        ('{"caption": "x", "image": "etc/passwd"}', "the path 'etc/passwd' leaves the folder"),
        ('{"caption": "x", "image": "round"}', "the path 'round' leaves the folder"),
        ('{"caption": "x", "image": "a\\u0000b.png"}', "cannot read"),
        ('{"caption": "x", "image": "none.png"}', "none.png': No such file or directory"),
        ('{"caption": "x", "image": 5}', "an image is named by a path, not by a number"),
    ],
)
def test_a_hostile_line_is_one_bad_sample(tmp_path, line, reason):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "etc").symlink_to("/etc")
    (tmp_path / "round").symlink_to("../round")
    (tmp_path / "a.jsonl").write_text('{"caption": "good"}\n' + line + "\n")
    good, bad = outcomes(opened("jsonl", tmp_path / "a.jsonl"))
    assert good == "good"
    assert isinstance(bad, BadSample) and reason in str(bad)


def test_a_path_out_of_the_folder_is_read_where_that_is_allowed_and_reasons_hold_no_content(tmp_path):
    folder(tmp_path, **{"secret.png": b"do not tell", "data/x.png": picture(1), "y.png": picture(2)})
    path = lines(tmp_path / "data" / "a.jsonl", [{"caption": "x", "image": str(tmp_path / "y.png")}, {"caption": "x", "image": "x.png"}])
    assert "leaves the folder" in str(outcomes(opened("jsonl", path))[0])
    assert opened("jsonl", path, options={"outside": True})[0]["images"] == [picture(2)]
    from plait.data import images

    with pytest.raises(BadSample) as caught:
        images.decode((tmp_path / "secret.png").read_bytes())
    assert "tell" not in str(caught.value)
    with pytest.raises(BadSample, match=r"130 bytes, a Git LFS pointer: fetch the file it stands for with `git lfs pull`"):
        images.decode(b"version https://git-lfs.github.com/spec/v1".ljust(130))


LINK = r"the path '{}' leaves the folder .* by a link; options \{{outside: true\}} allows it"


@pytest.mark.parametrize("kind", ["jsonl", "datasets json", "csv", "parquet", "metadata.jsonl", "metadata.csv"])
def test_a_link_out_of_the_folder_is_not_followed_unless_that_is_allowed(tmp_path, kind):
    datasets = pytest.importorskip("datasets")
    root = folder(tmp_path / "data", **{"in/x.png": picture(1)})
    folder(tmp_path, **{"far/y.png": picture(2)})
    (root / "linked").symlink_to(tmp_path / "far")
    (root / "y.png").symlink_to(tmp_path / "far" / "y.png")
    (root / "again.png").symlink_to("in/x.png")
    names = ["in/x.png", "again.png", "linked/y.png", "y.png"]
    column = "file_name" if kind.startswith("metadata") else "image"
    made = datasets.Dataset.from_dict({column: names, "caption": list("abcd")})
    path = root / (kind if kind.startswith("metadata") else f"a.{kind.split()[-1]}")
    if "csv" in kind:
        made.to_csv(path, index=False)
    elif kind == "parquet":
        made.to_parquet(path)
    else:
        lines(path, list(made))
    kind, path = ("folder", root) if kind.startswith("metadata") else ("jsonl" if kind == "jsonl" else "datasets", path)
    (tmp_path / "alias").symlink_to(path)  # the data itself may be reached by a link
    for place in (path, tmp_path / "alias") if kind == "folder" else (path,):
        told = outcomes(opened(kind, place, tmp_path / "cache"))
        assert told[:2] == ["a", "b"]
        for error, name in zip(told[2:], names[2:], strict=True):
            assert isinstance(error, BadSample) and re.search(LINK.format(name), str(error))
    source = opened(kind, path, tmp_path / "cache", options={"outside": True})
    assert [source[i]["images"][0] for i in range(4)] == [picture(1), picture(1), picture(2), picture(2)]


def test_the_links_of_a_hub_clients_cache_are_its_own_files(tmp_path):
    repository = tmp_path / "hub" / "datasets--me--frogs"
    folder(
        repository, **{"blobs/aa": picture(1), "blobs/bb": b'{"image": "in/x.png", "caption": "x"}\n{"image": "y.png", "caption": "y"}\n'}
    )
    snapshot = repository / "snapshots" / "0123"
    (snapshot / "in").mkdir(parents=True)
    (snapshot / "in" / "x.png").symlink_to("../../../blobs/aa")
    (snapshot / "a.jsonl").symlink_to("../../blobs/bb")
    (snapshot / "y.png").symlink_to("../../../other.png")
    folder(tmp_path, **{"hub/other.png": picture(2)})
    good, bad = outcomes(opened("jsonl", snapshot / "a.jsonl", tmp_path / "cache"))
    assert good == "x" and re.search(LINK.format("y.png"), str(bad))
    (repository / "blobs").rename(tmp_path / "blobs")
    (repository / "blobs").symlink_to(tmp_path / "blobs")  # a folder that only looks like the cache
    with pytest.raises(PlaitError, match=LINK.format("in/x.png")):
        opened("jsonl", snapshot / "a.jsonl", tmp_path / "cache")


def test_names_with_several_dots_in_a_tar_are_told(tmp_path):
    names = ["Screenshot 10.15.33.png", "Screenshot 10.15.33.txt", "a.png", "a.txt", "b.left.png", "b.2.png"]
    source = opened("shards", pack(tmp_path / "a.tar", [(name, picture(1) if name.endswith("png") else b"x") for name in names]))
    told = "kinds of members such as '15.33.png': in a tar a name ends at its first dot, so captions may be lost"
    assert source.left_out == {told: 2}


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_two_texts_for_one_caption_are_a_bad_sample_and_equal_ones_are_not(tmp_path, kind):
    members = [("a.png", picture(1)), ("a.txt", b"one"), ("a.caption", b"two"), ("b.png", picture(2)), ("b.txt", b"b"), ("b.caption", b"b")]
    path = tmp_path / "data"
    path.mkdir()
    for name, body in members:
        (path / name).write_bytes(body)
    source = opened(kind, path if kind == "folder" else pack(tmp_path / "a.tar", members))
    with pytest.raises(BadSample, match=r"a has two values for the field 'caption', in \.(txt and \.caption|caption and \.txt): keep one"):
        source[0]
    assert source[1]["fields"]["caption"] == "b"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_rows_that_lone_quotes_join_in_a_table_with_tabs_are_a_bad_sample(tmp_path, newline):
    rows = [
        "image\tcaption",
        'a.png\t"x',
        'a.png\ty"',
        'a.png\t"a ""b"" c"',
        f'a.png\t"two{newline}lines"',
        'a.png\t"a\ttab"',
        "a.png\tlast",
        "",
    ]
    (tmp_path / "a.png").write_bytes(picture(1))
    (tmp_path / "a.tsv").write_bytes(newline.join(rows).encode())
    source = opened("datasets", tmp_path / "a.tsv")
    with pytest.raises(BadSample, match="has a cell with a tab and a line break between quotes: lone quotes may join rows"):
        source[0]
    captions = ['a "b" c', f"two{newline}lines", "a\ttab", "last"]
    assert [source[i]["fields"]["caption"] for i in range(1, len(source))] == captions


def test_what_a_terminal_would_obey_is_shown():
    assert printable("a\x1b[2J\u202eb\x00\tc\n\ud800") == "a\\x1b[2J\\u202eb\\x00\tc\n\\ud800"
    assert printable("frog ü 蛙 🐸") == "frog ü 蛙 🐸"


KEYS = st.sampled_from(["role", "content", "type", "text", "from", "x"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=()), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "from", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)
NAMES = st.sampled_from(["caption", "text", "messages", "conversations", "texts", "image", "images", "frames", "id", "label"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(NAMES, VALUES, max_size=4), min_size=1, max_size=6))
@example([{"messages": [{"role": "user", "content": [{"type": []}]}]}])
@example([{"texts": [None]}, {"conversations": {"from": 1}}])
def test_any_record_is_a_sample_or_a_bad_one_through_lines_and_shards(tmp_path, records):
    written = [json.dumps(record) for record in records]
    (tmp_path / "a.jsonl").write_text('{"caption": "good"}\n' + "".join(line + "\n" for line in written))
    shutil.rmtree(tmp_path / "user-cache", ignore_errors=True)
    bodies = [("good.json", b'{"caption": "good"}'), *((f"s{i}.json", line.encode()) for i, line in enumerate(written))]
    (tmp_path / "a.tar").unlink(missing_ok=True)
    for source in (opened("jsonl", tmp_path / "a.jsonl"), opened("shards", pack(tmp_path / "a.tar", bodies))):
        told = outcomes(source)  # raises nothing but BadSample
        assert len(told) == 1 + len(records)
        assert told[0] == "good"
        for one in told:
            assert isinstance(one, BadSample) or one.strip()


@pytest.mark.skipif(not CASES.is_dir(), reason="the collected cases are not here")
@pytest.mark.parametrize(
    ("kind", "name", "more", "good", "bad"),
    [
        ("jsonl", "null_captions.jsonl", {}, 15, {"no text: `caption` is null": 5}),
        ("jsonl", "null_captions.jsonl", {"template": CAPTION}, 15, {"the field 'caption' is null": 5}),
        ("datasets", "null_caption.parquet", {}, 2, {"no text: `caption` is null": 1}),
        ("datasets", "na_words.csv", {}, ["NA", "null", "none", "007"], {}),
        ("jsonl", "empty_answers.jsonl", {}, 0, {"an empty answer; `allow_blank: true` of the source trains on it": 8}),
        ("folder", "dots_in_names", {}, ["first", "second"], {}),
        ("folder", "caption_ending", {}, ["cap"], {}),
        ("folder", "metadata_text", {}, ["cap"], {}),
        ("jsonl", "image_in_answer.jsonl", {}, 0, {"the text of the assistant holds <image>: images stand in the user's turns": 8}),
        ("jsonl", "lone_surrogate.jsonl", {}, 18, {"a text with half of a surrogate pair, which is no character": 2}),
        ("datasets", "null_captions.jsonl", {}, 15, {"no text: `caption` is null": 5}),
        ("datasets", "null_captions.jsonl", {"template": CAPTION}, 15, {"the field 'caption' is null": 5}),
        ("datasets", "null_caption.parquet", {"template": CAPTION}, 2, {"the field 'caption' is null": 1}),
        ("datasets", "na_words.csv", {"template": CAPTION}, ["NA", "null", "none", "007"], {}),
        ("datasets", "empty_answers.jsonl", {}, 0, {"an empty answer; `allow_blank: true` of the source trains on it": 8}),
        ("datasets", "image_in_answer.jsonl", {}, 0, {"the text of the assistant holds <image>: images stand in the user's turns": 8}),
        ("datasets", "lone_surrogate.jsonl", {}, 18, {"a text with half of a surrogate pair, which is no character": 2}),
    ],
)
def test_the_collected_cases_give_what_is_right(tmp_path, kind, name, more, good, bad):
    if kind == "datasets":
        pytest.importorskip("datasets")
    source = opened(kind, CASES / name, tmp_path / "cache", **more)
    answers = [one for one in outcomes(source) if not isinstance(one, BadSample)]
    assert answers == good if isinstance(good, list) else len(answers) == good
    assert reasons(source) == bad


@pytest.mark.parametrize("text", ["caption,label\na cat,1,\na dog,2,\n", "caption,label\na cat, black,1\n"])
def test_a_csv_whose_rows_all_have_more_cells_than_its_header_is_refused(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(PlaitError, match=r"samples can be read: a\.csv:2 has 3 cells, and the header 2: quote cells that hold ','"):
        open_source(SourceEntry(source="datasets", path=str(tmp_path / "a.csv")), seed=0)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["cat.jpg", "cat.txt", "cat.edited.jpg", "cat.edited.txt"], "kinds of members such as 'edited.txt'"),
        (["a.png", "a.png.txt"], "kinds of members such as 'png.txt'"),
        (["a.heic", "a.txt", "b.txt"], "kinds of pictures that are not read, such as 'heic'"),
        (["a.jpg", "a.txt", "b.left.png", "b.right.png", "b.txt"], None),
    ],
)
def test_what_a_tar_loses_by_names_and_kinds_is_told(tmp_path, names, said):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in names:
            body = b"words" if name.endswith("txt") else picture(1)
            member = tarfile.TarInfo(name)
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    left_out = open_source(SourceEntry(source="shards", path=str(tmp_path / "a.tar")), seed=0).left_out
    assert [reason for reason in left_out if said is None or reason.startswith(said)] == list(left_out)
    assert bool(left_out) == (said is not None)


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("no text")


@pytest.mark.parametrize("error", [Unspeakable(), GeneratorExit(), SystemExit(3), BaseException("odd")])
def test_whatever_else_code_of_others_raises_is_a_bad_sample(error):
    with pytest.raises(BadSample, match=type(error).__name__):
        with sample_errors:
            raise error


def test_a_reason_is_bounded_and_holds_no_control_character():
    with pytest.raises(BadSample) as caught:
        with sample_errors:
            raise BadSample(f"no file {'x' * 3_000_000} \u202egnp.a")
    assert len(str(caught.value)) < 1100 and "\u202e" not in str(caught.value) and r"\u202egnp.a" in str(caught.value)
