"""Latent sets as a source: what a sample holds, buckets as groups, and one clear line for everything that can be wrong."""

import json
import pickle

import numpy as np
import pytest

from plait import cli
from plait.config.schema import SourceEntry
from plait.data.loading.bucketing import contents_of, order_of
from plait.data.loading.loader import Loader
from plait.data.sources.latents import Latents
from plait.data.sources.open import open_source
from plait.errors import BadSample, PlaitError
from tests.data import latent_sets as sets

FIVE = {"bucket_32x32": 9, "24x40": 5, "bucket_40x24": 6}


@pytest.fixture
def root(tmp_path):
    return sets.make(tmp_path / "set", FIVE, mean=2.0, std=4.0)


def spoiled(root, **changes):
    """The set with one more sample at the end of 24x40, whose files are changed (None: taken away)."""
    files = sets.members((24, 40), 99) | {
        "t5h_flip.npy": sets.npy(np.ones((3, 6), np.float16)),
        "t5m_flip.npy": sets.npy(np.ones(3, np.uint8)),
    }
    for kind, body in changes.items():
        files[kind.replace("__", ".")] = body
    sets.shard(root / "24x40", 9, {"bad": {kind: body for kind, body in files.items() if body is not None}})
    source = Latents(str(root), {})
    return source, next(i for i in range(len(source)) if source.buckets[group(source, i)].name == "24x40" and i == last(source, "24x40"))


def group(source, i):
    return int(np.searchsorted(np.cumsum(source.groups), i, side="right"))


def last(source, name):
    k = [bucket.name for bucket in source.buckets].index(name)
    return sum(source.groups[: k + 1]) - 1


def test_groups_are_the_buckets_and_each_sample_has_its_buckets_shape(root):
    source = Latents(str(root), {})
    assert [bucket.name for bucket in source.buckets] == ["32x32", "40x24", "24x40"]
    assert source.groups == (9, 6, 5)
    assert len(source) == 20
    shapes = [source[i]["arrays"]["vae"].shape for i in range(20)]
    assert shapes == [(4, 4, 4)] * 9 + [(4, 3, 5)] * 6 + [(4, 5, 3)] * 5
    assert sorted(source[i]["fields"]["number"] for i in range(20)) == list(range(20))
    assert len({source[i]["id"] for i in range(20)}) == 20


def test_a_sample_has_its_caption_fields_and_normalised_arrays(root):
    sample = Latents(str(root), {})[0]
    raw = np.load(__import__("io").BytesIO(sets.members((32, 32), 0)["vae.npy"])).astype(np.float64)
    np.testing.assert_allclose(sample["arrays"]["vae"], (raw - 2) / 4, atol=1e-6)
    assert sample["arrays"]["vae"].dtype == np.float32
    assert sample["messages"] == [{"role": "assistant", "content": "picture 0"}]
    assert (sample["images"], sample["fields"]["image_id"]) == ([], "0")
    assert {name: array.shape for name, array in sample["arrays"].items()} == {"vae": (4, 4, 4), "t5h": (3, 6), "dinov3": (5,)}
    assert all(array.flags.writeable for array in sample["arrays"].values())


def test_only_valid_tokens_and_twins_come_out(root):
    states = np.arange(24, dtype=np.float16).reshape(4, 6)
    mask = sets.npy(np.array([1, 0, 1, 0], np.uint8))
    source, i = spoiled(root, t5h__npy=sets.npy(states), t5m__npy=mask)
    np.testing.assert_array_equal(source[i]["arrays"]["t5h"], states[[0, 2]])
    assert source[i]["arrays"]["t5h_flip"].shape == (3, 6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vae__npy": None}, r"24x40/shard-000009/bad has no .vae.npy; it has .dinov3.npy, .json"),
        ({"json": None}, "has no .json"),
        ({"json": b"{"}, "bad.json is not JSON"),
        ({"json": b"{}"}, "bad.json has no caption"),
        ({"t5h__npy": None}, "has no .t5h.npy"),
        ({"t5m_flip__npy": None}, "has no .t5m_flip.npy"),
        ({"vae__npy": sets.npy(np.zeros((4, 4, 4), np.float16))}, r"\(4, 4, 4\), bucket 24x40 needs floats \(4, 5, 3\)"),
        ({"vae__npy": sets.npy(np.zeros((4, 5, 3), np.int32))}, "int32 .* needs floats"),
        ({"vae__npy": sets.npy(np.full((4, 5, 3), np.nan, np.float16))}, "vae.npy holds values that are not finite"),
        ({"vae__npy": sets.npy(np.zeros((4, 5, 3), np.float16))[:-5]}, "has 115 bytes of data, its shape"),
        ({"vae__npy": b"no array"}, "vae.npy is not an .npy array"),
        ({"vae__npy": b""}, "vae.npy is not an .npy array"),
        ({"t5h__npy": sets.npy(np.full((3, 6), np.inf, np.float16))}, "t5h.npy holds values that are not finite"),
        ({"t5h__npy": sets.npy(np.zeros((3, 7), np.float16))}, r"the set has floats \(tokens, 6\)"),
        ({"t5m__npy": sets.npy(np.ones(4, np.uint8))}, r"t5m.npy is a mask of uint8 \(4,\) for 3 tokens"),
        ({"t5m_flip__npy": sets.npy(np.ones(2, np.uint8))}, r"t5m_flip.npy is a mask of uint8 \(2,\) for 3 tokens"),
        ({"t5m__npy": sets.npy(np.zeros(3, np.uint8))}, "leaves no token valid"),
        ({"dinov3__npy": sets.npy(np.zeros(4, np.float32))}, r"the set has floats \(5,\)"),
        ({"dinov3__npy": sets.npy(np.full(5, np.nan, np.float32))}, "dinov3.npy holds values that are not finite"),
        ({"vae__npy": sets.npy(np.array([{}], object))}, "holds Python objects, which are never loaded"),
    ],
)
def test_a_sample_that_cannot_be_used_says_why_in_one_line(root, changes, words):
    source, i = spoiled(root, **changes)
    with pytest.raises(BadSample, match=words) as caught:
        source[i]
    assert "\n" not in str(caught.value)
    assert len(source) == 21  # nothing is lost: its place is kept, and the loader names a replacement
    assert source[i - 1]["fields"]["number"] >= 0


@pytest.mark.parametrize(
    ("spoil", "options", "words"),
    [
        (lambda root: (root / "metadata.json").unlink(), {}, "finish the build .* or measure a set made elsewhere with"),
        (lambda root: (root / "metadata.json").write_text("{}"), {}, r"metadata.json is damaged \(no entry 'latents'\)"),
        (lambda root: sets.metadata(root, std=0.0), {}, "not finite and positive"),
        (lambda root: (root / "photos").mkdir(), {}, "'photos' is no bucket: write WIDTHxHEIGHT"),
        (lambda root: sets.shard(root / "32x32", 0, {"a": sets.members((32, 32), 0)}), {}, "has bucket 32x32 twice"),
        (lambda root: None, {"buckets": ["64x64"]}, "has no bucket 64x64; it has 32x32, 40x24, 24x40"),
        (lambda root: None, {"bucket": ["64x64"]}, "did you mean 'buckets'"),
        (lambda root: None, {"held_out": 1.0}, "from 0 to below 1"),
        (lambda root: None, {"buckets": []}, "list the buckets to read"),
        (lambda root: None, {"buckets": ["wide"]}, "'wide' is no bucket: write WIDTHxHEIGHT"),
        (lambda root: None, {"buckets": ["32x32", "bucket_32x32"]}, "lists 32x32 twice"),
    ],
)
def test_a_set_that_cannot_be_used_says_why_in_one_line(root, spoil, options, words):
    spoil(root)
    with pytest.raises(PlaitError, match=words) as caught:
        open_source(SourceEntry(source="latents", path=str(root), options=options), seed=0)
    assert str(caught.value).startswith("data source latents:set: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spoil", [lambda root: None, lambda root: (root / "bucket_64x64").mkdir()])
def test_a_listed_bucket_without_pictures_is_told_and_the_others_are_read(root, spoil, caplog):
    spoil(root)
    source = Latents(str(root), {"buckets": ["64x64", "32x32"]})
    assert [bucket.name for bucket in source.buckets] == ["32x32"]
    assert f"options.buckets lists 64x64, of which {root} has no picture; it has 32x32, 40x24, 24x40" in caplog.text


def test_a_truncated_tar_names_its_offset(root):
    shard = root / "24x40" / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:1500])
    with pytest.raises(PlaitError, match=r"shard-000001.tar is (truncated|damaged): .* offset \d+"):
        Latents(str(root), {})


def test_a_set_of_other_shapes_is_refused_before_the_run(root):
    told = json.loads((root / "metadata.json").read_text())
    (root / "metadata.json").write_text(json.dumps(told | {"texts": {"width": 1024}}))
    with pytest.raises(PlaitError, match=r"none of the first 20 samples can be used: .*floats \(tokens, 1024\)"):
        Latents(str(root), {})


def test_held_out_parts_share_nothing_and_cover_everything(root):
    numbers = {
        split: {s[i]["fields"]["number"] for s in [Latents(str(root), {"held_out": 0.2}, split=split)] for i in range(len(s))}
        for split in ("train", "validation")
    }
    assert numbers["train"] | numbers["validation"] == set(range(20))
    assert not numbers["train"] & numbers["validation"]
    assert Latents(str(root), {"held_out": 0.2}, split="validation").groups == (2, 1, 1)


def test_a_limit_takes_from_every_bucket_and_buckets_can_be_chosen(root):
    assert Latents(str(root), {}, limit=10).groups == (5, 3, 2)
    chosen = Latents(str(root), {"buckets": ["24x40", "bucket_32x32"]})
    assert ([bucket.name for bucket in chosen.buckets], chosen.groups) == (["32x32", "24x40"], (9, 5))


def test_the_fingerprint_follows_content_and_not_place(root, tmp_path):
    def marks(**options):
        return Latents(str(root), options).fingerprint

    moved = root.rename(tmp_path / "elsewhere")
    first = Latents(str(moved), {}).fingerprint
    moved.rename(root)
    assert marks() == first
    others = [marks(held_out=0.2), marks(buckets=["24x40"])]
    sets.metadata(root, mean=1.0)
    assert len({first, *others, marks()}) == 4


def test_the_table_counts_samples_tokens_and_batches(root):
    assert Latents(str(root), {}).table(4) == [
        {"bucket": "32x32", "samples": 9, "tokens": 27, "batches": 2, "left_over": 1},
        {"bucket": "40x24", "samples": 6, "tokens": 18, "batches": 1, "left_over": 2},
        {"bucket": "24x40", "samples": 5, "tokens": 15, "batches": 1, "left_over": 1},
    ]


def test_what_each_bucket_holds_is_said_and_all_together(root):
    assert contents_of([Latents(str(root), {})], 4) == [
        ("bucket 32x32", "9 samples, 27 text tokens, 2 batches of 4 an epoch, 1 carried over"),
        ("bucket 40x24", "6 samples, 18 text tokens, 1 batches of 4 an epoch, 2 carried over"),
        ("bucket 24x40", "5 samples, 15 text tokens, 1 batches of 4 an epoch, 1 carried over"),
        ("bucket all", "20 samples, 60 text tokens, 4 batches of 4 an epoch, 4 carried over"),
    ]
    assert contents_of([open_source(SourceEntry(source="scenes", limit=9), seed=0)], 4) == []


class Shapes:
    def encode(self, sample, key):
        return sample["arrays"]["vae"]

    def collate(self, examples):
        return {"shape": np.stack(examples).shape}


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_loader_gives_batches_of_one_shape_on_every_rank(root, world_size):
    source = Latents(str(root), {})
    order = order_of([source], [1.0], 0, 4)
    ranks = []
    for rank in range(world_size):
        with Loader([source], order, Shapes(), seed=0, rank=rank, world_size=world_size, stop_step=30, workers=2) as loader:
            ranks.append([step.micro[0].batch["shape"] for step in loader])
    assert len(set(map(tuple, ranks))) == 1
    assert set(ranks[0]) == {(4 // world_size, 4, 4, 4), (4 // world_size, 4, 3, 5), (4 // world_size, 4, 5, 3)}


def test_a_bad_sample_is_replaced_in_its_place_and_listed(root):
    source, bad = spoiled(root, vae__npy=None)
    order = order_of([source], [1.0], 0, 4)
    with Loader([source], order, Shapes(), seed=0, stop_step=100, workers=0) as loader:
        listed = [one for step in loader for one in step.bad]
    assert {one.id.index for one in listed} == {bad}
    assert "has no .vae.npy" in listed[0].reason
    assert len({one.replaced_by.index for one in listed}) > 1
    assert {group(source, one.replaced_by.index) for one in listed} == {group(source, bad)}  # of the same shape


def test_a_source_can_be_sent_to_another_process(root):
    source = pickle.loads(pickle.dumps(Latents(str(root), {})))
    assert source[3]["fields"]["number"] == 3


def test_names_of_buckets_are_checked_when_the_configuration_is_loaded(tmp_path, capsys):
    path = tmp_path / "x.yaml"
    source = "{source: latents, path: nowhere, options: {buckets: [1024x1024, tall]}}"
    path.write_text(f"family: nanodit\ntrain: {{steps: 1}}\ndata: {{train: [{source}]}}\n")
    assert cli.main(["config", str(path)]) == 2
    said = capsys.readouterr().err
    assert "options.buckets" in said and "'tall' is no bucket: write WIDTHxHEIGHT in pixels, such as 832x1216" in said
