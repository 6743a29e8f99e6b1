"""Sources: every kind of entry, what they make of a record, and what they say when they cannot."""

import base64
import json
import pickle
import shutil
import sys

import pytest

from plait.config.schema import SourceEntry, Template
from plait.data.sources.open import open_all, open_source
from plait.data.sources.shards import index_files
from plait.errors import BadSample, PlaitError
from tests.data.packing import labelled, pack, picture

LABEL = Template(user="Which number?", assistant="{label}")


def entry(source, path=None, **more):
    return SourceEntry(source=source, path=None if path is None else str(path), **more)


def opened(source, path=None, *, split="train", **more):
    return open_source(entry(source, path, **more), seed=0, split=split)


def answers(source):
    return [source[i]["messages"][-1]["content"] for i in range(len(source))]


def write_lines(path, records):
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n")
    return path


def test_shards_give_samples_with_messages_from_the_template(tmp_path):
    source = opened("shards", labelled(tmp_path / "a.tar", 0, 3), template=LABEL)
    assert source.name == "shards:a.tar"
    assert source[2] == {
        "id": "a/0002",
        "images": [picture(2)],
        "messages": [{"role": "user", "content": "Which number?"}, {"role": "assistant", "content": "2"}],
        "fields": {"label": 2},
    }


def test_limit_columns_and_pickling_hold_for_a_source(tmp_path):
    path = labelled(tmp_path / "a.tar", 0, 9)
    source = opened("shards", path, limit=4, columns={"number": "label"}, template=Template(assistant="{number}"))
    assert len(source) == 4
    assert answers(pickle.loads(pickle.dumps(source))) == ["0", "1", "2", "3"]


def test_a_folder_of_images_takes_captions_beside_them(tmp_path):
    for name, body in {
        "frogs/a.png": picture(1),
        "frogs/a.txt": b"one frog",
        "toads/b.jpg": picture(2),
        "toads/b.json": b'{"caption": "x"}',
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(body)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "c.png").write_bytes(b"")
    source = opened("folder", tmp_path)
    assert [source[i]["id"] for i in range(len(source))] == ["frogs/a", "toads/b"]
    assert answers(source) == ["one frog", "x"]
    assert source[0]["fields"] == {"folder": "frogs", "caption": "one frog"}
    assert answers(opened("folder", tmp_path, template=Template(assistant="{folder}"))) == ["frogs", "toads"]


def test_a_folder_with_metadata_is_read_by_it(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "x.png").write_bytes(picture(7))
    write_lines(tmp_path / "train" / "metadata.jsonl", [{"file_name": "x.png", "caption": "seven"}])
    source = opened("folder", tmp_path / "train")
    assert source[0]["images"] == [picture(7)]
    assert answers(source) == ["seven"]


def test_a_lone_split_with_metadata_is_read_from_the_folder_above(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "x.png").write_bytes(picture(7))
    write_lines(tmp_path / "train" / "metadata.jsonl", [{"file_name": "x.png", "caption": "seven"}])
    assert answers(opened("folder", tmp_path)) == answers(opened("folder", tmp_path / "train")) == ["seven"]
    (tmp_path / "train").rename(tmp_path / "cats")
    with pytest.raises(PlaitError, match=f"give the folder of one as a source, such as path: {tmp_path}/cats$"):
        opened("folder", tmp_path)


def test_metadata_below_the_folder_is_told_with_the_folder_to_give(tmp_path):
    for part in ("one", "two"):
        (tmp_path / part / "deep").mkdir(parents=True)
        (tmp_path / part / "deep" / "x.png").write_bytes(picture(7))
        write_lines(tmp_path / part / "metadata.jsonl", [{"file_name": "deep/x.png", "caption": "seven"}])
    cure = rf"metadata in its subfolders \(one/metadata.jsonl, two/metadata.jsonl\): give .*, such as path: {tmp_path}/one$"
    with pytest.raises(PlaitError, match=cure):
        opened("folder", tmp_path)
    assert answers(opened("folder", tmp_path / "one")) == answers(opened("folder", tmp_path / "two")) == ["seven"]
    assert len(opened("folder", tmp_path, allow_blank=True)) == 2, "pictures alone are wanted"
    (tmp_path / "one" / "deep" / "x.txt").write_text("a caption beside it")
    (tmp_path / "two" / "metadata.jsonl").unlink()
    assert opened("folder", tmp_path)[0]["messages"][-1]["content"] == "a caption beside it"


def test_lines_give_messages_and_images_beside_the_file(tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "1.png").write_bytes(picture(1))
    turns = [{"role": "user", "content": "<image> ü?"}, {"role": "assistant", "content": "yes"}]
    parts = [{"role": "user", "content": [{"type": "image", "image": "p/1.png"}, {"type": "text", "text": "what?"}]}]
    records = [{"id": "x1", "image": "p/1.png", "messages": turns}, {"images": ["p/1.png"] * 2, "messages": turns[1:]}, {"messages": parts}]
    path = write_lines(tmp_path / "a.jsonl", records)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\n"))  # byte order mark, Windows line ends, blank lines
    source = opened("jsonl", path)
    assert [source[i]["id"] for i in range(3)] == ["x1", "a.jsonl:3", "a.jsonl:5"]  # blank lines count
    assert [len(source[i]["images"]) for i in range(3)] == [1, 2, 1]
    assert source[0]["messages"] == turns
    assert source[2]["messages"][0]["content"] == "<image>what?"


def test_a_llava_array_is_read_like_lines(tmp_path):
    told = [{"from": "human", "value": "<image>\n“ü”?"}, {"from": "gpt", "value": "ß ]}"}]
    (tmp_path / "1.png").write_bytes(picture(1))
    records = [{"id": str(n), "image": "1.png", "conversations": told} for n in range(5)]
    (tmp_path / "a.json").write_text(json.dumps(records, indent=1, ensure_ascii=False))
    source = opened("jsonl", tmp_path / "a.json")
    assert [source[i]["id"] for i in (4, 0, 2)] == ["4", "0", "2"]
    assert answers(source) == ["ß ]}"] * 5


def test_images_of_lines_may_lie_elsewhere_or_inside(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.png").write_bytes(picture(1))
    inside = "data:image/png;base64," + base64.b64encode(picture(2)).decode()
    path = write_lines(tmp_path / "a.jsonl", [{"image": "1.png", "caption": "x"}, {"image": inside, "caption": "y"}])
    source = opened("jsonl", path, options={"images": str(tmp_path / "pictures")})
    assert [source[i]["images"] for i in range(2)] == [[picture(1)], [picture(2)]]


@pytest.mark.parametrize("kind", ["jsonl", "datasets"])
def test_a_picture_named_by_a_file_address_is_read_below_the_sources_folder(tmp_path, kind):
    if kind == "datasets":
        pytest.importorskip("datasets")
    (tmp_path / "a b.png").write_bytes(picture(1))
    names = [f"file://{tmp_path}/a%20b.png", f"file://localhost{tmp_path}/a b.png", "https://x/y.png"]
    path = tmp_path / ("a.jsonl" if kind == "jsonl" else "a.csv")
    if kind == "jsonl":
        write_lines(path, [{"image": name, "caption": "x"} for name in names])
    else:
        path.write_text("image,caption\n" + "".join(f"{name},x\n" for name in names))
    source = opened(kind, path)
    assert [source[i]["images"] for i in range(2)] == [[picture(1)]] * 2
    with pytest.raises(BadSample, match=r"the image https://x/y\.png is on the network; download it first"):
        source[2]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (
            '{"image": "none.png"}',
            r"cannot read .*none\.png.: No such file or directory; where images are not relative to .*set options: {images: FOLDER}$",
        ),
        ('{"image": "https://x/y.png"}', "is on the network; download it first"),
        ('{"image": "file://host/y.png"}', "names no file of this machine: write file:///FOLDER/NAME, or the path alone"),
        ('{"image": "file:///etc/passwd"}', r"the path 'file:///etc/passwd' leaves the folder .*; options {outside: true} allows it"),
        ('{"image": 5}', "an image is named by a path, not by a number"),
        ('{"image": "data:image/png;base64,???"}', "broken data: address"),
        ("{", "a.jsonl:2 is not JSON"),
        ("[]", "a.jsonl:2 holds a list"),
    ],
)
def test_a_line_that_cannot_be_used_is_a_bad_sample(tmp_path, record, words):
    (tmp_path / "a.jsonl").write_text('{"caption": "good"}\n' + record)
    with pytest.raises(BadSample, match=words):
        opened("jsonl", tmp_path / "a.jsonl")[1]


@pytest.fixture
def parquet(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["frog", "toad"]), "n": datasets.Value("int64")}
    )
    rows = [{"image": {"bytes": picture(n), "path": None}, "label": n % 2, "n": n} for n in range(4)]
    made = datasets.Dataset.from_list(rows, features=features)
    made.to_parquet(tmp_path / "train-0.parquet")
    made.save_to_disk(tmp_path / "saved")
    return tmp_path


def test_parquet_rows_keep_images_encoded_and_name_their_classes(parquet):
    for path in (parquet / "train-0.parquet", parquet, parquet / "saved"):
        source = open_source(entry("datasets", path, template=LABEL), seed=0, cache=parquet / "cache")
        assert answers(source) == ["frog", "toad", "frog", "toad"]
        assert source[3]["images"] == [picture(3)]
        assert source[3]["fields"] == {"label": "toad", "n": 3}
    assert answers(pickle.loads(pickle.dumps(source))) == answers(source)


def test_json_rows_come_through_datasets_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    write_lines(tmp_path / "rows.jsonl", [{"label": "x"}, {"label": "y"}])
    assert answers(open_source(entry("datasets", tmp_path / "rows.jsonl", template=LABEL), seed=0, cache=tmp_path / "cache")) == ["x", "y"]


def test_a_missing_package_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "a.parquet").write_bytes(b"x")
    with pytest.raises(PlaitError, match=r"needs the package `datasets`: pip install 'plait\[hub-data\]'"):
        opened("datasets", path=str(tmp_path / "a.parquet"))


def test_scenes_are_opened_with_their_options():
    source = opened("scenes", options={}, limit=5, split="validation")
    assert len(source) == 5
    assert source[0]["images"]
    with pytest.raises(PlaitError, match="scenes write their own text; take out `template`"):
        opened("scenes", template=LABEL)


def test_a_mixture_opens_in_order(tmp_path):
    paths = [labelled(tmp_path / f"{n}.tar", 0, n) for n in (2, 3)]
    assert [len(source) for source in open_all([entry("shards", path) for path in paths], seed=0)] == [2, 3]


def test_the_fingerprint_changes_with_content_template_and_limit_only(tmp_path):
    path = labelled(tmp_path / "here" / "a.tar", 0, 3)
    moved = tmp_path / "there"
    shutil.copytree(path.parent, moved)
    base = opened("shards", path, template=LABEL).fingerprint
    assert opened("shards", moved / "a.tar", template=LABEL).fingerprint == base
    others = [opened("shards", path).fingerprint, opened("shards", path, template=LABEL, limit=2).fingerprint]
    others.append(opened("shards", labelled(tmp_path / "x" / "a.tar", 1, 3), template=Template(user="?", assistant="{label}")).fingerprint)
    assert len({base, *others}) == 4


@pytest.mark.parametrize("kind", ["folder", "jsonl"])
def test_a_fingerprint_does_not_know_the_place(tmp_path, kind):
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "1.png").write_bytes(picture(1))
        write_lines(tmp_path / place / "x.jsonl", [{"image": "1.png"}])
    ends = {"folder": "", "jsonl": "x.jsonl"}
    prints = [opened(kind, tmp_path / place / ends[kind]).fingerprint for place in ("a", "b")]
    assert prints[0] == prints[1]
    (tmp_path / "b" / "1.png").write_bytes(picture(1, (90, 90)))
    write_lines(tmp_path / "b" / "x.jsonl", [{"image": "1.png"}, {}])
    assert opened(kind, tmp_path / "b" / ends[kind]).fingerprint != prints[0]


def test_wrong_entries_each_give_one_clear_line(tmp_path):
    tar = labelled(tmp_path / "a.tar", 0, 2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").write_text("\n\n")
    cases = [
        (entry("shards", tmp_path / "none.tar"), "data source shards:none.tar: there is no file"),
        (entry("shards", tmp_path / "empty"), "data source shards:empty: no file matches"),
        (entry("shards", tmp_path / "empty.jsonl"), "is not a tar file"),
        (
            entry("shards", tar, template=Template(assistant="{labl}")),
            "data source shards:a.tar: template.assistant wants the field 'labl'; the records have label",
        ),
        (entry("shards", tar, columns={"x": "y"}), "none of the first 2 samples can be read: no field 'y' (columns); the record has label"),
        (entry("shards", tar, options={"image": "x"}), "no option 'image'; it takes stream, block, machines, cache_gb, counts"),
        (entry("jsonl", tmp_path / "empty.jsonl", options={"image": "x"}), "no option 'image'; did you mean 'images'?"),
        (entry("jsonl", tmp_path / "empty.jsonl"), "empty.jsonl holds no records"),
        (entry("jsonl", "https://x/a.jsonl"), "is remote, which only the sources shards and datasets can be"),
        (entry("folder", tmp_path / "empty"), "there is no image under"),
        (entry("folder", tmp_path / "none"), "is not a folder"),
        (entry("shards", "nowhere://x/*.tar"), "cannot open nowhere://x/*.tar: Protocol not known"),
        (entry("datasets", tmp_path / "empty"), "no file in"),
        (entry("datasets", tar), "cannot tell the format of"),
    ]
    for wrong, words in cases:
        with pytest.raises(PlaitError) as caught:
            open_source(wrong, seed=0)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_index_files_reports_every_shard_of_every_split(tmp_path):
    for split, count in (("train", 3), ("validation", 2)):
        labelled(tmp_path / f"{split}-0.tar", 0, count)
    rows = index_files(str(tmp_path))
    assert [(row.samples, row.members, row.kinds, row.built) for row in rows] == [
        (3, 6, ("json", "png"), True),
        (2, 4, ("json", "png"), True),
    ]
    assert [row.built for row in index_files(str(tmp_path))] == [False, False]
    assert [row.built for row in index_files(str(tmp_path), rebuild=True)] == [True, True]
    pack(tmp_path / "broken.tar", [])
    with pytest.raises(PlaitError, match=r"broken\.tar holds no samples"):
        index_files(str(tmp_path))
