"""The family as the engine, the verbs and a user's file see it: every setting has an effect, benches, pictures, generation."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from plait.assembly.configuration import open_config
from plait.data.sources.metadata import METADATA
from plait.errors import PlaitError
from plait.families.nanodit import family, pictures
from plait.families.nanodit.config import Config
from plait.families.nanodit.evaluate import benches
from plait.families.nanodit.generate import GenerateOptions, sample_shape
from plait.families.nanodit.network.conditions import noise
from plait.families.nanodit.sampler import Request, draw
from plait.keys import key
from plait.nn import encoders

from .conftest import SMALL, sample, wake

PIXELS = {"space": "pixels", "channels": 3, "image_dim": 0, "text": "words", "image_size": 16, "words": 64}
CHANGES = [
    ("depth", 3, {}),
    ("hidden", 64, {}),
    ("heads", 4, {}),
    ("mlp_ratio", 2.0, {}),
    ("patch", 4, {}),
    ("channels", 6, {}),
    ("space", "pixels", {**PIXELS, "space": "latents"}),
    ("image_size", 8, PIXELS),
    ("text", "words", {}),
    ("words", 32, PIXELS),
    ("text_dim", 16, {}),
    ("image_dim", 0, {}),
    ("prediction", "x", {}),
    ("centre_positions", True, {}),
    ("dropout", {"neither": 1.0, "text_only": 0.0, "image_only": 0.0}, {}),
    ("dropout", {"neither": 0.0, "text_only": 1.0, "image_only": 0.0}, {}),
    ("dropout", {"neither": 0.0, "text_only": 0.0, "image_only": 1.0}, {}),
    ("time", {"sampling": "uniform"}, {}),
    ("time", {"loc": 0.5}, {}),
    ("time", {"scale": 0.5}, {}),
    ("time", {"shift": 3.0}, {}),
    ("flip", {"probability": 0.0}, {}),
    ("flip", {"probability": 1.0, "swap_caption": False}, {"flip": {"probability": 1.0}}),
    ("sampling", {"steps": 3}, {}),
    ("sampling", {"solver": "heun"}, {}),
    ("sampling", {"text_scale": 1.0}, {}),
    ("sampling", {"image_scale": 1.0}, {}),
    ("sampling", {"guidance": "joint"}, {}),
    ("sampling", {"interval": (0.6, 1.0)}, {}),
    ("sampling", {"grid": "quadratic"}, {}),
    ("sampling", {"shift": 2.0}, {}),
    ("sampling", {"folder": "elsewhere"}, {}),
]


def behaviour(directory, **section):
    """Everything a setting may change, as numbers and texts: what is encoded, the loss, a drawn sample, where pictures go."""
    config = Config(**{**SMALL, "sampling": {"steps": 4, **section.pop("sampling", {})}, **section})
    net, inputs = family.build(config, directory, seed=1).eval(), family.Inputs(config, directory, train=True)
    wake(net)
    random, buffer = np.random.default_rng(0), io.BytesIO()
    Image.fromarray(random.integers(0, 255, (24, 24, 3), np.uint8)).save(buffer, "PNG")
    examples = []
    for i in range(12):
        one = sample(i, text=f"the left {i}", t5h=random.standard_normal((3, config.text_dim)))
        one["arrays"] |= {"vae": random.standard_normal((config.channels, 8, 8)), "dinov3": random.standard_normal(config.image_dim or 1)}
        one["arrays"] |= {"t5h_flip": one["arrays"]["t5h"] * 2}
        examples.append(inputs.encode({**one, "images": [buffer.getvalue()]}, i))
    batch = inputs.collate(examples)
    sums = family.Loss(config).sums(net, batch)
    drawn = draw(net, inputs, [Request(examples[0].conditions, tuple(examples[0].x0.shape), 1)], config.sampling)
    seen = [float(value.detach().double().sum()) for value in (batch["x0"], batch["t"], batch["text"].float(), sums["flow"], drawn)]
    return [round(value, 5) for value in seen], str(inputs.pictures_folder("step-7"))


@pytest.mark.parametrize(("name", "value", "base"), CHANGES, ids=lambda value: str(value)[:40])
def test_every_setting_has_an_effect(directory, name, value, base):
    changed = {**base, name: {**base.get(name, {}), **value} if isinstance(value, dict) else value}
    assert behaviour(directory, **base) != behaviour(directory, **(PIXELS if name == "space" else changed))


def test_every_setting_is_in_that_list():
    tested = {(name, inner) for name, value, _ in CHANGES for inner in (value if isinstance(value, dict) else [None])}
    for name, field in Config.model_fields.items():
        inner = getattr(field.annotation, "model_fields", None) or [None]
        for part in inner:  # a size is a row of the table, metadata and extractor have tests of their own below
            assert (name, part) in tested or (name, part) in [("size", None), ("metadata", None), ("sampling", "extractor")], (
                f"{name}.{part}"
            )


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"size": "9/99"}, "size '9/99' is not in the table: 12/384, 24/512"),
        ({"size": "12/384", "depth": 3}, "size 12/384 has depth 12, but depth is 3"),
        ({"hidden": 36, "heads": 5}, "hidden is 36, not a multiple of heads, 5"),
        ({"space": "pixels", "channels": 4}, "channels is 4, but pixels have 3"),
        ({"space": "pixels", "image_size": 33}, "image_size is 33, not a multiple of patch, 2"),
        ({"text": "words", "text_dim": 7}, "text_dim is 7: words need an even number"),
        ({"sampling": {"interval": (0.5, 0.5)}}, "its first t must be below its second"),
    ],
)
def test_settings_that_cannot_be_together_are_refused(section, message):
    with pytest.raises(ValueError, match=message):
        Config(**section)


def test_a_size_says_depth_hidden_and_heads_and_survives_being_saved():
    config = Config(size="18/768")
    assert (config.depth, config.hidden, config.heads) == (18, 768, 12)
    assert Config.model_validate(config.model_dump(mode="json")) == config


def labelled(count=8):
    made = [sample(i) for i in range(count)]
    for i, one in enumerate(made):
        one["fields"] = {"position": ["left", "right"][i % 2], "colour": ["red", "blue"][i // 2 % 2]}
    return made


@pytest.mark.parametrize("bench", ["validation", "edit", "swap", "divergence", "toy", "grid", "distance"])
def test_a_bench_gives_the_same_rows_every_time_in_the_samples_order(make, bench):
    _, net, inputs = make(sampling={"steps": 2})
    samples = labelled(6) + [sample(i, size=(4, 8)) | {"fields": labelled()[i]["fields"]} for i in range(4)] * (bench != "toy")
    first, again = (benches[bench].predict(net, samples, inputs, batch=n) for n in (4, 4))
    assert first == again
    assert [row["id"] for row in first] == [one["id"] for one in samples]
    json.dumps(first)
    several = first * (6 if bench == "distance" else 1)  # of which fewer than 50 are no set
    assert all(np.isfinite(value) for value in benches[bench].summarise(several).values())


def test_validation_is_the_loss_at_fixed_times(make):
    _, net, inputs = make(woken=False)
    rows = benches["validation"].predict(net, labelled(2), inputs, batch=2)
    x0 = torch.tensor(labelled(1)[0]["arrays"]["vae"])
    expected = float((noise(x0.shape, key("bench", "s0")) - x0).square().mean())  # the output is 0, at every t
    assert rows[0]["losses"] == pytest.approx([expected] * 5, rel=1e-5)


def test_a_model_that_ignores_the_text_shows_in_the_edit_test(make):
    _, net, inputs = make(sampling={"steps": 2})
    for block in net.blocks:
        torch.nn.init.zeros_(block.cross.out.weight)
    figures = benches["edit"].summarise(benches["edit"].predict(net, labelled(), inputs, batch=8))
    assert figures["change"] < 1e-5
    figures = benches["swap"].summarise(benches["swap"].predict(net, labelled(), inputs, batch=8))
    assert figures["toward"] == pytest.approx(1.0, abs=1e-3)  # the image alone decides


@pytest.mark.parametrize(("shown", "figure", "low", "high"), [("image", "dominance", 0.9, 1.0), ("text", "dominance", 0.0, 0.1)])
def test_one_condition_that_decides_alone_shows_in_the_divergence_test(make, shown, figure, low, high):
    _, net, inputs = make(sampling={"steps": 2, "text_scale": 4.0, "image_scale": 2.0})
    if shown == "image":
        for block in net.blocks:
            torch.nn.init.zeros_(block.cross.out.weight)
    else:
        torch.nn.init.zeros_(net.conditioning.image.weight)
    rows = benches["divergence"].predict(net, labelled(), inputs, batch=8)
    assert low <= benches["divergence"].summarise(rows)[figure] <= high


def test_the_toy_bench_classifies_by_labels(make, monkeypatch):
    """A drawer that paints exactly what its conditions say is always right; one that ignores the image is right by half on colour."""
    _, net, inputs = make()
    samples = labelled(8)
    tokens = {"left": 2.0, "right": -2.0}
    for one in samples:
        own = one["fields"]
        one["arrays"]["t5h"] = np.full((1, 8), tokens[own["position"]], np.float32)
        one["arrays"]["dinov3"] = np.full(6, 3.0 if own["colour"] == "red" else -3.0, np.float32)
        label = [tokens[own["position"]], one["arrays"]["dinov3"][0]]
        one["arrays"]["vae"] = np.repeat(label, 2)[:, None, None] * np.ones((8, 8))

    def painted(model, inputs, requests, sampling, image=True):
        def value(conditions):
            colour = conditions.image[0] if image and conditions.image is not None else torch.zeros(())
            text = torch.zeros(()) if conditions.text is None else conditions.text[0, 0]
            return torch.stack([text, text, colour, colour])[:, None, None].expand(4, 8, 8)

        return torch.stack([value(one.conditions) for one in requests])

    monkeypatch.setattr("plait.families.nanodit.evaluate.draw", painted)
    figures = benches["toy"].summarise(benches["toy"].predict(net, samples, inputs, batch=3))
    assert figures == {"both": 1.0, "text": 1.0, "image": 1.0, "crossed": 1.0}
    monkeypatch.setattr("plait.families.nanodit.evaluate.draw", lambda *a: painted(*a, image=False))
    figures = benches["toy"].summarise(benches["toy"].predict(net, samples, inputs, batch=3))
    assert (figures["text"], figures["both"]) == (1.0, 0.5)


def test_benches_that_cannot_run_name_the_reason(make):
    _, net, inputs = make()
    with pytest.raises(PlaitError, match="bench toy needs the fields position and colour, which sample s0 has not"):
        benches["toy"].predict(net, [sample(0)], inputs, batch=1)
    with pytest.raises(PlaitError, match=r"no two of 1 samples differ in their text: raise evaluate\.samples"):
        benches["edit"].predict(net, [sample(0)], inputs, batch=1)
    _, net, inputs = make(image_dim=0)
    with pytest.raises(PlaitError, match=r"model\.image_dim is 0"):
        benches["divergence"].predict(net, [sample(0)], inputs, batch=1)


def test_the_distance_bench_looks_through_the_extractor_that_is_named(make, monkeypatch):
    _, net, inputs = make(sampling={"steps": 2, "extractor": "my/dino"})
    opened, tiny = [], encoders.open_images("tiny")
    monkeypatch.setattr(encoders, "open_images", lambda name, device: opened.append(name) or tiny)
    rows = benches["distance"].predict(net, labelled(), inputs, batch=4)
    assert opened == ["my/dino"] and len(rows[0]["real"]) == 64
    same = [{**row, "drawn": row["real"]} for row in rows]
    figures = benches["distance"].summarise(same * 9)
    assert figures["frechet"] == pytest.approx(0, abs=1e-6) and benches["distance"].about(same * 9) == {"features": "64 of my/dino"}
    assert benches["distance"].summarise(same * 8).keys() == {"kernel"}  # 64 samples, and as many features
    assert benches["distance"].about(same * 8)["features"] == ("64 of my/dino; no frechet: it needs more than 64 samples, and these are 64")
    named = str([rows, figures, benches["distance"].about(same * 9), benches["distance"].__doc__])
    assert "fid" not in named.lower() and "cmmd" not in named.lower()  # names of the published extractors' scores
    with pytest.raises(PlaitError, match=r"8 samples are too few for one: raise evaluate\.samples to 50 or more, .* features of my/dino$"):
        benches["distance"].summarise(same)


def test_pictures_carry_their_settings_and_make_a_grid_per_size(make):
    _, net, inputs = make(sampling={"steps": 2})
    rows = benches["grid"].predict(net, [*labelled(3), sample(9, size=(4, 8))], inputs, batch=4, moment="step-7")
    assert "/validation/step-7/" in rows[0]["picture"]
    with Image.open(rows[0]["picture"]) as picture:
        settings = json.loads(picture.text["plait"])
    assert settings["sampling"]["steps"] == 2 and settings["caption"] == "caption 0"
    grids = benches["grid"].pictures(rows)
    assert {size: grid.shape for size, grid in grids.items()} == {"8x8": (18, 18, 3), "8x4": (4, 8, 3)}


def generated(make, directory, tmp_path, options, **section):
    _, net, inputs = make(**section)
    lines = family.generate(net, inputs, GenerateOptions.model_validate(options), tmp_path / "out", "step-00000007")
    return lines, sorted(path.name for path in (tmp_path / "out").iterdir())


def test_generation_writes_a_picture_per_prompt_and_seed_and_a_grid(make, directory, tmp_path):
    options = {"prompt": ["a frog", "a cat"], "count": "2", "seed": "5", "steps": "2", "text_scale": "1.5"}
    lines, names = generated(make, directory, tmp_path, options, **PIXELS)
    at = "step-00000007.png"
    drawn = [f"a-{what}-16x16-seed-{seed}-{at}" for what in ("cat", "frog") for seed in (5, 6)]
    assert names == [*drawn, f"grid-{at}"]
    assert len(lines) == 5
    with Image.open(tmp_path / "out" / drawn[1]) as picture:
        settings = json.loads(picture.text["plait"])
    assert (settings["prompt"], settings["seed"], settings["text_scale"], settings["steps"]) == ("a cat", 6, 1.5, 2)


def test_the_same_seed_is_the_same_picture(make, directory, tmp_path):
    for name in ("a", "b"):
        generated(make, directory, tmp_path / name, {"prompt": "a frog", "seed": 5, "steps": 2}, **PIXELS)
    first, second = ((tmp_path / name / "out" / "a-frog-16x16-seed-5-step-00000007.png").read_bytes() for name in ("a", "b"))
    assert first == second


def test_no_picture_is_written_over(make, directory, tmp_path):
    options = {"prompt": ["a frog", "a, frog!"], "steps": 1}
    _, first = generated(make, directory, tmp_path, options, **PIXELS)
    name = "a-frog-16x16-seed-0-step-00000007"
    assert first == [f"{name}-2.png", f"{name}.png", "grid-step-00000007.png"]
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    _, names = generated(make, directory, tmp_path, options | {"steps": 2}, **PIXELS)
    assert names == sorted([*first, f"{name}-3.png", f"{name}-4.png", "grid-step-00000007-2.png"])
    assert all(path.read_bytes() == body for path, body in before.items())


@pytest.mark.parametrize(
    ("prompt", "words"),
    [("a frog " * 60, "-".join(["a-frog"] * 9)[:60]), ("蛙" * 500, "蛙" * 53), ("𠀀" * 500, "𠀀" * 40)],
    ids=["ascii", "three bytes a letter", "four bytes a letter"],
)
def test_a_long_prompt_names_a_file_that_a_disk_takes(make, directory, tmp_path, prompt, words):
    _, names = generated(make, directory, tmp_path, {"prompt": [prompt, prompt], "steps": 1}, **PIXELS)
    name = f"{words}-16x16-seed-0-step-00000007"
    assert names == sorted([f"{name}.png", f"{name}-2.png", "grid-step-00000007.png"])


def test_without_a_size_pictures_are_those_of_the_bucket_with_most(make, directory, tmp_path):
    metadata = {
        "latents": {"channels": 12, "downsample": 4, "mean": [0.0] * 12, "std": [1.0] * 12},
        "texts": {"width": 8},
        "images": {"width": 64},
        "buckets": {"64x64": {"samples": 3}, "48x80": {"samples": 9}, "80x48": {"samples": 8}},
    }
    (tmp_path / METADATA).write_text(json.dumps(metadata))
    config, _, inputs = make(channels=12, metadata=str(tmp_path))
    family.prepare(config, directory, lambda: [])
    assert sample_shape(inputs, None) == (12, 20, 12)


def test_latents_are_decoded_a_few_at_a_time_to_the_same_pictures(make, directory, tmp_path, monkeypatch):
    codec = encoders.open_latents("tiny:4x12")
    metadata = {
        "latents": {"channels": 12, "downsample": 4, "mean": [0.0] * 12, "std": [1.0] * 12},
        "texts": {"width": 8},
        "images": {"width": 64},
        "encoders": {"latents": codec.pin},
    }
    (tmp_path / METADATA).write_text(json.dumps(metadata))
    config, _, inputs = make(channels=12, metadata=str(tmp_path))
    family.prepare(config, directory, lambda: [])
    latents, seen = torch.randn(5, 12, 4, 8), []
    at_once = pictures.decoder(inputs, torch.device("cpu"))(latents)
    decode = encoders.TinyLatents.decode
    monkeypatch.setattr(encoders.TinyLatents, "decode", lambda self, part: (seen.append(len(part)), decode(self, part))[1])
    monkeypatch.setattr(pictures, "_DECODED_PIXELS", 2 * 32 * 16)
    in_parts = pictures.decoder(inputs, torch.device("cpu"))(latents)
    assert seen == [2, 2, 1]
    assert all(np.array_equal(one, other) for one, other in zip(at_once, in_parts, strict=True))


def test_prompts_and_latents_go_through_the_encoders_of_the_shards(make, directory, tmp_path):
    codec, texts, looks = encoders.open_latents("tiny:4x12"), encoders.open_texts("tiny:8"), encoders.open_images("tiny")
    metadata = {
        "latents": {"channels": 12, "downsample": 4, "mean": [0.5] * 12, "std": [2.0] * 12},
        "texts": {"width": 8},
        "images": {"width": 64},
        "encoders": {"latents": codec.pin, "texts": {**texts.pin, "max_tokens": 16}, "images": looks.pin},
    }
    (tmp_path / METADATA).write_text(json.dumps(metadata))
    section = {"channels": 12, "image_dim": 64, "metadata": str(tmp_path)}
    config, net, inputs = make(**section)
    family.prepare(config, directory, lambda: [])
    Image.new("RGB", (30, 30), (200, 0, 0)).save(tmp_path / "red.png")
    options = GenerateOptions(prompt=["a dot", ""], image=tmp_path / "red.png", size="32x16", steps=2)
    family.generate(net, inputs, options, tmp_path / "out", "step-00000007")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a-dot-32x16-seed-0-step-00000007.png",
        "grid-step-00000007.png",
        "no-prompt-32x16-seed-0-step-00000007.png",
    ]
    with Image.open(tmp_path / "out" / "a-dot-32x16-seed-0-step-00000007.png") as picture:
        assert picture.size == (32, 16)
    shown = pictures.decoder(inputs, torch.device("cpu"))(torch.zeros(1, 12, 4, 8))[0]
    example = inputs.encode(sample(1, vae=np.zeros((12, 4, 8)), dinov3=np.zeros(64)), 1)
    seen = family.inspect(inputs, sample(1), example)
    assert np.array_equal(seen["images"][0], shown)
    assert seen["labels"] == ["decoded latents, 32x16 px"]
    assert np.array_equal(shown, codec.decode(torch.full((1, 12, 4, 8), 0.5))[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    ("options", "section", "message"),
    [
        ({"size": "10x16"}, {}, "--size is 10x16: both sides must be multiples of 16 pixels"),
        ({}, {}, "--size is missing"),
        ({"size": "16x16", "prompt": "x"}, {}, "the run does not know its encoders: set model.metadata"),
        ({"image": "/nowhere.png"}, PIXELS, "no file /nowhere.png"),
        ({"interval": "0.5"}, PIXELS, "--interval"),
        ({"interval": "a,b", "prompt": "x"}, PIXELS, "write two numbers, such as 0.1,0.9"),
        ({"solver": "rk4"}, PIXELS, "--solver: Input should be 'euler' or 'heun'"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(make, directory, tmp_path, options, section, message):
    with pytest.raises(PlaitError) as caught:
        generated(make, directory, tmp_path, options, **section)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_metadata_that_is_not_there_is_named(directory):
    with pytest.raises(PlaitError, match=r"model\.metadata: no file /.*/nowhere/x\.json; .* is relative to the working directory"):
        family.prepare(Config(metadata="nowhere/x.json"), directory, lambda: [])


def test_the_contact_sheet_shows_picture_caption_and_draws(make):
    _, _, inputs = make()
    shown = family.inspect(inputs, sample(1), inputs.encode(sample(1), 1))
    assert shown["images"][0].shape == (8, 8, 3) and shown["images"][0].dtype == np.uint8
    assert shown["text"] == [("caption 1", False)]
    assert shown["labels"] == ["three channels of latents, 8x8 px"]
    assert (shown["notes"]["caption"], shown["notes"]["text tokens"]) == ("given", 3)
    assert shown["notes"]["picture"] == "three latent channels: model.metadata names no decoder"


def test_the_contact_sheet_shows_a_mirrored_sample_with_its_mirrored_caption(make):
    _, _, inputs = make(inputs={"train": True}, flip={"probability": 1.0}, text="words", words=64)
    one = sample(1, text="a dot on the left")
    shown = family.inspect(inputs, one, inputs.encode(one, 1))
    assert shown["text"] == [("a dot on the right", False)] and shown["notes"]["mirrored"]


def test_float16_is_refused_with_its_reason(tmp_path):
    recipe = tmp_path / "x.yaml"
    recipe.write_text("family: nanodit\ndata: {train: [{source: scenes}]}\ntrain: {steps: 9, precision: fp16}\n")
    with pytest.raises(PlaitError) as caught:
        open_config(recipe)
    message = "its residual stream grows beyond float16's 65,504; use bf16, which has float32's range"
    assert str(caught.value) == f"{recipe}:3: train.precision is 'fp16', which family nanodit refuses: {message}"
