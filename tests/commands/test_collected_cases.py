"""Inputs that other trainers got wrong, through `plait data inspect`: every family, and every kind of source that can hold them.

Each input is written here, in every form; where the collected files are at hand, they are read as well (data/test_dirty_records.py).
"""

import contextlib
import csv
import io
import json
import re
from typing import NamedTuple

import pytest
import yaml
from PIL import Image, PngImagePlugin

from plait import cli
from plait.config.schema import SourceEntry
from plait.data.sources import kind
from plait.data.sources.open import open_source
from plait.errors import BadSample
from tests.data.packing import pack, picture
from tests.families.test_conformance import TINY

FORMS = ("jsonl", "folder", "metadata.jsonl", "metadata.csv", "shards", "datasets json", "datasets csv", "datasets parquet")
FLAT = ("metadata.csv", "datasets csv")
"""Forms whose cells are texts: no conversation can be written in them, and an empty cell is what null is elsewhere."""
PLAIN = picture(7, (48, 40))
CAPTION = {"assistant": "{caption}"}
WORDS = ["NA", "null", "none", "007"]


def tiff(orientation):
    """Stored so that it is 40 wide and 80 high after turning."""
    body = io.BytesIO()
    image = Image.new("RGB", (80, 40) if orientation >= 5 else (40, 80), (9, 90, 200))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(body, "TIFF", exif=exif)
    return body.getvalue()


def long_text_png():
    body, chunks = io.BytesIO(), PngImagePlugin.PngInfo()
    chunks.add_text("comment", "x" * 2_000_000, zip=True)
    Image.new("RGB", (48, 40)).save(body, "PNG", pnginfo=chunks)
    return body.getvalue()


def line():
    body = io.BytesIO()
    Image.new("L", (2, 30000)).save(body, "PNG")
    return body.getvalue()


def spoken(answer):
    question = "q" if isinstance(answer, str) else [{"type": "text", "text": "q"}]
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


class Case(NamedTuple):
    """`records`: (fields, picture, its ending). `texts`: those that are trained. `bad`: what is said of the others, by count."""

    records: list
    texts: list
    bad: str = ""
    template: dict | None = None
    size: str = "48x40"
    lacking: tuple = ()
    """Forms that cannot hold it."""


def captions(texts):
    return [({"caption": text}, PLAIN, "png") for text in texts]


FIFTEEN = [f"cat number {number}" for number in range(15)]
TURNS = [f"turn {number}" for number in range(1, 9)]
IMAGE_PART = [{"type": "text", "text": "here"}, {"type": "image", "text": None}]
CASES = {
    "null captions": Case(captions([None] * 5 + FIFTEEN), FIFTEEN, "5 x no text: `caption` is null"),
    "null captions in a template": Case(captions([None] * 5 + FIFTEEN), FIFTEEN, "5 x the field 'caption' is null", CAPTION),
    "words for nothing": Case(captions(WORDS), WORDS),
    "words for nothing in a template": Case(captions(WORDS), WORDS, template=CAPTION),
    "empty answers": Case(
        [(spoken(text), PLAIN, "png") for text in ("", " \n\t", "yes")], ["yes"], "2 x an empty answer; `allow_blank: true`", lacking=FLAT
    ),
    "an image in the answer": Case(
        [(spoken(text), PLAIN, "png") for text in (IMAGE_PART, [{"type": "text", "text": "yes"}])],
        ["yes"], "1 x the text of the assistant holds <image>", lacking=FLAT,
    ),
    "half a surrogate pair": Case(
        captions(["party \ud83d", *FIFTEEN]), FIFTEEN, "1 x a text with half of a surrogate pair", lacking=(*FLAT, "datasets parquet")
    ),
    "all orientations of a tiff": Case(
        [({"caption": text}, tiff(n), "tif") for n, text in enumerate(TURNS, 1)], TURNS, size="40x80"
    ),
    "a line": Case([({"caption": "a line"}, line(), "png")], ["a line"], size="2x30000"),
    "a png with long text": Case([({"caption": "long"}, long_text_png(), "png")], ["long"]),
}  # fmt: skip


def write(form, root, case):
    """Write the records in one form; returns the entry of `data.train`."""
    root.mkdir(parents=True)
    names = [f"{number:02d}.{ending}" for number, (_, _, ending) in enumerate(case.records)]
    if form == "shards":
        members = [(f"{name[:2]}.json", json.dumps(fields).encode()) for name, (fields, *_) in zip(names, case.records, strict=True)]
        members += [(name, body) for name, (_, body, _) in zip(names, case.records, strict=True)]
        return {"source": "shards", "path": str(pack(root / f"{root.name}.tar", sorted(members)))}
    for name, (_, body, _) in zip(names, case.records, strict=True):
        (root / name).write_bytes(body)
    column = "file_name" if form.startswith("metadata") else "image"
    rows = [{column: name} | fields for name, (fields, *_) in zip(names, case.records, strict=True)]
    if form == "folder":
        for name, (fields, *_) in zip(names, case.records, strict=True):
            (root / f"{name[:2]}.json").write_text(json.dumps(fields))
        return {"source": "folder", "path": str(root)}
    base, _, layout = form.partition(" ")
    path = root / (form if base.startswith("metadata") else f"{root.name}.{layout or 'jsonl'}")
    if form in FLAT:
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    elif layout == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"source": "folder", "path": str(root)} if base.startswith("metadata") else {"source": base, "path": str(path)}


def own_form(root):
    """Inputs that only one form can hold, as entries by name, each with the texts that are trained."""
    shots = [f"Screenshot 2024-01-01 at 10.{minute}" for minute in ("22.33", "45.12")]
    files = {
        "dots_in_names": {f"{name}{ending}": body for name in shots for ending, body in ((".png", PLAIN), (".txt", f"of {name}".encode()))},
        "caption_ending": {"a.png": PLAIN, "a.caption": b"beside it"},
        "metadata_text": {"a.png": PLAIN, "metadata.jsonl": b'{"file_name": "a.png", "text": "in the row"}\n'},
        "metadata_text_csv": {"a.png": PLAIN, "metadata.csv": b"file_name,text\na.png,in the cell\n"},
    }
    for folder, members in files.items():
        (root / folder).mkdir(parents=True)
        for name, body in members.items():
            (root / folder / name).write_bytes(body)
    entries = {name: {"source": "folder", "path": str(root / name)} for name in files}
    shard = pack(root / "ending.tar", [("a.png", PLAIN), ("a.caption", b"in the tar")])
    return entries | {"ending": {"source": "shards", "path": str(shard)}}


OWN = {
    "dots_in_names": ["of Screenshot 2024-01-01 at 10.22.33", "of Screenshot 2024-01-01 at 10.45.12"],
    "caption_ending": ["beside it"],
    "metadata_text": ["in the row"],
    "metadata_text_csv": ["in the cell"],
    "ending": ["in the tar"],
}


def entries_of(form, root):
    if form == "own":
        return own_form(root)
    possible = {name: case for name, case in CASES.items() if form not in case.lacking}
    entries = {name: write(form, root / name.replace(" ", "_"), case) for name, case in possible.items()}
    return {name: entry | ({"template": CASES[name].template} if CASES[name].template else {}) for name, entry in entries.items()}


def inspect(family, form, root):
    """Inspect every input that the form can hold in one recipe; returns the entries, and the table's line of each."""
    entries = entries_of(form, root / "data")
    recipe = {
        "family": family,
        "data": {"train": list(entries.values()), "workers": 0, "cache": str(root / "cache")},
        "train": {"steps": 1},
    }
    (root / "recipe.yaml").write_text(yaml.dump({**recipe, **yaml.safe_load(TINY[family])}))
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        code = cli.main(["data", "inspect", str(root / "recipe.yaml"), "--samples=4", f"--out={root / 'out'}"])
    assert code == 0, told.getvalue()
    rows = dict(re.findall(r"^  (\S+): (\d+ samples, .*)$", told.getvalue(), re.MULTILINE))
    lines = {name: rows[kind.title(SourceEntry(**entry))] for name, entry in entries.items()}
    return entries, lines


@pytest.fixture(scope="module")
def inspected(tmp_path_factory):
    """What `inspect` returns for a family and a form; made when it is first asked for."""
    known = {}

    def of(family, form):
        if "datasets" in form:
            pytest.importorskip("datasets")
        if (family, form) not in known:
            known[family, form] = inspect(family, form, tmp_path_factory.mktemp("cases"))
        return known[family, form]

    return of


def trained(entry):
    """The texts that come out of a source, those of bad samples left out."""
    source, texts = open_source(SourceEntry(**entry), seed=0), []
    for index in range(len(source)):
        with contextlib.suppress(BadSample):
            texts.append(source[index]["messages"][-1]["content"])
    return texts


PRODUCT = [(name, form) for name, case in CASES.items() for form in FORMS if form not in case.lacking]


@pytest.mark.parametrize("family", sorted(TINY))
@pytest.mark.parametrize(("name", "form"), PRODUCT, ids=lambda value: value.replace(" ", "-"))
def test_an_input_gives_what_is_right_in_every_family_and_form(inspected, name, form, family):
    entries, lines = inspected(family, form)
    case = CASES[name]
    bad = len(case.records) - len(case.texts)
    assert lines[name].startswith(f"{len(case.records)} samples, all looked at: ") and f"pictures of {case.size} px" in lines[name]
    assert f"{bad} bad ({case.bad}" in lines[name] if bad else " bad (" not in lines[name]
    assert trained(entries[name]) == case.texts


@pytest.mark.parametrize("family", sorted(TINY))
@pytest.mark.parametrize("name", OWN)
def test_an_input_of_one_form_gives_what_is_right_in_every_family(inspected, name, family):
    entries, lines = inspected(family, "own")
    assert lines[name].startswith(f"{len(OWN[name])} samples, all looked at: ") and " bad (" not in lines[name]
    assert trained(entries[name]) == OWN[name]


@pytest.mark.parametrize("form", ["jsonl", "shards", "datasets json", "datasets parquet"])
@pytest.mark.parametrize("family", sorted(TINY))
def test_text_alone_is_told_before_the_first_step_in_every_family_and_form(tmp_path, family, form, capsys):
    if "datasets" in form:
        pytest.importorskip("datasets")
    records = [spoken(f"a {number}") for number in range(8)]
    path = tmp_path / {"shards": "texts.tar", "datasets parquet": "texts.parquet"}.get(form, "texts.jsonl")
    if form == "shards":
        pack(path, [(f"{number}.json", json.dumps(record).encode()) for number, record in enumerate(records)])
    elif form == "datasets parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    entry = {"source": form.split()[0], "path": str(path)}
    recipe = {"family": family, "data": {"train": [entry], "workers": 0, "cache": str(tmp_path / "cache")}}
    recipe |= {"train": {"steps": 1, "global_batch": 2}, "trainable": ["*"], "track": {"tensorboard": False}}
    (tmp_path / "recipe.yaml").write_text(yaml.dump({**recipe, **yaml.safe_load(TINY[family])}))
    assert cli.main(["train", str(tmp_path / "recipe.yaml"), f"--run={tmp_path / 'run'}"]) == 2
    told, error = capsys.readouterr()
    unused = "vision trains, but none of the 8 samples looked at has images: leave vision out of trainable, or say guard.no_input=continue"
    undrawn = (
        f"{form.split()[0]}:{path.name}: none of the 8 samples looked at can be used: no image in the sample, and the model draws pixels"
    )
    assert error.splitlines()[-1].startswith(f"plait: {undrawn if family == 'nanodit' else unused}")
    assert f"  {form.split()[0]}:{path.name}: 8 samples, all looked at: " in told
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("kind", ["jsonl", "datasets"])
@pytest.mark.parametrize("family", sorted(TINY))
@pytest.mark.parametrize("between", ["", "\n"])
def test_more_after_an_array_is_refused_with_its_place(tmp_path, between, family, kind, capsys):
    arrays = [json.dumps([{"image": "a.png", "caption": text}]) for text in ("x", "lost")]
    path = tmp_path / "arrays.json"
    path.write_text(between.join(arrays))
    recipe = {"family": family, "data": {"train": [{"source": kind, "path": str(path)}], "workers": 0}, "train": {"steps": 1}}
    (tmp_path / "recipe.yaml").write_text(yaml.dump({**recipe, **yaml.safe_load(TINY[family])}))
    for command in (["data", "inspect"], ["train"]):
        out = f"--out={tmp_path / 'out'}" if command[0] == "data" else f"--run={tmp_path / 'run'}"
        assert cli.main([*command, str(tmp_path / "recipe.yaml"), out]) == 2
        place = f"{path} goes on after its array of 1 records, at offset {len(arrays[0] + between)}; make it one array, or lines"
        assert capsys.readouterr().err.splitlines()[-1] == f"plait: data source {kind}:arrays.json: {place}"
