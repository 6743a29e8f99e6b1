"""Fifty hostile and dirty records at a time through every kind of source of files: each is the right sample, or one bad sample.

What is right is known beforehand: every record is put together of a text and a picture that are good, with the text and the colour that
must come out, or bad; half of the records are good ones.
"""

import base64
import csv
import dataclasses
import datetime
import decimal
import json
import os
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plait import cli, files
from plait.config.schema import SourceEntry
from plait.data import images
from plait.data.sources.open import open_source
from plait.data.text import blank
from plait.engine.checkpoints import checkpoint
from plait.errors import BadSample, PlaitError
from plait.families import registry
from tests import toy_family
from tests.data.packing import pack, picture

RECORDS = 50


class Case(NamedTuple):
    """A record: its caption and picture as JSON values or bytes, what must come out of each (None: a bad sample), and part of its name."""

    caption: object
    text: str | None
    body: bytes
    red: int | None
    name: str


LETTERS = st.characters(exclude_categories=("Cs",))
TEXTS = st.text(LETTERS, min_size=1, max_size=30).filter(lambda text: not blank(text) and "\0" not in text and "<image>" not in text)
HARD_TEXTS = ["None", "nan", "null", "0", "\u202eleft", "\x1b[2Jclear", "e\u0301", "{caption}", "%s", "'; --", "\\u0041", "😀"]
GOOD_TEXTS = (TEXTS | st.sampled_from(HARD_TEXTS)).map(lambda text: text.replace("\ufeff", "x"))
BAD_CAPTIONS = st.one_of(
    st.none(), st.integers(), st.booleans(), st.just(float("nan")), st.floats(allow_nan=False),
    st.lists(st.text(LETTERS, max_size=3), max_size=3), st.dictionaries(st.sampled_from("ab"), st.none() | st.integers(), max_size=2),
    st.sampled_from(["", " \n\t", "\u200b", "\x1b", "a\0b", "see <image>", "half \ud83d", "x" * 1_000_001]),
)  # fmt: skip
HARD_NAMES = [
    "..", ".", " ", "-rf", "a b", "*?[x]", "$HOME", "~", "a\nb", "\x1b[31m", "café", "cafe\u0301", "x" * 150, "\\", '"', "{0..9}", "con",
    "😀", "\udcff\udc80", ".frame2", "a\n.frame1",
]  # fmt: skip
NAMES = st.text(LETTERS, max_size=12) | st.sampled_from(HARD_NAMES)
WHOLE = picture(9, (64, 48))
BAD_BODIES = [
    b"", b"\0" * 100, b"<html>404</html>", WHOLE[: len(WHOLE) // 2], WHOLE[:20], b"version https://git-lfs.github.com/spec/v1\n",
    WHOLE[:30] + b"\xff" * 30, b"%!PS-Adobe\n", b"GIF89a", b"\xff\xd8\xff\xe0", json.dumps({"a": 1}).encode(),
]  # fmt: skip


@st.composite
def cases(draw, good_text, good_picture):
    caption = draw(GOOD_TEXTS if good_text else BAD_CAPTIONS)
    red = draw(st.integers(0, 255)) if good_picture else None
    body = picture(red, kind=draw(st.sampled_from(["PNG", "BMP", "GIF", "TIFF"]))) if good_picture else draw(st.sampled_from(BAD_BODIES))
    return Case(caption, caption.strip() if good_text else None, body, red, draw(NAMES))


GOOD = cases(True, True)
DIRTY = st.one_of(cases(False, True), cases(True, False), cases(False, False))
HALF = RECORDS // 2
FIFTY = st.builds(
    lambda first, good, dirty, shuffle: [first, *shuffle.sample([*good, *dirty], RECORDS - 1)],
    GOOD, st.lists(GOOD, min_size=HALF - 1, max_size=HALF - 1), st.lists(DIRTY, min_size=HALF, max_size=HALF), st.randoms(),
)  # fmt: skip
"""Half of them good ones, the first among them."""


def right(case):
    """What a sample of the case must hold; None for a bad one."""
    return None if case.text is None or case.red is None else (case.text, case.red)


def write_jsonl(root, records):
    """Lines that name their picture by a path or hold it; the bad ones also name what is no picture of the folder's."""
    (root / "in").mkdir(parents=True)
    lines = []
    for number, case in enumerate(records):
        (root / "in" / f"{number}.png").write_bytes(case.body)
        address = f"in/{number}.png" if number % 2 else "data:image/png;base64," + base64.b64encode(case.body).decode()
        lines.append(json.dumps({"id": f"{number} {case.name}", "caption": case.caption, "image": address}))
    (root / "a.jsonl").write_text("\n".join(lines) + "\n")
    return {"source": "jsonl", "path": str(root / "a.jsonl")}, [right(case) for case in records]


def write_metadata(root, records):
    """A folder whose metadata.jsonl names the pictures; of some rows nothing."""
    (root / "in").mkdir(parents=True)
    lines, expected = [], []
    for number, case in enumerate(records):
        (root / "in" / f"{number}.png").write_bytes(case.body)
        named = {"file_name": f"in/{number}.png"} if number % 5 != 4 else {"file_name": None} if number % 2 else {}
        lines.append(json.dumps({"text": case.caption, **named}))
        expected.append(right(case) if named.get("file_name") else None)
    (root / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return {"source": "folder", "path": str(root)}, expected


def write_csv(root, records):
    """A folder with metadata.csv: cells of any text between quotes, in rows that name a picture or leave its cell empty."""
    (root / "in").mkdir(parents=True)
    expected = []
    with (root / "metadata.csv").open("w", newline="") as file:
        rows = csv.writer(file, quoting=csv.QUOTE_ALL)
        rows.writerow(["file_name", "text"])
        for number, case in enumerate(records):
            (root / "in" / f"{number}.png").write_bytes(case.body)
            text = case.caption if case.text is not None and case.caption.isprintable() else None
            rows.writerow([f"in/{number}.png" if number % 5 != 4 else "", text or ""])
            expected.append(right(case) if text and number % 5 != 4 else None)
    return {"source": "folder", "path": str(root)}, expected


def file_name(case):
    """The case's name without what no file name, or no name of one sample, can hold."""
    return re.sub(r"[/\x00]", "", case.name).encode("utf-8", "surrogateescape")[:180].decode("utf-8", "surrogateescape")


def caption_file(number, case):
    """The file of a case's caption: its ending and bytes, and whether its text comes out."""
    if case.text is not None and number % 3:
        return ("txt", "caption", "TXT")[number % 3], case.caption.encode()
    if isinstance(case.caption, str) and number % 3 and not case.caption.isascii():
        return "txt", case.caption.encode("utf-16", "surrogatepass")  # no UTF-8
    return "json", json.dumps({"caption": case.caption}).encode()


def write_folder(root, records):
    """Pictures with a file of their caption beside; names no one would choose; links, pipes and folders that look like pictures."""
    root.mkdir(parents=True)
    expected = []
    for number, case in enumerate(records):
        stem = f"{number:02d}{file_name(case)}"
        ending, body = caption_file(number, case)
        (root / f"{stem}.{ending}").write_bytes(body)
        (root / f"{stem}.{('png', 'JPG', 'webp')[number % 3]}").write_bytes(case.body)
        if not re.fullmatch(r".+\.frame[^.]*", stem, re.DOTALL):
            expected.append(right(case))
    os.mkfifo(root / "50.png")
    (root / "51.png").symlink_to("nowhere")
    (root / "52.png").mkdir()
    return {"source": "folder", "path": str(root)}, expected


def write_shards(root, records):
    """One tar; a sample's name is plain, as its members are told apart by dots, but for letters and spaces of any language."""
    members = []
    for number, case in enumerate(records):
        stem = f"{'./' * (number % 2)}{number:02d}{file_name(case).replace('.', '')}"
        ending, body = caption_file(number, case)
        members += [(f"{stem}.{('png', 'JPG', 'webp')[number % 3]}", case.body), (f"{stem}.{ending}", body)]
    return {"source": "shards", "path": str(pack(root / "a.tar", members))}, [right(case) for case in records]


def write_datasets(root, records):
    """A parquet file: pictures as bytes, as paths, and as neither; captions are text, which the column's type demands, or null."""
    import pyarrow
    import pyarrow.parquet

    root.mkdir(parents=True)
    cells, captions, expected = [], [], []
    for number, case in enumerate(records):
        (root / f"{number}.png").write_bytes(case.body)
        by_path = {"bytes": None, "path": f"{number}.png" if number % 4 else "../../etc/passwd"}
        cells.append(by_path if number % 2 == 0 else {"bytes": case.body, "path": "elsewhere.png"})
        written = isinstance(case.caption, str) and case.caption.isprintable() and len(case.caption) < 100
        captions.append(case.caption if case.text is not None or written else None)
        expected.append(right(case) if number % 4 else None)
    features = {"image": {"_type": "Image"}, "caption": {"dtype": "string", "_type": "Value"}}
    pictures = pyarrow.array(cells, pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}))
    table = pyarrow.table({"image": pictures, "caption": captions})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(table, root / "a.parquet")
    return {"source": "datasets", "path": str(root / "a.parquet")}, expected


WRITERS = {
    "jsonl": write_jsonl, "folder": write_folder, "metadata.jsonl": write_metadata, "metadata.csv": write_csv, "shards": write_shards,
    "datasets": write_datasets,
}  # fmt: skip
WITH_PACKAGE = ("metadata.csv", "datasets")


def came_out(source):
    """(text, red of the picture) of each sample, or None for a bad one that has a reason."""
    told = []
    for index in range(len(source)):
        try:
            sample = source[index]
            (pixels,) = [images.decode(body) for body in sample["images"]]
        except BadSample as error:
            told.append(None if str(error) else "no reason")
            continue
        (red,) = pixels[0].unique().tolist()
        told.append((sample["messages"][-1]["content"], red))
    return told


@pytest.mark.parametrize("kind", list(WRITERS))
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(FIFTY)
def test_each_of_fifty_records_is_the_right_sample_or_a_bad_one(kind, records):
    pytest.importorskip("datasets") if kind in WITH_PACKAGE else None
    with tempfile.TemporaryDirectory() as folder:
        entry, expected = WRITERS[kind](Path(folder) / "data", records)
        source = open_source(SourceEntry(**entry), seed=0, cache=f"{folder}/cache")
        assert came_out(source) == expected
        if kind == "folder":
            frames = RECORDS - len(expected)
            assert sum(source.left_out.values()) == 2 + 2 * frames


SEEN: set[tuple[str, int]] = set()


class Inputs(toy_family.Inputs):
    """The toy's inputs of a text and a picture; notes the two in `SEEN`."""

    def encode(self, sample, key):
        (pixels,) = [images.decode(body) for body in sample["images"]]
        seen = (sample["messages"][-1]["content"], int(pixels[0].flatten()[0]))
        if self.train:
            SEEN.add(seen)
        return [seen[1] / 255, 0.0, 0.0, 1.0], float(len(seen[0])) / 100

    def __init__(self, section, assets, *, max_tokens, pad, train):
        self.train = train


@pytest.mark.parametrize("kind", list(WRITERS))
@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
@given(records=FIFTY)
def test_an_epoch_of_fifty_records_is_accounted_for(kind, records):
    """Through the command: each good record is trained on, each bad one is one line of quarantine.jsonl with its reason."""
    pytest.importorskip("datasets") if kind in WITH_PACKAGE else None
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        root = Path(folder)
        entry, expected = WRITERS[kind](root / "data", records)
        recipe = toy_family.install(patch, root)
        patch.setattr(registry, "load", lambda name: dataclasses.replace(toy_family.FAMILY, Inputs=Inputs))
        SEEN.clear()
        settings = ["stages=[]", "evaluate=[]", "checkpoint.best=null", "train.steps=null", "train.epochs=1", "train.global_batch=1"]
        settings += [f"data.train=[{json.dumps(entry)}]", f"data.cache={root}/cache", "guard.max_bad_fraction=0.99"]
        assert cli.main(["train", str(recipe), f"--run={root / 'run'}", *(f"--{item}" for item in settings)]) == 0
        bad = [row for row in files.read_rows(root / "run" / "quarantine.jsonl") if row["attempt"] == 0]
        assert sorted(row["index"] for row in bad) == [index for index, case in enumerate(expected) if case is None]
        assert all(row["reason"] for row in bad)
        assert {case for case in expected if case is not None} == SEEN
        (newest, *_) = checkpoint.published(root / "run")
        totals = checkpoint.read(newest).manifest["state"]["totals"]
        assert (totals["samples"], totals["bad"]) == (len(expected), len(bad))


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_a_bad_sample_whose_name_is_no_text_is_listed(tmp_path, monkeypatch, kind, capsys):
    good = Case("good", "good", picture(3), 3, "\udcff")
    records = [good, good._replace(caption="half \ud83d ü", text=None, name="\udcfe")]
    entry, _ = WRITERS[kind](tmp_path / "data", [good, *records, *[good] * 7])
    (tmp_path / "data" / "00\udcff.txt").write_bytes(b"\xff") if kind == "folder" else None
    recipe = toy_family.install(monkeypatch, tmp_path)
    monkeypatch.setattr(registry, "load", lambda name: dataclasses.replace(toy_family.FAMILY, Inputs=Inputs))
    settings = ["stages=[]", "evaluate=[]", "checkpoint.best=null", "train.steps=null", "train.epochs=1", "guard.max_bad_fraction=0.9"]
    train = ["train", str(recipe), f"--run={tmp_path / 'run'}", *(f"--{item}" for item in [*settings, f"data.train=[{json.dumps(entry)}]"])]
    assert cli.main(train) == 0, capsys.readouterr().err
    rows = files.read_rows(tmp_path / "run" / "quarantine.jsonl")
    assert {row["index"] for row in rows if row["attempt"] == 0} >= {2}
    assert all("is not UTF-8 text" in row["reason"] for row in rows)


def parquet(path, **columns):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def table(path):
    return open_source(SourceEntry(source="datasets", path=str(path)), seed=0, cache=str(path.parent / "cache"))


def reasons(source):
    """The text of each row, or why it is a bad sample."""
    told = []
    for index in range(len(source)):
        try:
            sample = source[index]
            told.append((sample["messages"][-1]["content"], [images.decode(body).shape[1:] for body in sample["images"]]))
        except BadSample as error:
            told.append(str(error).partition("] ")[2] or str(error))
    return told


NULL = "no text: `caption` is null"


@pytest.mark.parametrize(
    ("captions", "told"),
    [
        ([1, None], ["`caption` is a number, not text", NULL]),
        ([True, None], ["`caption` is true or false, not text", NULL]),
        ([1.5, float("nan")], ["`caption` is a number, not text", NULL]),
        ([b"a", None], ["`caption` is bytes, not text", NULL]),
        ([["a"], None], ["`caption` is a list, not text", NULL]),
        ([{"a": "b"}, None], ["`caption` is an object, not text", NULL]),
        ([datetime.date(2020, 1, 1), None], ["`caption` is a date, not text", NULL]),
        ([decimal.Decimal("1.5"), None], ["`caption` is a Decimal, not text", NULL]),
        ([datetime.timedelta(1), None], ["`caption` is a timedelta, not text", NULL]),
        ([None, None], [NULL, NULL]),
    ],
    ids=lambda value: type(value[0]).__name__,
)
def test_a_column_that_is_no_text_makes_bad_samples(tmp_path, captions, told):
    pytest.importorskip("datasets")
    assert reasons(table(parquet(tmp_path / "a.parquet", caption=captions))) == told


@pytest.mark.parametrize("column", ["image", "images"])
@pytest.mark.parametrize(
    ("cells", "told"),
    [
        ([picture(1), b"junk"], [("x", [(4, 6)]), "not a readable image (4 bytes): no format that is read"]),
        (["a.png", "none.png"], [("x", [(4, 6)]), "none.png': No such file or directory"]),
        (["a.png", "../a.png"], [("x", [(4, 6)]), "leaves the folder"]),
        (["a.png", "a\0.png"], [("x", [(4, 6)]), "embedded null byte"]),
        (["a.png", ""], [("x", [(4, 6)]), "the path '' names no file"]),
        ([[picture(1)], [None]], [("x", [(4, 6)]), "no image, but null"]),
        ([[picture(1), picture(2)], [b"x"]], [("x", [(4, 6)] * 2), "not a readable image (1 bytes)"]),
        ([{"bytes": picture(1), "path": None}, {"bytes": None, "path": None}], [("x", [(4, 6)]), "no image, but an object"]),
        ([1, None], ["no image, but a number", ("x", [])]),
        ([[[0.5]], None], ["no image, but a list", ("x", [])]),
    ],
)  # fmt: skip
def test_a_cell_that_is_no_picture_makes_a_bad_sample(tmp_path, column, cells, told):
    pytest.importorskip("datasets")
    (tmp_path / "a.png").write_bytes(picture(1))
    for answer, right in zip(reasons(table(parquet(tmp_path / "a.parquet", caption=["x", "x"], **{column: cells}))), told, strict=True):
        assert answer == right if isinstance(right, tuple) else right in answer


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("a.parquet", b"", "a.parquet is empty (0 bytes)"),
        ("a.json", b"", "a.json is empty (0 bytes)"),
        ("a.csv", b"", "a.csv is empty (0 bytes)"),
        ("a.parquet", b"<html>", "(train): Parquet file size is 6 bytes, smaller than the minimum file footer"),
        ("a.parquet", b"junk" * 99, "(train): Parquet magic bytes not found in footer"),
        ("a.arrow", b"junk" * 99, "(train): Not an Arrow file"),
        ("a.json", b"<html>", "a.json:1 is not JSON: Expecting value"),
        ("a.jsonl", b'{"caption": "a", "caption": "b"}\n', "a.jsonl:1: the key 'caption' is given twice"),
        ("a.jsonl", b'{"a": ' + b"[" * 2000 + b"]" * 2000 + b"}\n", "a.jsonl:1 is nested too deeply to be read"),
        ("a.json", b'{"data": [{"caption": "x"}], "data": [{"caption": "y"}]}', "gives the key 'data' twice"),
        ("a.csv", "caption\nx\n".encode("utf-16"), "a.csv is UTF-16; CSV is UTF-8: iconv -f UTF-16 -t UTF-8 a.csv > new.csv"),
        ("a.csv", "größe\nx\n".encode("latin-1"), "the header of "),
        ("a.csv", b"caption\n", "a.csv holds no records"),
        ("a.csv", b'caption\n"x\ny\nz\n', "a.csv: the quote that opens a cell in line 2 is not closed: close it, or double it"),
        ("a.csv", b"caption,caption\nx,y\n", "a.csv names 'caption' twice: rename one"),
    ],
)
def test_a_file_that_is_no_table_is_told_in_one_line_with_its_cause(tmp_path, name, body, message):
    pytest.importorskip("datasets")
    (tmp_path / name).write_bytes(body)
    with pytest.raises(PlaitError) as caught:
        table(tmp_path / name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
