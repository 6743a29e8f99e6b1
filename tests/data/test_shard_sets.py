"""`plait data shard --plain`: any source becomes tar shards that webdataset and plait read alike, whatever is killed on the way."""

import hashlib
import io
import json
import random
import re
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from plait import cli
from plait.config.schema import SourceEntry, Template
from plait.data import image_files
from plait.data.shard_sets import write
from plait.data.shard_sets.members import Pictures, pack
from plait.data.sources.open import open_source
from tests.data import latent_sets
from tests.data.packing import labelled, picture
from tests.data.packing import pack as tar


def noise(number, size=(40, 30), kind="JPEG"):
    body = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(body, kind)
    return body.getvalue()


def photos(folder, count=12, size=(40, 30)):
    folder.mkdir(parents=True)
    for k in range(count):
        (folder / f"p{k:03d}.jpg").write_bytes(noise(k, size))
        (folder / f"p{k:03d}.txt").write_text(f"photo {k}")
        (folder / f"p{k:03d}.json").write_text(json.dumps({"number": k, "tags": ["a", {"b": None}]}))
    return folder


def opened(kind, path, **more):
    return open_source(SourceEntry(source=kind, path=str(path), **more), seed=0)


def shard(source, out, *more, code=0):
    assert cli.main(["data", "shard", str(source), str(out), "--plain", *more]) == code
    return json.loads((out / write.MANIFEST).read_bytes()) if not code else None


def held(sample):
    """What a sample holds for a trainer."""
    names = ("images", "messages", "annotations", "frames")
    return {name: sample[name] for name in names if name in sample}


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def same(source, out):
    packed = opened("shards", out)
    assert len(packed) == len(source)
    assert [held(packed[i]) for i in range(len(packed))] == [held(source[i]) for i in range(len(source))]
    return packed


def test_a_folder_of_photos_is_read_back_by_plait_with_the_same_bytes_texts_and_fields(tmp_path):
    source = opened("folder", photos(tmp_path / "photos"))
    told = shard(tmp_path / "photos", tmp_path / "out", "--per-shard=5")
    packed = same(source, tmp_path / "out")
    assert [packed[i]["fields"]["tags"] for i in range(12)] == [["a", {"b": None}]] * 12
    assert list(told["shards"]) == ["000000.tar", "000001.tar", "000002.tar"]
    assert (told["read"], told["samples"], told["pictures"], told["captions"], told["skipped"]) == (12, 12, 12, 12, {})
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*told["shards"], "shards.json", "skipped.jsonl"]


READ = """
import hashlib, json, sys, webdataset
for row in webdataset.WebDataset(sys.argv[1:], shardshuffle=False):
    print(hashlib.sha256(row["jpg"]).hexdigest(), json.loads(row["json"])["number"], row["txt"].decode())
"""


def test_webdataset_reads_the_same_pictures_and_captions(tmp_path):
    pytest.importorskip("webdataset")
    shard(photos(tmp_path / "photos"), tmp_path / "out", "--per-shard=5")
    urls = [str(path) for path in sorted((tmp_path / "out").glob("*.tar"))]
    said = subprocess.run([sys.executable, "-c", READ, *urls], check=True, capture_output=True, text=True).stdout
    assert said.splitlines() == [f"{hashlib.sha256(noise(k)).hexdigest()} {k} photo {k}" for k in range(12)]


def test_any_tar_reader_finds_the_files_of_a_sample_together(tmp_path):
    shard(photos(tmp_path / "photos", 2), tmp_path / "out")
    with tarfile.open(tmp_path / "out/000000.tar") as file:
        names = [member.name for member in file]
    assert names == [f"{k:09d}.{kind}" for k in range(2) for kind in ("jpg", "txt", "json")]


TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]
CONVERSATIONS = [
    {"image": "0.png", "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]},
    {"images": ["0.png", "1.png"], "messages": [{"role": "user", "content": "<image> or <image>?"}, TURNS[1]]},
    {"image": "1.png", "annotations": [{"caption": "a"}, {"messages": TURNS, "weight": 2}]},
    {"image": "0.png", "caption": "  a caption  "},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " text alone "}]},
    {"image": "0.png", "messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "one"}], "caption": "another"},
    {"frames": ["0.png", "1.png", "2.png"], "image": "0.png", "text": "a clip", "width": "wide", "key": "mine"},
    {"image": "0.png", "texts": [{"user": "u", "assistant": "a"}, {"user": "v", "assistant": "b"}]},
]


def conversations(folder):
    folder.mkdir()
    for k in range(3):
        (folder / f"{k}.png").write_bytes(picture(k * 50))
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CONVERSATIONS))
    return folder / "data.jsonl"


def test_conversations_of_every_form_with_several_pictures_and_frames_are_the_same(tmp_path):
    path = conversations(tmp_path / "data")
    shard(path, tmp_path / "out")
    packed = same(opened("jsonl", path), tmp_path / "out")
    fields = packed[6]["fields"]
    assert (fields["record_width"], fields["width"], fields["record_key"], fields["key"]) == ("wide", 6, "mine", "000000006")


def test_a_template_of_one_field_alone_is_a_text(tmp_path):
    labelled(tmp_path / "a.tar", 0, 2)
    shard(tmp_path / "a.tar", tmp_path / "out", "--template.assistant={label}", "--columns.label=label")
    assert [opened("shards", tmp_path / "out")[i]["messages"][1]["content"] for i in range(2)] == ["0", "1"]


def test_a_templates_text_is_what_is_read_back_without_the_template(tmp_path):
    rows = [{"image": "0.png", "label": "cat", "caption": "of old", "annotations": [{"caption": "never seen"}]}]
    (tmp_path / "data").mkdir()
    (tmp_path / "data/0.png").write_bytes(picture())
    (tmp_path / "data/data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shard(tmp_path / "data/data.jsonl", tmp_path / "out", "--template.user=What?", "--template.assistant=A {label}")
    source = opened("jsonl", tmp_path / "data/data.jsonl", template=Template(user="What?", assistant="A {label}"))
    same(source, tmp_path / "out")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_are_packed_too(tmp_path, kind):
    pandas = pytest.importorskip("pandas")
    (tmp_path / "data").mkdir()
    for k in range(3):
        (tmp_path / f"data/{k}.png").write_bytes(picture(k))
    frame = pandas.DataFrame({"image": [f"{k}.png" for k in range(3)], "caption": list("abc"), "n": [1, 2, 3]})
    path = tmp_path / f"data/data.{kind}"
    frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path)
    shard(path, tmp_path / "out")
    same(opened("datasets", path), tmp_path / "out")


def test_tars_are_resharded_with_every_member_as_it_is(tmp_path):
    for number in range(3):
        members = []
        for k in range(4):
            members += [(f"{k}.png", picture(k)), (f"{k}.json", b'{"a":  1, "caption": "c"}'), (f"{k}.depth.npy", bytes([number, k]))]
        tar(tmp_path / f"in/{number}.tar", members)
    shard(tmp_path / "in", tmp_path / "out", "--per-shard=7")
    with tarfile.open(tmp_path / "out/000001.tar") as file:
        bodies = {member.name: file.extractfile(member).read() for member in file}
    assert len(bodies) == 15 and bodies["000000011.depth.npy"] == bytes([2, 3]) and bodies["000000011.json"] == b'{"a":  1, "caption": "c"}'
    again = tmp_path / "again"
    shard(tmp_path / "out", again, "--per-shard=4", "--max-side=3")
    with tarfile.open(again / "000002.tar") as file:
        bodies = {member.name: file.extractfile(member).read() for member in file}
    assert bodies["000000011.depth.npy"] == bytes([2, 3])
    assert image_files.size(bodies["000000011.jpg"]) == (3, 2)
    assert json.loads(bodies["000000011.json"])["a"] == 1


@pytest.mark.parametrize("more", [["--filter.expr=n > 3"], ["--limit=6"]])
def test_members_of_a_filtered_or_limited_shard_are_its_samples_own(tmp_path, more):
    members = []
    for k in range(8):
        members += [(f"{k}.png", picture(k)), (f"{k}.json", json.dumps({"n": k, "caption": "c"}).encode()), (f"{k}.npy", bytes([k]))]
    tar(tmp_path / "in.tar", members)
    shard(tmp_path / "in.tar", tmp_path / "out", *more)
    with tarfile.open(tmp_path / "out/000000.tar") as file:
        bodies = {member.name.split(".")[1]: [] for member in file}
        for member in file:
            bodies[member.name.split(".")[1]].append(file.extractfile(member).read())
    assert [json.loads(body)["n"] for body in bodies["json"]] == [body[0] for body in bodies["npy"]]
    assert [body[0] for body in bodies["npy"]] == ([4, 5, 6, 7] if "filter" in more[0] else [0, 1, 2, 3, 4, 5])


def test_large_pictures_are_scaled_and_others_keep_their_bytes(tmp_path):
    folder = photos(tmp_path / "photos", 2, (40, 30))
    (folder / "large.png").write_bytes(noise(7, (200, 100), "PNG"))
    told = shard(folder, tmp_path / "out", "--max-side=100", "--quality=80")
    source = opened("shards", tmp_path / "out")
    sizes = [image_files.size(source[i]["images"][0]) for i in range(3)]
    assert sorted(sizes) == [(40, 30), (40, 30), (100, 50)]
    kept = next(source[i]["images"][0] for i in range(3) if source[i]["fields"].get("number") == 1)
    assert kept == noise(1)
    assert told["encoded_anew"] == 1 and told["bytes_before"] > 40_000
    assert source[0]["fields"]["width"] == sizes[0][0]


def test_every_picture_is_encoded_anew_where_that_is_asked_for(tmp_path):
    told = shard(photos(tmp_path / "photos", 3), tmp_path / "out", "--encode=webp", "--quality=60")
    assert told["formats"] == {"json": 3, "txt": 3, "webp": 3} and told["encoded_anew"] == 3


def test_what_cannot_be_used_is_skipped_with_its_reason(tmp_path):
    folder = photos(tmp_path / "photos", 6)
    (folder / "p001.jpg").write_bytes(noise(1)[:600])
    (folder / "p002.txt").write_text(" ")
    (folder / "p003.jpg").write_bytes(noise(3, (40, 7)))
    told = shard(folder, tmp_path / "out", "--min-side=10")
    assert told["skipped"] == {"unreadable": 1, "no text": 1, "a side is too short": 1} and told["samples"] == 3
    rows = [json.loads(line) for line in (tmp_path / "out/skipped.jsonl").read_text().splitlines()]
    assert [(row["position"], row["id"], row["reason"]) for row in rows] == [
        (1, "p001", "unreadable"),
        (2, "p002", "no text"),
        (3, "p003", "a side is too short"),
    ]
    assert "not a readable image" in rows[0]["detail"] and "an empty answer" in rows[1]["detail"] and rows[2]["detail"] == "40x7"


def test_nothing_that_can_be_used_is_one_line(tmp_path, capsys):
    folder = photos(tmp_path / "photos", 2)
    for k in range(2):
        (folder / f"p{k:03d}.jpg").write_bytes(noise(k)[:600])
    shard(folder, tmp_path / "out", code=2)
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("plait: none of the 2 samples of folder:photos can be packed; the first: p000: unreadable: not a readable image")


def test_two_processes_give_the_bytes_of_one(tmp_path):
    folder = photos(tmp_path / "photos", 30)
    shard(folder, tmp_path / "one", "--per-shard=4", "--max-side=20")
    shard(folder, tmp_path / "two", "--per-shard=4", "--max-side=20", "--processes=2", "--workers=3")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_shuffled_set_has_each_sample_once_in_another_order(tmp_path):
    folder = photos(tmp_path / "photos", 20)
    shard(folder, tmp_path / "one", "--shuffle", "--seed=3")
    source = opened("shards", tmp_path / "one")
    numbers = [source[i]["fields"]["number"] for i in range(20)]
    assert numbers != list(range(20)) and sorted(numbers) == list(range(20))
    shard(folder, tmp_path / "part", "--shuffle", "--seed=3", "--limit=8")
    part = opened("shards", tmp_path / "part")
    assert [part[i]["fields"]["number"] for i in range(len(part))] == numbers[:8]


KILLED = """
import sys
from pathlib import Path
from plait.config.schema import SourceEntry
from plait.data.shard_sets import processes, write
from plait.data.shard_sets.members import Pictures
from plait.data.sources.open import open_source
folder, out, count = sys.argv[1:]
source = open_source(SourceEntry(source="folder", path=folder), seed=0)
several = lambda shards, tick: processes.in_several(shards, tick, 1, 2)
run = several if count == "2" else lambda shards, tick: processes.in_this(shards, tick, 2)
if __name__ == "__main__":
    write.build(source, Path(out), write.Request(3, pictures=Pictures(max_side=250)), run=run, report=lambda *_: None)
"""


@pytest.mark.parametrize("count", [1, 2])
def test_a_set_killed_again_and_again_ends_in_the_bytes_of_a_straight_one(tmp_path, count):
    """In a process of its own, without the command line around it, whose imports take a second each time."""
    folder = photos(tmp_path / "photos", 30, (300, 200))
    shard(folder, tmp_path / "whole", "--per-shard=3", "--max-side=250")
    (tmp_path / "killed.py").write_text(KILLED)
    command, cut = [sys.executable, str(tmp_path / "killed.py"), str(folder), str(tmp_path / "cut"), str(count)], tmp_path / "cut"
    draw, kills = random.Random(count), 0
    while not (cut / write.MANIFEST).exists():
        child, before = subprocess.Popen(command), len(list(cut.glob("*.tar")))
        while child.poll() is None and len(list(cut.glob("*.tar"))) <= before:
            time.sleep(0.002)
        time.sleep(draw.random() * 0.01)
        kills += child.poll() is None
        child.kill()
        child.wait()
    subprocess.run(command, check=True, capture_output=True)  # a kill may come between the manifest and the end
    assert kills >= 2
    assert contents(cut) == contents(tmp_path / "whole")


def test_a_finished_set_is_left_and_another_request_is_refused(tmp_path, capsys):
    folder = photos(tmp_path / "photos", 4)
    shard(folder, tmp_path / "out")
    before = contents(tmp_path / "out")
    shard(folder, tmp_path / "out")
    assert "was packed before" in capsys.readouterr().out and contents(tmp_path / "out") == before
    shard(folder, tmp_path / "out", "--max-side=9", code=2)
    assert "holds a set made with pictures {'max_side': None" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").touch()
    shard(folder, tmp_path / "full", code=2)
    assert f"plait: {tmp_path / 'full'} is not empty: name a new folder\n" in capsys.readouterr().err


ANEW = "--quality=80 is of pictures that are encoded anew:"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--plain", "--texts=tiny"], "--texts is of latents, which --plain does not make: leave one of them out"),
        (["--processes=2"], "--processes needs --plain"),
        (
            ["--plain", "--quality=80"],
            "--quality=80 is of pictures that are encoded anew: give --max-side or --encode too, or pictures stay as they are",
        ),
        (["--plain", "--quality=80", "--encode=png"], f"{ANEW} PNG has none"),
        (["--plain", "--quality=101", "--encode=jpg"], "--quality=101: 1 to 100"),
        (["--plain", "--number=1"], "--number=1: scenes is one source, not a configuration of several"),
    ],
)
def test_options_that_cannot_be_together_are_one_line(tmp_path, capsys, words, line):
    assert cli.main(["data", "shard", "scenes", str(tmp_path / "out"), *words]) == 2
    assert capsys.readouterr().err == f"plait: {line}\n"


def test_a_configurations_source_is_packed_with_its_template_and_without_what_is_held_out(tmp_path, capsys):
    labelled(tmp_path / "a.tar", 0, 30)
    entry = "{source: shards, path: a.tar, template: {assistant: 'number {label}'}}"
    data = f"{{train: [{entry}, {{source: scenes, limit: 5}}], validation: 20%}}"
    (tmp_path / "c.yaml").write_text(f"family: theworld\npreset: tiny\ntrain: {{steps: 1}}\ndata: {data}\n")
    shard(tmp_path / "c.yaml", tmp_path / "out", code=2)
    assert "has 2 sources of train: 0 shards:a.tar, 1 scenes train; name one by --number" in capsys.readouterr().err
    told = shard(tmp_path / "c.yaml", tmp_path / "out", "--number=0")
    held_out = shard(tmp_path / "c.yaml", tmp_path / "held", "--number=0", "--split=validation")
    assert told["samples"] + held_out["samples"] == 30 and held_out["samples"] < 12
    assert opened("shards", tmp_path / "out")[0]["messages"][1]["content"].startswith("number ")


def test_a_field_that_json_cannot_hold_is_counted(tmp_path):
    class Source:
        name = "mine"

        def __getitem__(self, index):
            fields = {"raw": b"\x00", "when": np.int64(3), "nested": {"also": [b"1", 2]}}
            return {"id": "a", "images": [picture()], "messages": [], "fields": fields}

    packed = pack(Source(), 0, "0", Pictures())
    assert json.loads(packed.members[-1][1])["nested"] == {"also": [2]} and packed.lost == {"raw": 1, "nested.also": 1}


def test_latents_are_refused_as_they_would_be_lost(tmp_path, capsys):
    root = latent_sets.make(tmp_path / "set", {"64x64": 3})
    model = f"{{metadata: {root}, channels: 4, text_dim: 6, image_dim: 5}}"
    data = f"{{train: [{{source: latents, path: {root}}}]}}"
    (tmp_path / "c.yaml").write_text(f"family: nanodit\npreset: tiny\nmodel: {model}\ntrain: {{steps: 1}}\ndata: {data}\n")
    shard(tmp_path / "c.yaml", tmp_path / "out", code=2)
    assert re.search(
        r"^plait: none of the 3 samples .*: it holds arrays \(\w.*\), for which plain shards have no place$", capsys.readouterr().err, re.M
    )


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(tmp_path, monkeypatch, capsys):
    folder = photos(tmp_path / "photos", 6)
    before = write.Shard.write

    def full(self, threads, tick):
        if self.number == 1:
            raise OSError(28, "No space left on device")
        before(self, threads, tick)

    monkeypatch.setattr(write.Shard, "write", full)
    shard(folder, tmp_path / "out", "--per-shard=2", code=1)
    line = f"plait: cannot write in {tmp_path / 'out'}: No space left on device; free space there, and the same command goes on\n"
    assert capsys.readouterr().err.endswith(line)
    monkeypatch.undo()
    part = opened("shards", tmp_path / "out")
    assert (len(part), part.left_out) == (2, {"sets that are not packed to their end: the same `plait data shard` goes on": 1})
    assert shard(folder, tmp_path / "out", "--per-shard=2")["samples"] == 6
    assert opened("shards", tmp_path / "out").left_out == {}
