"""Fifty hostile and dirty records at a time through every kind of source of files: each is the right sample, or one bad sample.

What is right is known beforehand: every record is put together of a text and a picture that are good, with the text and the colour that
must come out, or bad, with words of the reason; half of the records are good ones. Among the bad ones is one of each of FAULTS.
"""

import base64
import csv
import dataclasses
import datetime
import decimal
import io
import json
import math
import os
import re
import struct
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from plait import cli, files
from plait.config.schema import SourceEntry
from plait.data import images
from plait.data.formats.pictures import png
from plait.data.sources.open import open_source
from plait.data.text import blank
from plait.engine.checkpoints import checkpoint
from plait.errors import BadSample, PlaitError
from plait.families import registry
from tests import toy_family
from tests.data.packing import pack, picture

RECORDS = 50


class Case(NamedTuple):
    """A record: its caption and picture as JSON values or bytes, what must come out of each (None: a bad sample), part of its name,
    words of the reason of each that is bad, and a fault of how its caption is written.
    """

    caption: object
    text: str | None
    body: bytes
    red: int | None
    name: str
    why: str = ""
    fault: str | None = None


class Why(str):
    """Words of the reason of a bad sample."""


LETTERS = st.characters(exclude_categories=("Cs",))
TEXTS = st.text(LETTERS, min_size=1, max_size=30).filter(lambda text: not blank(text) and "\0" not in text and "<image>" not in text)
HARD_TEXTS = ["None", "nan", "null", "0", "\u202eleft", "\x1b[2Jclear", "e\u0301", "{caption}", "%s", "'; --", "\\u0041", "😀"]
GOOD_TEXTS = (TEXTS | st.sampled_from(HARD_TEXTS)).map(lambda text: text.replace("\ufeff", "x"))
BAD_CAPTIONS = st.one_of(
    st.none(), st.integers(), st.booleans(), st.just(float("nan")), st.floats(allow_nan=False),
    st.lists(st.text(LETTERS, max_size=3), max_size=3), st.dictionaries(st.sampled_from("ab"), st.none() | st.integers(), max_size=2),
    st.sampled_from(["", " \n\t", "\u200b", "\x1b", "a\0b", "see <image>", "half \ud83d", "x" * 1_000_001]),
)  # fmt: skip
WHY_OF_TEXTS = {
    "see <image>": "the text of the assistant holds <image>", "half \ud83d": "half of a surrogate pair", "a\0b": "a text with a NUL",
}  # fmt: skip
WHY_OF_TYPES = {type(None): "null", int: "a number", float: "a number", bool: "true or false", list: "a list", dict: "an object"}
LONG = "x" * 1_000_002
FAULTS = ("two texts", "double key", "nested", "mark in the system's text", "long")
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


def hurt_png(at, *, right_checksum):
    """A PNG whose compressed pixels differ in a byte; its checksum is that of the pixels before the damage, or after it."""
    pixels = zlib.compress(b"\0" + bytes(18) * 4, 0)  # stored, so that its own checksum finds any damage
    hurt = bytearray(pixels)
    hurt[at % len(hurt)] ^= 0x55
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 6, 4, 8, 2, 0, 0, 0)), (b"IDAT", bytes(hurt)), (b"IEND", b"")]
    body = b"\x89PNG\r\n\x1a\n"
    for kind, content in chunks:
        summed = content if right_checksum or kind != b"IDAT" else pixels
        body += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + summed))
    return body


HURT = st.builds(lambda at, right: hurt_png(at, right_checksum=right), st.integers(0, 999), st.booleans())


def why_no_text(caption):
    if isinstance(caption, str):
        return WHY_OF_TEXTS.get(caption, "over the limit" if len(caption) > 1_000_000 else "an empty answer")
    return "null" if isinstance(caption, float) and math.isnan(caption) else WHY_OF_TYPES[type(caption)]


def why_no_picture(body):
    return "does not match its checksum" if png.damage(body) else "not a readable image"


@st.composite
def cases(draw, good_text, good_picture):
    caption = draw(GOOD_TEXTS if good_text else BAD_CAPTIONS)
    red = draw(st.integers(0, 255)) if good_picture else None
    kind = st.sampled_from(["PNG", "BMP", "GIF", "TIFF"])
    body = picture(red, kind=draw(kind)) if good_picture else draw(st.sampled_from(BAD_BODIES) | HURT)
    why = why_no_text(caption) if not good_text else "" if good_picture else why_no_picture(body)
    return Case(caption, caption.strip() if good_text else None, body, red, draw(NAMES), why)


def faulty(fault):
    """A good case but for a fault of how its caption is written."""
    return st.builds(lambda case: case._replace(text=None, fault=fault), GOOD)


def with_bad_pixels(right_checksum):
    why = "not a readable image" if right_checksum else "does not match its checksum"
    hurt = st.builds(lambda at: hurt_png(at, right_checksum=right_checksum), st.integers(0, 999))
    return st.builds(lambda case, body: case._replace(body=body, red=None, why=why), GOOD, hurt)


GOOD = cases(True, True)
DIRTY = st.one_of(cases(False, True), cases(True, False), cases(False, False))
HALF = RECORDS // 2
EACH = [*map(faulty, FAULTS), with_bad_pixels(True), with_bad_pixels(False)]
OTHERS = HALF - len(EACH)
FIFTY = st.builds(
    lambda first, good, dirty, each, shuffle: [first, *shuffle.sample([*good, *dirty, *each], RECORDS - 1)],
    GOOD, st.lists(GOOD, min_size=HALF - 1, max_size=HALF - 1), st.lists(DIRTY, min_size=OTHERS, max_size=OTHERS), st.tuples(*EACH),
    st.randoms(),
)  # fmt: skip
"""Half of them good ones, the first among them."""


def right(case):
    """What a sample of the case must hold; words of its reason for a bad one."""
    return Why(case.why) if case.text is None or case.red is None else (case.text, case.red)


def as_json(case, field="caption", **others):
    """The case as JSON, with its fault, and what must come out."""
    if case.fault == "two texts":  # in one file: as a double key
        case = case._replace(fault="double key")
    plain = {**others, field: LONG if case.fault == "long" else case.caption}
    written = json.dumps(plain)
    if case.fault == "double key":
        return f'{written[:-1]}, "{field}": "another"}}', Why(f"the key '{field}' is given twice")
    if case.fault == "nested":
        return f'{json.dumps(others)[:-1]}{", " * bool(others)}"{field}": {"[" * 5_000}{"]" * 5_000}}}', Why("nested too deeply to be read")
    if case.fault == "mark in the system's text":
        return json.dumps({**others, "messages": marked_turns(case)}), Why("the text of the system holds <image>")
    return written, Why("a text of 1,000,002 characters is over the limit") if case.fault == "long" else right(case)


def marked_turns(case):
    turns = {"system": "see <image>", "user": "what?", "assistant": case.caption}
    return [{"role": role, "content": content} for role, content in turns.items()]


def write_jsonl(root, records):
    """Lines that name their picture by a path or hold it; the bad ones also name what is no picture of the folder's."""
    (root / "in").mkdir(parents=True)
    lines, expected = [], []
    for number, case in enumerate(records):
        (root / "in" / f"{number}.png").write_bytes(case.body)
        address = f"in/{number}.png" if number % 2 else "data:image/png;base64," + base64.b64encode(case.body).decode()
        line, out = as_json(case, id=f"{number} {case.name}", image=address)
        lines.append(line)
        expected.append(out)
    (root / "a.jsonl").write_text("\n".join(lines) + "\n")
    return {"source": "jsonl", "path": str(root / "a.jsonl")}, expected


def write_metadata(root, records):
    """A folder whose metadata.jsonl names the pictures; of some rows nothing."""
    (root / "in").mkdir(parents=True)
    lines, expected = [], []
    for number, case in enumerate(records):
        (root / "in" / f"{number}.png").write_bytes(case.body)
        named = {"file_name": f"in/{number}.png"} if number % 5 != 4 else {"file_name": None} if number % 2 else {}
        line, out = as_json(case, "text", **named)
        unread = case.fault in ("two texts", "double key", "nested")
        lines.append(line)
        expected.append(out if named.get("file_name") or unread else Why("names no picture" if named else "no field 'file_name'"))
    (root / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return {"source": "folder", "path": str(root)}, expected


QUOTES = {
    "two texts": ('{0},"a" b', "is no row of CSV"),
    "double key": ('{0},"a\n{0},b"', "lone quotes may join rows"),
    "nested": ('{0},"a","b"', "3 cells, and the header 2"),
    "mark in the system's text": ("{0},see <image>", "the text of the assistant holds <image>"),
    "long": ("{0}," + LONG, "a text of 1,000,002 characters is over the limit"),
}
"""What stands in CSV for the faults that JSON can have: a row, and the reason."""
TABBED = {"double key": ('{0},"a\tb\nc"', "a cell with a tab and a line break between quotes")}
"""The same where tabs are the delimiter."""


def write_csv(root, records):
    """A folder with metadata.csv: cells of any text between quotes, in rows that name a picture or leave its cell empty, or with a fault.

    Commas or, where the first record's name is of odd length, tabs are between the cells.
    """
    (root / "in").mkdir(parents=True)
    expected, tabs = [], len(records[0].name) % 2
    body = io.StringIO()
    rows = csv.writer(body, quoting=csv.QUOTE_ALL, delimiter="\t" if tabs else ",", lineterminator="\n")
    rows.writerow(["file_name", "text"])
    for number, case in enumerate(records):
        (root / "in" / f"{number}.png").write_bytes(case.body)
        if case.fault:
            row, why = TABBED.get(case.fault, QUOTES[case.fault]) if tabs else QUOTES[case.fault]
            body.write((row.replace(",", "\t") if tabs else row).format(f"in/{number}.png") + "\n")
            expected.append(Why(why))
            continue
        text = case.caption if case.text is not None and case.caption.isprintable() else None
        text = f'say "{text}"\n, then' if text and number % 4 == 1 else text
        rows.writerow([f"in/{number}.png" if number % 5 != 4 else "", text or ""])
        unread = Why("names no picture" if number % 5 == 4 else "`text` is null" if not text else case.why)
        expected.append((text.strip(), case.red) if text and number % 5 != 4 and case.red is not None else unread)
    (root / "metadata.csv").write_text(body.getvalue(), newline="")
    return {"source": "folder", "path": str(root)}, expected


def file_name(case):
    """The case's name without what no file name, or no name of one sample, can hold."""
    return re.sub(r"[/\x00]", "", case.name).encode("utf-8", "surrogateescape")[:180].decode("utf-8", "surrogateescape")


def caption_files(number, case):
    """The files of a case's caption, each its ending and bytes, and what must come out."""
    if case.fault == "two texts":
        both = [("json", json.dumps({"caption": case.caption}).encode()), ("txt", case.caption.encode() + b" and more")]
        return both[:: 1 if number % 2 else -1], Why("has two values for the field 'caption'")
    if case.fault == "long" and number % 2:
        return [("txt", LONG.encode())], Why("a text of 1,000,002 characters is over the limit")
    if case.fault is None and case.text is not None and number % 3:
        return [(("txt", "caption", "TXT")[number % 3], case.caption.encode())], right(case)
    if case.fault is None and isinstance(case.caption, str) and number % 3 and not case.caption.isascii():
        return [("txt", case.caption.encode("utf-16", "surrogatepass"))], Why("is not UTF-8 text")
    written, out = as_json(case)
    return [("json", written.encode())], out


def write_folder(root, records):
    """Pictures with a file of their caption beside; names no one would choose; links, pipes and folders that look like pictures."""
    root.mkdir(parents=True)
    expected, frames = [], 0
    for number, case in enumerate(records):
        stem = f"{number:02d}{file_name(case)}"
        captions, out = caption_files(number, case)
        for ending, body in captions:
            (root / f"{stem}.{ending}").write_bytes(body)
        (root / f"{stem}.{('png', 'JPG', 'webp')[number % 3]}").write_bytes(case.body)
        if re.fullmatch(r".+\.frame[^.]*", stem, re.DOTALL):
            frames += 1 + len(captions)
        else:
            expected.append(out)
    os.mkfifo(root / "50.png")
    (root / "51.png").symlink_to("nowhere")
    (root / "52.png").mkdir()
    LEFT_OUT[str(root)] = frames + 2
    return {"source": "folder", "path": str(root)}, expected


LEFT_OUT: dict[str, int] = {}
"""The number of files that belong to no sample, by folder."""


def write_shards(root, records):
    """One tar; a sample's name is plain, as its members are told apart by dots, but for letters and spaces of any language."""
    members, expected = [], []
    for number, case in enumerate(records):
        stem = f"{'./' * (number % 2)}{number:02d}{file_name(case).replace('.', '')}"
        captions, out = caption_files(number, case)
        members += [(f"{stem}.{('png', 'JPG', 'webp')[number % 3]}", case.body)]
        members += [(f"{stem}.{ending}", body) for ending, body in captions]
        expected.append(out)
    return {"source": "shards", "path": str(pack(root / "a.tar", members))}, expected


def write_datasets(root, records):
    """A parquet file: pictures as bytes, as paths, and as neither; captions are text, which the column's type demands, or null."""
    import pyarrow
    import pyarrow.parquet

    root.mkdir(parents=True)
    cells, captions, turns, expected = [], [], [], []
    for number, case in enumerate(records):
        (root / f"{number}.png").write_bytes(case.body)
        by_path = {"bytes": None, "path": f"{number}.png" if number % 4 else "../../etc/passwd"}
        cells.append(by_path if number % 2 == 0 else {"bytes": case.body, "path": "elsewhere.png"})
        written = isinstance(case.caption, str) and case.caption.isprintable() and len(case.caption) < 100
        marked = case.fault == "mark in the system's text"
        text = case.caption if case.fault is None and (case.text is not None or written) else LONG if case.fault == "long" else None
        captions.append(text)
        turns.append(marked_turns(case) if marked else None)
        why = Why(
            "the text of the system holds <image>" if marked else "over the limit" if text == LONG else "null" if text is None else ""
        )
        expected.append(Why("leaves the folder") if number % 4 == 0 else why or right(case))
    features = {"image": {"_type": "Image"}, "caption": {"dtype": "string", "_type": "Value"}}
    of_turn = {name: {"dtype": "string", "_type": "Value"} for name in ("role", "content")}
    features["messages"] = {"feature": of_turn, "_type": "List"}
    pictures = pyarrow.array(cells, pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}))
    messages = pyarrow.array(turns, pyarrow.list_(pyarrow.struct({"role": pyarrow.string(), "content": pyarrow.string()})))
    table = pyarrow.table({"image": pictures, "caption": captions, "messages": messages})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(table, root / "a.parquet")
    return {"source": "datasets", "path": str(root / "a.parquet")}, expected


WRITERS = {
    "jsonl": write_jsonl, "folder": write_folder, "metadata.jsonl": write_metadata, "metadata.csv": write_csv, "shards": write_shards,
    "datasets": write_datasets,
}  # fmt: skip
WITH_PACKAGE = ("metadata.csv", "datasets")


def came_out(source):
    """(text, red of the picture) of each sample, or the reason of a bad one."""
    told = []
    for index in range(len(source)):
        try:
            sample = source[index]
            (pixels,) = [images.decode(body) for body in sample["images"]]
        except BadSample as error:
            told.append(str(error))
            continue
        (red,) = pixels[0].unique().tolist()
        told.append((sample["messages"][-1]["content"], red))
    return told


def differences(told, expected):
    """(index, what came out, what should have) of each record that is neither the right sample nor a bad one for the right reason."""
    pairs = enumerate(zip(told, expected, strict=True))
    return [
        (i, str(was)[:200], right) for i, (was, right) in pairs if not (right in was if isinstance(right, Why) and was else was == right)
    ]


@pytest.mark.parametrize("kind", list(WRITERS))
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(FIFTY)
def test_each_of_fifty_records_is_the_right_sample_or_a_bad_one(kind, records):
    pytest.importorskip("datasets") if kind in WITH_PACKAGE else None
    with tempfile.TemporaryDirectory() as folder:
        entry, expected = WRITERS[kind](Path(folder) / "data", records)
        source = open_source(SourceEntry(**entry), seed=0, cache=f"{folder}/cache")
        assert not differences(came_out(source), expected)
        if kind == "folder":
            assert sum(source.left_out.values()) == LEFT_OUT.pop(entry["path"])


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
        assume(sum(not isinstance(right, Why) for right in expected) >= 12)  # else 50 replacements in a row may all be bad
        recipe = toy_family.install(patch, root)
        patch.setattr(registry, "load", lambda name: dataclasses.replace(toy_family.FAMILY, Inputs=Inputs))
        SEEN.clear()
        settings = ["stages=[]", "evaluate=[]", "checkpoint.best=null", "train.steps=null", "train.epochs=1", "train.global_batch=1"]
        settings += [f"data.train=[{json.dumps(entry)}]", f"data.cache={root}/cache", "guard.max_bad_fraction=0.99"]
        assert cli.main(["train", str(recipe), f"--run={root / 'run'}", *(f"--{item}" for item in settings)]) == 0
        bad = [row for row in files.read_rows(root / "run" / "quarantine.jsonl") if row["attempt"] == 0]
        reasons = {row["index"]: row["reason"] for row in bad}
        of_bad = {index: right for index, right in enumerate(expected) if isinstance(right, Why)}
        assert reasons.keys() == of_bad.keys() and len(reasons) == len(bad)
        assert not differences([reasons[index] for index in of_bad], list(of_bad.values()))
        assert {right for right in expected if not isinstance(right, Why)} == SEEN
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
        (["a.png", ""], [("x", [(4, 6)]), ("x", [])]),  # blank: no picture
        ([[picture(1)], [None]], [("x", [(4, 6)]), "picture 1 of its list of 1 is null or blank: take it out of the list"]),
        ([[picture(1), picture(2)], [b"x"]], [("x", [(4, 6)] * 2), "not a readable image (1 bytes)"]),
        ([{"bytes": picture(1), "path": None}, {"bytes": None, "path": None}], [("x", [(4, 6)]), ("x", [])]),
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
        ("a.parquet", b"<html>", "a.parquet is no whole parquet file (Parquet file size is 6 bytes"),
        ("a.parquet", b"junk" * 99, "a.parquet is no whole parquet file (Parquet magic bytes not found in footer"),
        ("a.arrow", b"junk" * 99, "a.arrow is no whole Arrow file (Not an Arrow file)"),
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
