"""`data.feature_cache` as a user meets it: equal losses to the bit, read from the second pass on, and never another picture's features."""

import json
import time

import pytest
import torch
from torch import nn

from plait import cli
from plait.assembly.configuration import open_config
from plait.engine.monitoring import reporter
from plait.errors import PlaitError
from plait.families.frozen import FrozenEncoder
from plait.training import run
from plait.training.features.fill import StoredEncoder
from plait.training.features.lookup import found_in, keys_of
from plait.training.features.stage_features import weights_hash
from plait.training.features.store import FeatureStore
from tests import processes

THEWORLD = """
family: theworld
preset: tiny
model:
  tiny: {hidden: 32, layers: 2, heads: 2, kv_heads: 1, head_dim: 16, mlp: 64, image_size: 16, image_tokens: 4,
         vision_hidden: 32, vision_layers: 1, vision_heads: 2, vision_mlp: 64, world_base: 4}
  world: {image_size: 16}
trainable: [projector, language]
data:
  train: [{source: scenes, limit: 12, options: {size: [32, 32], objects: [1, 2], tasks: [colour, count]}}]
  validation: []
train: {steps: 6, global_batch: 8, micro_batch: 4}
"""
MOLMO = """
family: molmo
preset: debug
trainable: [connector, language]
data:
  train: [{source: scenes, limit: 8, options: {size: [64, 96], objects: [1, 2], tasks: [colour, count]}}]
  validation: []
train: {steps: 3, global_batch: 8, micro_batch: 4}
"""
ALL = """
optim: {lr: 1.0e-3, ema: null, schedule: {warmup_steps: 0}}
checkpoint: {every_steps: null}
evaluate: []
track: {every_steps: 1, tensorboard: false}
"""


@pytest.fixture
def train(tmp_path):
    """`train(name, *overrides)` trains a run with the folder tmp_path/cache; returns its (losses, shares of features read)."""

    def trained(name, *overrides, text=THEWORLD):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(text + ALL)
        run.train(open_config(recipe, [f"run={tmp_path / name}", f"data.cache={tmp_path / 'cache'}", *overrides]))
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return [(row["loss"], row["grad_norm"]) for row in rows], [row.get("features_read") for row in rows]

    return trained


ON = "data.feature_cache=on"


def test_a_disk_that_reads_features_slower_than_a_sample_is_prepared_is_named_by_why(train, tmp_path, monkeypatch, capsys):
    train("first", ON)
    usual = FeatureStore.read
    monkeypatch.setattr(FeatureStore, "read", lambda store, keys: (time.sleep(0.2), usual(store, keys))[1])
    _, read = train("slow", ON, "data.workers=0")
    capsys.readouterr()
    assert cli.main(["why", str(tmp_path / "slow"), "--json"]) == 0
    reporter.for_programs(False)  # as before, for tests that come later
    cause = json.loads(capsys.readouterr().out)["causes"][0]
    assert read == [1.0] * 6
    assert (cause["what"], cause["cure"]) == ("feature cache", "--data.feature_cache=auto") and cause["share"] > 0.3
    assert ": 100% of the pictures are read from the feature cache, which takes 0." in cause["text"]


@pytest.mark.parametrize(
    ("text", "override"),
    [
        (THEWORLD, "seed=0"),
        (THEWORLD, "train.precision=bf16"),
        (THEWORLD, "model.world.source=tiny:cosmos1"),
        (THEWORLD, "model.world.source=tiny:dinov3"),
        (THEWORLD, "model.world.source=tiny:vjepa2"),
        (THEWORLD, "train.micro_batch=1"),
        (THEWORLD, "data.worker_kind=processes"),
        (MOLMO, "seed=0"),
    ],
)
def test_losses_are_the_same_to_the_bit_and_a_second_run_reads_all(train, text, override):
    without, nothing = train("off", override, text=text)
    first, _ = train("first", override, ON, text=text)
    second, shares = train("second", override, ON, text=text)
    assert first == without
    assert second == without
    assert {*nothing} == {None}
    assert {*shares} == {1.0}


def test_clips_of_several_lengths_are_stored_each_by_itself(train):
    scenes = "{{source: scenes, limit: 5, options: {{size: [32, 32], tasks: [colour], frames: {}}}}}"
    clips = f"[{scenes.format(5)}, {scenes.format(9)}]"
    settings = ["model.world.steps=2", f"data.train={clips}", "data.feature_cache_of=[world_latents]"]
    without, _ = train("off", *settings)
    assert train("first", ON, *settings)[0] == without
    losses, shares = train("second", ON, *settings)
    assert losses == without
    assert {*shares} == {1.0}


def test_features_are_read_in_the_pass_after_the_one_that_made_them(train, caplog):
    caplog.set_level("INFO")
    _, shares = train("run", ON, "data.workers=0", "train.global_batch=4", "train.steps=6")
    assert shares[:3] == [0.0, 0.0, 0.0]
    assert shares[3:] == [1.0, 1.0, 1.0]
    assert "world_latents: 12 of 24 read (50 %); 12 are stored" in caplog.text


def test_a_stage_that_trains_the_encoder_stores_none_of_it(train, caplog):
    caplog.set_level("INFO")
    stages = "stages=[{name: a, trainable: [projector]}, {name: b, trainable: [projector, vision]}, {name: c, trainable: [projector]}]"
    without, _ = train("off", stages, "train.steps=3")
    stored, shares = train("on", stages, "train.steps=3", ON)
    assert stored == without
    assert "image_features: not stored: it trains in this stage" in caplog.text
    folders = [line.partition("kept in ")[2].split()[0] for line in caplog.text.splitlines() if "image_features: frozen" in line]
    assert len({*folders}) == 2  # what trained in b is another encoder in c
    assert all("(0 there)" in line for line in caplog.text.splitlines() if "image_features: frozen" in line)
    assert None not in shares


@pytest.mark.parametrize("override", ["seed=1", "model.world.image_size=24", "train.precision=bf16", "model.world.source=tiny:dinov3"])
def test_other_weights_preprocessing_or_types_read_nothing_of_before(train, override):
    train("first", ON)
    without, _ = train("off", override)
    losses, shares = train("second", ON, override, "data.feature_cache_of=[world_latents]")
    assert losses == without
    assert shares[0] == 0.0


def test_augmentation_makes_other_pictures_so_nothing_is_stored(train, caplog, tmp_path):
    caplog.set_level("INFO")
    train("run", ON, "model.augment.shift=0.1")
    assert "world_latents: not stored: model.augment makes other pictures in each epoch" in caplog.text
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_auto_leaves_alone_what_comes_only_once(train, caplog):
    caplog.set_level("INFO")
    train("run", "data.feature_cache=auto", "train.steps=1")
    assert "image_features: not stored: no picture comes a second time in this stage" in caplog.text


def test_an_unknown_encoder_and_a_folder_that_cannot_be_made_are_told(train, tmp_path):
    with pytest.raises(PlaitError, match=r"feature_cache_of names 'wan'; the encoders of this model are world_latents, image_features$"):
        train("run", ON, "data.feature_cache_of=[wan]")
    (tmp_path / "file").write_text("")
    with pytest.raises(
        PlaitError, match=r"feature_cache: Not a directory: .*/file/features; set data.cache to a folder that can be written$"
    ):
        train("run", ON, f"data.cache={tmp_path / 'file'}")


def test_a_family_without_encoders_says_so(train, caplog):
    caplog.set_level("INFO")
    model = "model={space: pixels, depth: 2, hidden: 48, heads: 2, patch: 4, image_size: 32, text: words, text_dim: 16, words: 64}"
    text = "family: nanodit\ndata: {train: [{source: scenes, limit: 8, options: {size: [32, 32]}}]}\ntrain: {steps: 1}\n"
    train("run", ON, model, "model.image_dim=0", text=text)
    assert "data.feature_cache: family nanodit has no encoder whose features can be kept" in caplog.text


def rank(recipe, folder, *overrides):
    run.train(open_config(recipe, [f"run={folder}", *overrides]))


def test_two_ranks_share_what_each_has_stored(train, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(THEWORLD + ALL)
    settings = (f"data.cache={tmp_path / 'cache'}", "distributed.strategy=ddp", ON)
    processes.fork(2, rank, recipe, tmp_path / "two", *settings)
    without, _ = train("off")
    losses, shares = train("one", ON)
    assert losses == without
    assert {*shares} == {1.0}


def test_a_key_is_of_the_content_the_shape_and_whether_a_picture_is_alone():
    one = torch.arange(48, dtype=torch.uint8).view(3, 4, 4)
    other = one.clone()
    other[0, 0, 0] = 9
    together = keys_of([one, other, one], alike=True)
    assert together[0] == together[2]
    assert together[0] != together[1]
    assert keys_of([one.view(3, 2, 8)], alike=True) != keys_of([one], alike=True)
    assert keys_of([one], alike=True) != together[:1]
    assert keys_of([one] * 2, alike=True) == keys_of([one] * 3, alike=True)[:2]
    assert keys_of([one] * 2, alike=False) != keys_of([one] * 3, alike=False)[:2]


def test_the_hash_of_an_encoder_is_of_its_weights_buffers_and_types():
    module = nn.BatchNorm1d(3)
    hashes = {weights_hash([module])}
    module.running_mean[0] = 1.0
    hashes.add(weights_hash([module]))
    module.weight.data[0] = 2.0
    hashes.add(weights_hash([module]))
    hashes.add(weights_hash([module.bfloat16()]))
    assert len(hashes) == 4


class Slow(nn.Module):
    """An encoder that counts the pictures it is given, and may draw."""

    def __init__(self, rate=0.0):
        super().__init__()
        self.rate, self.given = rate, 0

    def forward(self, pictures):
        self.given += len(pictures)
        return nn.functional.dropout(pictures.float(), self.rate)


@pytest.fixture
def stored(tmp_path):
    """`stored(module, **options)`: a StoredEncoder of it, and `pass_(pictures)`, which completes a batch of them."""
    opened = []

    def make(module, *, tries=False, repeats=0.9):
        encoder = FrozenEncoder("slow", lambda batch: list(batch["pixels"]), lambda model: [model], lambda model, x: model(x), {})
        store = FeatureStore(tmp_path, "slow", limit_bytes=10**9, about={})
        store.open()
        opened.append(store)
        part = StoredEncoder(encoder, module, store, device=torch.device("cpu"), alike=True, tries=tries, repeats=repeats)

        def once(pictures):
            alike = not store.is_by_number()
            keys = keys_of(list(pictures), alike=alike)
            batch = {"pixels": pictures, found_in(encoder): (keys, store.read(keys), alike)}
            part.complete(batch)
            return batch.get("slow")

        return part, once

    yield make
    for store in opened:
        store.close()


def pictures(first, count):
    return torch.arange(first, first + count, dtype=torch.uint8).view(count, 1, 1).expand(count, 2, 2).contiguous()


def test_only_missing_pictures_are_encoded_one_of_them_with_another(stored):
    module = Slow()
    part, once = stored(module)
    once(pictures(0, 4))
    assert module.given == 4 + 2  # two again, to see that they are the same in other company
    assert torch.equal(once(pictures(1, 4)), pictures(1, 4).float().flatten(0, 1))
    assert module.given == 6 + 2
    once(pictures(1, 4))
    assert module.given == 8
    assert (part.read, part.seen) == (7, 12)


def test_an_encoder_that_draws_is_not_stored_and_leaves_other_draws_as_they_were(stored, caplog):
    caplog.set_level("INFO")
    part, once = stored(Slow(rate=0.5))
    torch.manual_seed(0)
    once(pictures(0, 4))
    after = torch.rand(1)
    torch.manual_seed(0)
    nn.functional.dropout(torch.ones(4, 2, 2), 0.5)
    assert torch.equal(after, torch.rand(1))
    assert not part.use
    assert "slow: a picture's features depend on the others in its batch, or are drawn: they cannot be kept" in caplog.text
    assert once(pictures(0, 4)) is None
    assert len(part.store) == 0


class Rounding(Slow):
    """An encoder that rounds otherwise from four pictures on, as convolutions of CPU libraries do."""

    def forward(self, pictures):
        return super().forward(pictures) * (1 + 2**-20 * (len(pictures) > 3))


def test_features_that_round_by_the_number_of_pictures_are_kept_by_it(stored, caplog):
    caplog.set_level("INFO")
    module = Rounding()
    part, once = stored(module)
    for first, count in [(1, 3), (1, 4), (2, 3), (1, 4), (5, 4), (1, 3), (2, 3)]:
        assert torch.equal(once(pictures(first, count)), Rounding()(pictures(first, count)).flatten(0, 1))
    line = "among 4 pictures features round otherwise than among 2, by up to 3.8e-06: they are kept by the number of pictures"
    assert f"slow: {line} that are encoded at once" in caplog.text and part.use
    given = module.given
    assert torch.equal(once(pictures(5, 4)), Rounding()(pictures(5, 4)).flatten(0, 1)) and module.given == given
    part.store.flush(wait=True)
    after, other = stored(module)  # a later run, in the same folder
    assert torch.equal(other(pictures(1, 4)), Rounding()(pictures(1, 4)).flatten(0, 1)) and (after.read, module.given) == (4, given)


def test_a_batch_that_was_looked_up_before_that_was_found_reads_no_others_features(stored):
    part, once = stored(Rounding())
    once(pictures(1, 3))
    keys = keys_of(list(pictures(1, 4)), alike=True)
    batch = {"pixels": pictures(1, 4), found_in(part.encoder): (keys, part.store.read(keys), True)}
    once(pictures(4, 4))
    part.complete(batch)
    assert torch.equal(batch["slow"], Rounding()(pictures(1, 4)).flatten(0, 1))


@pytest.mark.parametrize("batch", [8, 16])
def test_a_video_vae_in_batches_of_any_size_gives_the_same_losses_and_is_read(train, batch):
    text = THEWORLD.replace("world: {image_size: 16}", "world: {image_size: 32}").replace("limit: 12", "limit: 16")
    sizes = [f"train.global_batch={batch}", f"train.micro_batch={batch}", "train.steps=2"]
    other = [f"train.global_batch={24 - batch}", f"train.micro_batch={24 - batch}", "train.steps=2"]
    train("before", ON, *other, text=text)
    without, _ = train("off", *sizes, text=text)
    losses, _ = train("first", ON, *sizes, text=text)
    again, shares = train("second", ON, *sizes, text=text)
    assert losses == again == without and {*shares} == {1.0}


@pytest.mark.parametrize(("encode", "store", "read", "again", "kept"), [
    (10.0, 1.0, 1.0, 0.5, True),
    (10.0, 1.0, 9.0, 0.5, False),
    (10.0, 1.0, 1.0, 0.0, False),
    (1.0, 10.0, 0.1, 0.5, False),
    (1.0, 10.0, 0.1, 0.95, True),
])  # fmt: skip
def test_auto_keeps_what_takes_less_time_than_it_saves(stored, monkeypatch, encode, store, read, again, kept):
    module = Slow()
    part, once = stored(module, tries=True, repeats=again)
    costs = {"_encode": encode, "add": store, "read": read, "flush": 0.0}

    def timed(work):
        name = next(name for name in costs if name in work.__code__.co_names)
        return work(), costs[name] * (4 if name != "flush" else 1)

    monkeypatch.setattr(part, "_timed", timed)
    for first in range(0, 16, 4):
        assert part.tries
        once(pictures(first, 4))
    assert not part.tries
    assert part.use is kept
    assert part.store.stopped is not kept
