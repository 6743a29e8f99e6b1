"""Several annotations of one image, as the page writes them: read by every reader of records, checked one by one, and trained on."""

import io
import json
import re
import tarfile
from pathlib import Path

import pytest
import yaml
from PIL import Image

from plait import cli
from plait.config.schema import SourceEntry
from plait.data.sources.open import open_source
from plait.errors import BadSample, PlaitError

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "molmo.md").read_text(encoding="utf-8")
EXAMPLE = re.search(r"^Several annotations of one image: `(.+?)`", PAGE, re.MULTILINE)[1]
RECIPE = {
    "family": "molmo",
    "preset": "debug",
    "trainable": ["connector", "language"],
    "data": {"validation": [], "workers": 0},
    "train": {"steps": 2, "global_batch": 2},
    "evaluate": [],
}


def turns(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def page_record():
    """The page's example, its dots filled in, and a second annotation without style and weight."""
    filled = EXAMPLE.replace('"image": …', '"image": "cat.png"').replace("[…]", json.dumps(turns("How many?", "one"))).replace(", …]", "]")
    record = json.loads(filled)
    record["annotations"].append({"messages": turns("Which colour?", "red")})
    return record


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "cat.png")
    return tmp_path


def write_jsonl(folder, record):
    (folder / "mine.jsonl").write_text(2 * (json.dumps(record) + "\n"))  # of one line alone it is asked whether it is a list of records
    return {"source": "jsonl", "path": str(folder / "mine.jsonl")}


def write_shards(folder, record):
    with tarfile.open(folder / "mine.tar", "w") as tar:
        members = {"a.png": (folder / "cat.png").read_bytes(), "a.json": json.dumps({**record, "image": None}).encode()}
        for name, body in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    return {"source": "shards", "path": str(folder / "mine.tar")}


def write_folder(folder, record):
    (folder / "pictures").mkdir()
    rows = [{"file_name": name, "annotations": record["annotations"]} for name in ("cat.png", "dog.png")]
    for row in rows:
        (folder / "pictures" / row["file_name"]).write_bytes((folder / "cat.png").read_bytes())
    (folder / "pictures" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"source": "folder", "path": str(folder / "pictures")}


def write_parquet(folder, record):
    datasets = pytest.importorskip("datasets")
    held = {**record, "image": {"bytes": (folder / "cat.png").read_bytes(), "path": None}}
    datasets.Dataset.from_list([held]).to_parquet(folder / "mine.parquet")
    return {"source": "datasets", "path": str(folder / "mine.parquet")}


WRITERS = {"jsonl": write_jsonl, "shards": write_shards, "folder": write_folder, "parquet": write_parquet}


def opened(entry):
    return open_source(SourceEntry(**entry), seed=0)


def train(folder, entry, *more):
    (folder / "mine.yaml").write_text(yaml.safe_dump({**RECIPE, "data": {**RECIPE["data"], "train": [entry]}}))
    return cli.main(["train", str(folder / "mine.yaml"), f"--run={folder / 'run'}", *more])


@pytest.mark.parametrize("form", WRITERS)
def test_the_pages_example_reaches_the_model_from_every_reader(form, folder):
    entry = WRITERS[form](folder, page_record())
    sample = opened(entry)[0]
    assert sample["annotations"] == [
        {"messages": turns("How many?", "one"), "style": "vqa2", "weight": 1.0},
        {"messages": turns("Which colour?", "red")},
    ]
    assert (len(sample["images"]), sample["messages"], "annotations" in sample["fields"]) == (1, turns("How many?", "one"), False)
    assert train(folder, entry) == 0
    assert not (folder / "run" / "quarantine.jsonl").exists()


def test_annotations_win_over_messages_and_a_template_over_both(folder):
    record = {**page_record(), "messages": turns("Other?", "yes"), "question": "Asked?", "answer": "so"}
    entry = write_jsonl(folder, record)
    assert len(opened(entry)[0]["annotations"]) == 2
    sample = opened({**entry, "template": {"user": "{question}", "assistant": "{answer}"}})[0]
    assert (sample["messages"], "annotations" in sample) == (turns("Asked?", "so"), False)


def test_boxes_are_a_field_like_any_other(folder):
    sample = opened(write_jsonl(folder, {"image": "cat.png", "caption": "A cat.", "annotations": [{"bbox": [1, 2, 3, 4], "text": "x"}]}))[0]
    assert sample["messages"][-1]["content"] == "A cat."
    assert "annotations" not in sample and sample["fields"]["annotations"][0]["bbox"] == [1, 2, 3, 4]


GOOD = {"messages": turns("a", "b")}
WRONG = {
    "blank": ({"messages": turns("a", " ")}, "annotation 2 of 2: an empty answer; `allow_blank: true` of the source trains on it"),
    "marks": ({"messages": turns("<image><image>a", "b")}, "annotation 2 of 2: the text has 2 <image> marks, the sample 1 images"),
    "no text": ({"style": "vqa2"}, "annotation 2 of 2: none of the fields messages, conversations, texts, caption, text; it has style"),
    "no object": ("b", "annotation 2 of 2: it is text, not an object with `messages`"),
    "style": ({**GOOD, "style": 3}, "annotation 2 of 2: its `style` is a number, not text"),
    "weight": ({**GOOD, "weight": -1}, "annotation 2 of 2: its `weight` is -1, not a number of at least 0"),
    "weight as text": ({**GOOD, "weight": "2"}, "annotation 2 of 2: its `weight` is text, not a number of at least 0"),
}


@pytest.mark.parametrize(("item", "reason"), WRONG.values(), ids=WRONG)
def test_each_annotation_is_checked(item, reason, folder):
    source = opened(write_jsonl(folder, {"image": "cat.png", "annotations": [GOOD, item]}))
    with pytest.raises(BadSample) as told:
        source[0]
    assert str(told.value) == reason


def test_an_annotation_without_an_answer_is_told_by_the_run(folder, capsys):
    record = {"image": "cat.png", "annotations": [GOOD, {"messages": turns("a", "b")[:1]}]}
    assert train(folder, write_jsonl(folder, record)) == 2
    assert "no assistant turn" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["one.json", "one.jsonl"])
def test_a_file_of_one_record_is_read_as_the_record_with_its_annotations(folder, name):
    path = folder / name
    path.write_text(json.dumps({"image": "cat.png", "annotations": [GOOD, GOOD]}))
    source = opened({"source": "jsonl", "path": str(path)})
    assert (len(source), len(source[0]["images"]), len(source[0]["annotations"])) == (1, 1, 2)
    path.write_text(json.dumps({"image": "cat.png", "annotations": [{"image": "cat.png", "caption": "a"}]}))
    with pytest.raises(PlaitError, match=r"may be one record or those in its array 'annotations': .* put \[ \] around the one record"):
        opened({"source": "jsonl", "path": str(path)})


@pytest.mark.parametrize("family", ["theworld", "nanodit"])
def test_families_that_learn_one_conversation_refuse_several(family):
    from plait.families.nanodit.inputs import caption
    from plait.families.theworld.inputs import Inputs

    sample = {"id": "a", "images": [], "messages": GOOD["messages"], "fields": {}, "annotations": [GOOD, GOOD]}
    with pytest.raises(BadSample, match=f"it has 2 annotations, of which {family} learns one"):
        caption(sample) if family == "nanodit" else Inputs.encode(None, sample, 0)
