"""Building latent sets: exact counts and pixels, every reason for skipping, kills, and what must not be mixed."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from plait import cli
from plait.config.schema import SourceEntry
from plait.data import cropping, images
from plait.data.aspect import STANDARD, Bucket, nearest, parse
from plait.data.latent_shards import write
from plait.data.latent_shards.plan import OTHER_BUCKET, Request, plan
from plait.data.latent_shards.statistics import measure
from plait.data.sources.contract import BrokenSource, Source
from plait.data.sources.latents import Latents
from plait.data.sources.metadata import read_metadata
from plait.data.sources.open import open_source
from plait.errors import PlaitError
from plait.families.nanodit.config import Config
from plait.families.nanodit.inputs import Inputs
from plait.nn import encoders
from tests.data import latent_sets as sets

BUCKETS = (Bucket(32, 32), Bucket(24, 40), Bucket(40, 24))
SIZES = [(64, 60), (30, 52), (70, 40)]
ENCODERS = ("latents", "texts", "images")
CAPTIONS = ["a red dot on the left", "two grey squares", "one " * 70]


def photos(folder: Path, count: int = 12) -> Path:
    """Smooth pictures in three shapes, a caption beside each."""
    folder.mkdir()
    for k in range(count):
        width, height = SIZES[k % 3]
        y, x = np.mgrid[:height, :width]
        pixels = np.stack([x * 3 + k, y * 4, np.full_like(x, 20 * k)], -1) % 256
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"p{k:02d}.png")
        (folder / f"p{k:02d}.txt").write_text(CAPTIONS[k // 3 % 3])
        (folder / f"p{k:02d}.json").write_text(json.dumps({"number": k}))
    return folder


def opened(folder):
    return open_source(SourceEntry(source="folder", path=str(folder)), seed=0)


def tiny(latents="tiny", texts="tiny"):
    return write.Encoders(encoders.open_latents(latents), encoders.open_texts(texts), encoders.open_images("tiny"))


def build(folder, out, like=None, chosen=None, **request):
    asked = Request(**{"buckets": BUCKETS, "batch": 4, "per_shard": 3, **request})
    return write.build(opened(folder), chosen or tiny(), out, asked, like=like, report=lambda *_: None)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file() and path.suffix != ".idx"}


@given(st.integers(16, 4000), st.integers(16, 4000))
def test_buckets_are_nearest_in_log_ratio_and_transpose_with_the_picture(width, height):
    buckets = [*STANDARD, Bucket(704, 1344), Bucket(1344, 704)]
    found = nearest(width, height, buckets)
    assert found[::-1] == nearest(height, width, buckets)
    apart = [abs(math.log(width / height / (b.width / b.height))) for b in buckets]
    assert abs(math.log(width / height / (found.width / found.height))) <= min(apart) + 1e-9


def test_of_buckets_of_one_ratio_the_largest_without_enlarging_is_taken():
    squares = [Bucket(256, 256), Bucket(512, 512), Bucket(1024, 1024)]
    assert [nearest(side, side, squares).width for side in (100, 256, 600, 5000)] == [256, 256, 512, 1024]
    assert parse("bucket_832x1216") == parse("832x1216") == Bucket(832, 1216)


def test_a_set_holds_every_picture_once_cropped_and_exactly_encoded(tmp_path):
    folder = photos(tmp_path / "photos")
    made = build(folder, tmp_path / "set")
    source = Latents(str(tmp_path / "set"), {})
    show = encoders.decoder(source.metadata)
    assert sorted(source[i]["fields"]["number"] for i in range(12)) == list(range(12))
    for sample in map(source.__getitem__, range(12)):
        bucket = parse(sample["fields"]["bucket"])
        original = images.decode((folder / f"{sample['fields']['image_id']}.png").read_bytes())
        expected = cropping.cover(original, bucket.height, bucket.width)
        shown = show(torch.from_numpy(sample["arrays"]["vae"])[None])[0]
        assert (shown.int() - expected.int()).abs().max() <= 1  # float16
        assert bucket == nearest(sample["fields"]["width"], sample["fields"]["height"], BUCKETS)
    assert made["counts"] == {"read": 12, "written": 12, "skipped": {}}
    assert [row["samples"] for row in made["buckets"].values()] == [4, 4, 4]
    assert [len(row["shards"]) for row in made["buckets"].values()] == [2, 2, 2]


def test_captions_are_stored_to_their_last_token_and_sided_ones_with_their_twin(tmp_path):
    made = build(photos(tmp_path / "photos"), tmp_path / "set")
    source, texts = Latents(str(tmp_path / "set"), {}), encoders.open_texts("tiny")
    for sample in map(source.__getitem__, range(12)):
        caption = sample["messages"][0]["content"]
        expected, whole = texts.encode([caption])[0]
        np.testing.assert_allclose(sample["arrays"]["t5h"].astype(np.float32), expected, atol=2e-3)
        assert ("t5h_flip" in sample["arrays"]) == ("left" in caption)
        assert sample["fields"]["truncated"] == (whole > 64)
        if "left" in caption:
            mirrored = texts.encode([caption.replace("left", "right")])[0][0]
            np.testing.assert_allclose(sample["arrays"]["t5h_flip"].astype(np.float32), mirrored, atol=2e-3)
    words = made["texts"]
    assert (words["truncated"], words["truncated_share"], words["naming_a_side"]) == (3, 0.25, 6)
    assert words["tokens"] == sum(len(source[i]["arrays"]["t5h"]) for i in range(12))
    assert [row["tokens"] for row in source.table(4)] == [made["buckets"][row["bucket"]]["tokens"] for row in source.table(4)]


def test_statistics_are_those_of_all_stored_latents(tmp_path):
    build(photos(tmp_path / "photos"), tmp_path / "set")
    source = Latents(str(tmp_path / "set"), {})
    normal = np.concatenate([source[i]["arrays"]["vae"].reshape(48, -1).astype(np.float64) for i in range(12)], 1)
    varying = np.setdiff1d(np.arange(48), source.metadata["latents"]["constant_channels"])
    np.testing.assert_allclose(normal.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(normal[varying].std(1), 1, atol=1e-5)
    assert source.metadata["latents"]["values_per_channel"] == normal.shape[1]


def test_what_cannot_be_used_is_counted_and_listed_by_reason(tmp_path):
    folder = photos(tmp_path / "photos")
    (folder / "p01.txt").unlink()
    (folder / "p02.png").write_bytes(b"not a picture")
    whole = (folder / "p03.png").read_bytes()
    (folder / "p03.png").write_bytes(whole[: len(whole) // 2])  # its header is good: found when it is decoded
    made = build(folder, tmp_path / "set", only=(Bucket(32, 32), Bucket(24, 40)))
    assert made["counts"] == {"read": 12, "written": 6, "skipped": {OTHER_BUCKET: 3, "unreadable": 2, "no caption": 1}}
    listed = [json.loads(line) for line in (tmp_path / "set" / "skipped.jsonl").read_text().splitlines()]
    assert {row["id"]: row["reason"] for row in listed if row["reason"] != OTHER_BUCKET} == {
        "p01": "no caption",
        "p02": "unreadable",
        "p03": "unreadable",
    }
    assert len(Latents(str(tmp_path / "set"), {})) == 6


class NoSamples(Source):
    name = fingerprint = "no samples"

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return {"id": "a", "images": []}


def test_a_source_that_gives_no_samples_is_at_fault(tmp_path):
    with pytest.raises(BrokenSource, match=r"no samples: sample \d, made by .*NoSamples, is a dict without 'messages' and 'fields'"):
        plan(NoSamples(), Request(BUCKETS))


def test_latents_that_are_not_finite_are_skipped(tmp_path):
    class Broken(type(encoders.open_latents("tiny"))):
        def encode(self, pixels):
            found = super().encode(pixels)
            found[pixels[:, 2, 0, 0] == 40, 0, 0, 0] = 1e6  # more than float16 holds
            return found

    broken = write.Encoders(Broken(), encoders.open_texts("tiny"), encoders.open_images("tiny"))
    made = build(photos(tmp_path / "photos"), tmp_path / "set", chosen=broken)
    assert made["counts"] == {"read": 12, "written": 11, "skipped": {write.NOT_FINITE: 1}}


def test_a_limit_reads_a_part_and_a_dry_run_plans_exactly_what_is_written(tmp_path):
    folder = photos(tmp_path / "photos")
    made = build(folder, tmp_path / "set", limit=7, seed=5)
    planned = plan(opened(folder), Request(BUCKETS, limit=7, seed=5))
    assert made["counts"]["read"] == planned.read == 7
    assert {b.name: len(found) for b, found in planned.positions.items()} == {n: row["samples"] for n, row in made["buckets"].items()}
    assert plan(opened(folder), Request(BUCKETS, limit=7, seed=6)).positions != planned.positions


def test_the_same_request_gives_the_same_bytes_and_another_seed_another_order(tmp_path):
    folder = photos(tmp_path / "photos")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        build(folder, tmp_path / name, seed=seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")
    before = (tmp_path / "a" / "metadata.json").stat().st_mtime_ns
    build(folder, tmp_path / "a")  # complete: nothing is done
    assert (tmp_path / "a" / "metadata.json").stat().st_mtime_ns == before


KILLED = """
import sys, time
from pathlib import Path
from plait.data.aspect import parse
from plait.config.schema import SourceEntry
from plait.data.latent_shards import write
from plait.data.latent_shards.plan import Request
from plait.data.sources.open import open_source
from plait.nn import encoders
class Slow(type(encoders.open_latents("tiny"))):
    def encode(self, pixels):
        time.sleep(0.03)
        return super().encode(pixels)
chosen = write.Encoders(Slow(), encoders.open_texts("tiny"), encoders.open_images("tiny"))
request = Request(tuple(map(parse, sys.argv[3:])), batch=4, per_shard=3)
source = open_source(SourceEntry(source="folder", path=sys.argv[1]), seed=0)
write.build(source, chosen, Path(sys.argv[2]), request, report=lambda *_: None)
"""


def test_a_build_killed_at_any_moment_ends_in_the_same_bytes(tmp_path):
    folder = photos(tmp_path / "photos", 36)
    build(folder, tmp_path / "whole")
    names, seen = [bucket.name for bucket in BUCKETS], set()
    for shards in (1, 6):
        child = subprocess.Popen([sys.executable, "-c", KILLED, str(folder), str(tmp_path / "cut"), *names])
        while child.poll() is None and len(list((tmp_path / "cut").rglob("shard-*.tar"))) < shards:
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        child.wait()
        seen.add(len(list((tmp_path / "cut").rglob("shard-*.tar"))))
        assert not (tmp_path / "cut" / "metadata.json").exists()
    assert len(seen) == 2
    build(folder, tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_an_unfinished_set_is_refused_and_another_request_cannot_go_on_with_it(tmp_path, monkeypatch):
    folder = photos(tmp_path / "photos")
    monkeypatch.setattr(write, "_metadata", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build(folder, tmp_path / "set")
    monkeypatch.undo()
    with pytest.raises(PlaitError, match="finish the build"):
        Latents(str(tmp_path / "set"), {})
    with pytest.raises(PlaitError, match="holds a set made with seed 0, not 1; give another folder"):
        build(folder, tmp_path / "set", seed=1)
    assert build(folder, tmp_path / "set")["counts"]["written"] == 12
    with pytest.raises(PlaitError, match="made with encoders"):
        build(folder, tmp_path / "set", chosen=tiny("tiny:4x16"))


def test_held_out_sets_share_statistics_only_with_their_own_encoders(tmp_path):
    folder = photos(tmp_path / "photos")
    build(folder, tmp_path / "train")
    told = read_metadata(tmp_path / "train")
    made = build(folder, tmp_path / "held", like=told, limit=4)
    assert made["latents"]["mean"] == told["latents"]["mean"]
    assert made["latents"]["measured"]["mean"] != told["latents"]["mean"]
    with pytest.raises(PlaitError, match="cannot share statistics"):
        build(folder, tmp_path / "other", like=told, chosen=tiny("tiny:4x16"))


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"buckets": (Bucket(30, 32),)}, "bucket 30x32: both sides must be multiples of 8"),
        ({"only": (Bucket(8, 8),)}, "there is no bucket 8x8 to write; the buckets are 32x32, 24x40, 40x24"),
    ],
)
def test_an_impossible_request_is_refused(tmp_path, request_, words):
    with pytest.raises(PlaitError, match=words):
        build(photos(tmp_path / "photos"), tmp_path / "set", **request_)


def test_published_statistics_are_the_encoders_own_and_one_without_is_refused(tmp_path):
    folder = photos(tmp_path / "photos")
    made = build(folder, tmp_path / "set", statistics="published", limit=4)
    assert made["latents"]["std"] == [0.5] * 48 and made["latents"]["mean"] == [0.0] * 48
    assert made["latents"]["from"] == "published with the encoder" and made["latents"]["measured"]["std"] != made["latents"]["std"]
    silent = tiny()
    silent.latents.published = None
    with pytest.raises(PlaitError, match="tiny:4x48 publishes no statistics; take the measured ones"):
        build(folder, tmp_path / "other", chosen=silent, statistics="published")


def test_nothing_to_write_is_an_error_with_the_reasons(tmp_path):
    folder = photos(tmp_path / "photos")
    for caption in folder.glob("*.txt"):
        caption.unlink()
    with pytest.raises(PlaitError, match="there is nothing to write: of 12 samples read, 12 no caption"):
        build(folder, tmp_path / "set")


def test_any_source_can_be_sharded_scenes_with_their_fields(tmp_path):
    options = {"size": [[32, 32], [40, 24]], "objects": 1, "tasks": "caption"}
    scenes = open_source(SourceEntry(source="scenes", options=options), seed=0)
    write.build(scenes, tiny(), tmp_path / "set", Request((Bucket(32, 32), Bucket(40, 24)), limit=8), report=lambda *_: None)
    source = Latents(str(tmp_path / "set"), {})
    for sample in map(source.__getitem__, range(8)):
        assert sample["messages"][0]["content"] == sample["fields"]["caption"]
        assert sample["fields"]["objects"][0]["colour"] in sample["fields"]["caption"]


def test_a_template_writes_the_captions_of_labelled_photos(tmp_path, real_data):
    entry = SourceEntry(
        source="shards", path=str(real_data / "cifar10" / "validation-00000.tar"), template={"assistant": "a photo of a {label}"}
    )
    source = open_source(entry, seed=0)
    write.build(source, tiny(), tmp_path / "set", Request((Bucket(32, 32),), limit=6), report=lambda *_: None)
    made = Latents(str(tmp_path / "set"), {})
    assert all(made[i]["fields"]["caption"] == f"a photo of a {made[i]['fields']['label']}" for i in range(6))


def test_a_set_made_elsewhere_is_read_after_it_was_measured(tmp_path):
    root = sets.make(tmp_path / "set", {"32x32": 5, "24x40": 4})
    (root / "metadata.json").unlink()
    sets.shard(root / "24x40", 9, {"bad": sets.members((24, 40), 99) | {"vae.npy": sets.npy(np.full((4, 5, 3), np.nan, np.float16))}})
    made = measure(root)
    assert made["counts"] == {"read": 10, "unusable": 1}
    source = Latents(str(root), {})
    normal = np.concatenate([source[i]["arrays"]["vae"].reshape(4, -1).astype(np.float64) for i in range(9)], 1)
    np.testing.assert_allclose([normal.mean(1), normal.std(1)], [[0] * 4, [1] * 4], atol=1e-5)
    with pytest.raises(PlaitError, match=r"has a metadata\.json; remove it"):
        measure(root)
    with pytest.raises(PlaitError, match="names no encoder"):
        encoders.decoder(made)


def test_every_caption_of_a_picture_is_stored_and_one_is_drawn_for_training(tmp_path):
    folder, several = photos(tmp_path / "photos", 3), ["a dot on the left", "two dots", "a dot on the left", " "]
    (folder / "p00.json").write_text(json.dumps({"captions": several}))
    (folder / "p00.txt").unlink()
    texts = build(folder, tmp_path / "set")["texts"]
    assert (texts["captions"], texts["uncaptioned"], texts["naming_a_side"]) == (4, 0, 3)
    source, encoder = Latents(str(tmp_path / "set"), {}), encoders.open_texts("tiny")
    (i,) = (i for i in range(3) if source[i]["fields"]["image_id"] == "p00")
    assert source[i]["messages"] == [{"role": "assistant", "content": "a dot on the left"}]
    drawn = [source.draw(i, key) for key in range(40)]
    assert [sample["messages"] for sample in drawn] == [source.draw(i, key)["messages"] for key in range(40)]
    assert {sample["messages"][0]["content"] for sample in drawn} == {"a dot on the left", "two dots"}
    for sample in drawn:
        text, arrays = sample["messages"][0]["content"], sample["arrays"]
        np.testing.assert_allclose(arrays["t5h"].astype(np.float32), encoder.encode([text])[0][0], atol=2e-3)
        assert ("t5h_flip" in arrays) == ("left" in text)
    (other,) = (j for j in range(3) if source[j]["fields"]["image_id"] == "p01")
    assert [source.draw(other, key)["messages"] for key in range(9)] == [source[other]["messages"]] * 9


def test_pictures_without_a_caption_are_skipped_or_written_and_train_without_text(tmp_path):
    folder = photos(tmp_path / "photos", 4)
    (folder / "p01.txt").unlink()
    (folder / "p02.txt").write_text(" ")
    skipping = build(folder, tmp_path / "skipping")
    assert skipping["counts"]["written"] == 2 and sum(skipping["counts"]["skipped"].values()) == 2
    out = tmp_path / "set"
    arguments = ["data", "shard", str(folder), str(out), "--buckets=32x32", "--latents=tiny", "--texts=tiny", "--images=tiny"]
    assert cli.main([*arguments, "--uncaptioned"]) == 0
    texts = read_metadata(out)["texts"]
    assert (texts["captions"], texts["uncaptioned"]) == (2, 2)
    source = Latents(str(out), {})
    inputs = Inputs(Config(channels=48, text_dim=64, image_dim=64), out)
    without = [source[i] for i in range(4) if source[i]["fields"]["image_id"] in ("p01", "p02")]
    assert len(without) == 2
    for sample in without:
        assert sample["messages"] == [] and "t5h" not in sample["arrays"]
        assert inputs.encode(sample, 0).conditions.text is None


def test_samples_of_several_pictures_or_conversations_are_counted_and_a_caption_is_none_null_or_blank(tmp_path, capsys):
    def said(text):
        return {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]}

    photos(tmp_path / "photos", 4)
    rows = [
        {"images": ["p00.png", "p01.png"], "caption": "two"},
        {"image": "p00.png", "annotations": [said("one"), said("another")]},
        {"image": "p00.png", "annotations": [said("one"), said("another")], "captions": ["a"]},
        *({"image": "p00.png", "caption": text} for text in ("", None, " \u200b", "a dot")),
        {"image": "p00.png"},
        {"image": "p00.png", "caption": None, "captions": ["", "c", "b"]},
        {"image": "none.png", "caption": "x"},
    ]
    path = tmp_path / "photos" / "rows.jsonl"
    path.write_text("".join(json.dumps({"id": f"r{k}", **row}) + "\n" for k, row in enumerate(rows)))
    arguments = ["data", "shard", str(path), str(tmp_path / "set"), "--buckets=32x32", *(f"--{kind}=tiny" for kind in ENCODERS)]
    several, conversations = (f"with several {what}, where one makes a sample" for what in ("pictures", "conversations"))
    assert cli.main(arguments) == 0
    assert f"read 10, written 3, skipped: 4 no caption, 1 unreadable, 1 {conversations}, 1 {several}\n" in capsys.readouterr().out
    listed = map(json.loads, (tmp_path / "set" / "skipped.jsonl").read_text().splitlines())
    assert {row["id"] for row in listed if row["reason"] == "no caption"} == {"r3", "r4", "r5", "r7"}
    arguments[3] = str(tmp_path / "uncaptioned")
    assert cli.main([*arguments, "--uncaptioned"]) == 0
    assert f"read 10, written 7, skipped: 1 unreadable, 1 {conversations}, 1 {several}\n" in capsys.readouterr().out
    texts = read_metadata(tmp_path / "uncaptioned")["texts"]
    assert (texts["captions"], texts["uncaptioned"]) == (4, 4)


def test_pictures_with_a_side_under_the_least_are_skipped_with_their_size(tmp_path):
    made = build(photos(tmp_path / "photos", 6), tmp_path / "set", min_side=40)
    assert made["counts"] == {"read": 6, "written": 4, "skipped": {"a side is too short": 2}}
    rows = [json.loads(line) for line in (tmp_path / "set" / "skipped.jsonl").read_text().splitlines()]
    assert {(row["id"], row["detail"]) for row in rows} == {("p01", "30x52"), ("p04", "30x52")}


def test_encoders_are_named_and_never_assumed(tmp_path, capsys):
    assert cli.main(["data", "shard", str(photos(tmp_path / "photos", 1)), str(tmp_path / "set"), "--texts=tiny"]) == 2
    assert capsys.readouterr().err == (
        "plait: name the encoder for --latents, --images: a folder, a Hub repository[/part][@revision], or `tiny`, which is random and "
        "only for trying things out\n"
    )
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_bucket_asked_for_that_gets_no_picture_is_warned_of(tmp_path, capsys, dry):
    source, tiny = str(photos(tmp_path / "photos", 2)), ["--latents=tiny:8x64", "--texts=tiny", "--images=tiny"]
    told = "warning: no picture went into 160x16: none has nearly its shape"
    assert cli.main(["data", "shard", source, str(tmp_path / "set"), *tiny, "--buckets=32x32,160x16", *dry]) == 0
    assert told in capsys.readouterr().err
    assert cli.main(["data", "shard", source, str(tmp_path / "other"), *tiny, "--buckets=32x32", *dry]) == 0
    assert "no picture went" not in capsys.readouterr().err
