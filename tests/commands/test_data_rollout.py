"""`plait data rollout`: futures equal to encoding the same frames, whole after a kill, checked where they are read, and trained on."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from plait import cli, files
from plait.assembly.configuration import open_config
from plait.assembly.data import open_data
from plait.assembly.model import seed_of
from plait.config.schema import RunConfig
from plait.data.rollouts import stored as rollouts
from plait.errors import BadSample, PlaitError
from plait.families.theworld import family
from plait.families.theworld.config import Config
from plait.nn import cosmos
from tests.commands.test_ablations import RUN, TINY

SCENES = {"size": [32, 32], "objects": 2, "sizes": ["large"], "frames": 5, "horizon": 8, "speed": [0.03, 0.15], "tasks": ["faster"]}
WORLD = {"source": "tiny", "image_size": 32, "steps": 1}


def config_file(tmp_path: Path, *, entry: dict[str, Any] | None = None, world: dict[str, Any] | None = None, **more: Any) -> Path:
    data = {"train": [{"source": "scenes", "limit": 10, "options": SCENES, **(entry or {})}], "workers": 0}
    model = {"base": "tiny", "world": {**WORLD, **(world or {})}, **more.pop("model", {})}
    body = {"run": str(tmp_path / "run"), "family": "theworld", "preset": "tiny", "model": model, "data": data, **more}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"train": {"steps": 2, "global_batch": 4}, **body}))
    return path


def config_of(path: Path) -> RunConfig:
    return open_config(path).config


def roll_out(path: Path, out: Path, predictor: str, *more: str) -> int:
    return cli.main(["data", "rollout", str(path), str(out), "--with", predictor, "--dtype", "float32", "--per-part", "4", *more])


@pytest.fixture(scope="module")
def assets(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("assets")
    family.prepare(Config(base="tiny"), folder, lambda: ["Which is faster, the red ring or the blue star?"] * 50)
    return folder


def encoded(path: Path, assets: Path, change: Any = None):
    """(model, batch) of the configuration's first four samples, each changed first."""
    config = config_of(path)
    section = Config.model_validate(config.model)
    inputs = family.Inputs(section, assets, max_tokens=None, pad="longest", train=True)
    (source,) = open_data(config, config.data.train, "train")
    samples = [source[i] if change is None else change(source[i]) for i in range(4)]
    return family.build(section, assets, seed=seed_of(config)), inputs.collate([inputs.encode(sample, 0) for sample in samples])


@pytest.mark.parametrize(
    ("predictor", "source", "count"),
    [
        ("scenes", "tiny", 5),
        ("copy", "tiny", 5),
        ("scenes", "tiny:wan2.2", 5),
        ("scenes", "tiny:cosmos1", 9),
        ("scenes", "tiny:dinov3", 2),
        ("copy", "tiny:dinov3-convnext", 2),
        ("scenes", "tiny:vjepa2", 4),
        ("copy", "tiny:vjepa2", 4),
    ],
)
def test_a_stored_future_gives_the_loss_of_its_frames(tmp_path, assets, predictor, source, count):
    options, world = {**SCENES, "frames": count}, {"source": source}
    path = config_file(tmp_path, entry={"options": options}, world=world)
    assert roll_out(path, tmp_path / "out", predictor) == 0

    def clip(sample):
        return {**sample, "frames": sample["frames"] if predictor == "scenes" else sample["images"] * count}

    model, frames = encoded(path, assets, clip)
    _, stored = encoded(config_file(tmp_path, entry={"options": options, "rollout": str(tmp_path / "out")}, world=world), assets)
    assert stored["latent_counts"] == [2] * 4 and not len(stored["frames"]) and torch.equal(frames["ids"], stored["ids"])
    model.world.requires_grad_(False)
    losses = [model(batch)["loss"] for batch in (frames, stored)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)  # the encoder's sums depend on the batch
    losses[1].backward()
    assert bool((model.projector.steps.grad[:2] != 0).all()), "positions of both latent frames learn"


def test_more_frames_than_a_scene_shows_are_drawn(tmp_path):
    path = config_file(tmp_path, world={"steps": 2})
    assert roll_out(path, tmp_path / "out", "scenes") == 0
    still = config_file(tmp_path, world={"steps": 2}, entry={"options": {**SCENES, "frames": 9}})
    assert roll_out(still, tmp_path / "shown", "scenes") == 0
    parts = (tmp_path / name / "part-00000.safetensors" for name in ("out", "shown"))
    ours, theirs = (rollouts.read_tensor(rollouts.Rollout(str(part), "1", 2, {})) for part in parts)
    assert ours.shape == (3, 4, 4, 4) and ours.shape == theirs.shape


def test_what_was_stopped_is_finished_and_equal_to_one_go(tmp_path, monkeypatch):
    path = config_file(tmp_path)
    assert roll_out(path, tmp_path / "once", "copy") == 0
    written, real = [], files.write_whole

    def dies(target, body, **more):
        written.append(target.name)
        if target.name == "part-00001.safetensors":
            target.with_name(f".{target.name}.tmp").write_bytes(body[:100])
            raise KeyboardInterrupt
        real(target, body, **more)

    monkeypatch.setattr(files, "write_whole", dies)
    with pytest.raises(KeyboardInterrupt):
        rollout_of(path, tmp_path / "twice")
    with pytest.raises(PlaitError, match=r"lacks 2 of 3 parts, the first part-00001.safetensors: the same"):
        opened(tmp_path, tmp_path / "twice")
    monkeypatch.setattr(files, "write_whole", lambda target, body, **more: written.append(target.name) or real(target, body, **more))
    written.clear()
    assert roll_out(path, tmp_path / "twice", "copy") == 0
    assert written == ["part-00001.safetensors", "part-00002.safetensors"]
    for file in (tmp_path / "once").iterdir():
        assert file.read_bytes() == (tmp_path / "twice" / file.name).read_bytes()


@pytest.mark.parametrize("damage", ["cut", "header", "values"])
def test_a_damaged_part_is_no_sample_and_is_made_again(tmp_path, capsys, damage):
    path, out = config_file(tmp_path), tmp_path / "out"
    assert roll_out(path, out, "copy") == 0
    part = out / "part-00001.safetensors"
    whole = part.read_bytes()
    end = bytearray(whole)
    end[-1] ^= 0x80
    part.write_bytes({"cut": whole[:100], "header": b"x" * len(whole), "values": bytes(end)}[damage])
    source = opened(tmp_path, out)
    told: dict[int, str] = {}
    for i in range(10):
        try:
            rollouts.read_tensor(source[i]["rollout"])
        except BadSample as error:
            told[i] = str(error)
    assert len(told) == (1 if damage == "values" else 4) and set(told) <= {4, 5, 6, 7}
    assert all(str(part) in reason and "make it again" in reason for reason in told.values())
    capsys.readouterr()
    assert roll_out(path, out, "copy") == 0
    shown = capsys.readouterr()
    assert f"{part} is damaged: made again" in shown.err and "futures of 4 samples written" in shown.out
    assert part.read_bytes() == whole


def rollout_of(path: Path, out: Path) -> None:
    from plait.commands.actions.rollout_data import RolloutOptions, roll_out

    roll_out(str(path), out, RolloutOptions("copy", dtype="float32", per_part=4))


def opened(tmp_path: Path, out: Path, **more: Any):
    config = config_of(config_file(tmp_path, entry={"rollout": str(out), **more.pop("entry", {})}, **more))
    return open_data(config, config.data.train, "train")[0]


def test_futures_of_other_data_encoders_or_settings_are_refused(tmp_path, capsys, assets):
    path, out = config_file(tmp_path), tmp_path / "out"
    assert roll_out(path, out, "copy") == 0
    capsys.readouterr()
    assert roll_out(path, out, "scenes") == 2
    assert "was begun with another with: {'name': 'copy'}, now {'name': 'scenes'}; name a new folder" in capsys.readouterr().err
    for more, message in (
        ({"entry": {"limit": 9}}, "has futures of scenes train, 10 samples, not of this data (9 samples)"),
        ({"seed": 1}, "not of this data"),
        ({"entry": {"rollout": str(tmp_path)}}, "has no rollout.json: it is no folder of futures"),
    ):
        with pytest.raises(PlaitError) as error:
            opened(tmp_path, out, **more)
        assert message in str(error.value) and "\n" not in str(error.value)
    for world, model, message in (
        ({"steps": 2}, {}, "has 1 latent frames after the first, and model.world.steps is 2: lower it"),
        ({"image_size": 40}, {}, "is made with an encoder of image_size 32, and that of model.world is 40"),
        (
            {},
            {"tiny": {"world_base": 4}},
            "is made with an encoder of sizes {'world_base': 8, 'world_channels': 4}, and that of model.world",
        ),
        ({}, {"augment": {"flip": True}}, "model.augment changes pictures, and stored futures"),
    ):
        with pytest.raises(PlaitError) as error:
            encoded(config_file(tmp_path, entry={"rollout": str(out)}, world=world, model=model), assets)
        assert message in str(error.value)


def test_single_pictures_use_futures_or_are_refused(tmp_path, assets):
    still = {"options": {**SCENES, "tasks": ["colour"], "frames": 0}}
    with pytest.raises(BadSample, match=r"it has a single picture, and model.world.steps 1 takes 1 \+ 4 k frames.*`plait data rollout`"):
        encoded(config_file(tmp_path, entry=still), assets)
    with pytest.raises(BadSample, match=r"it has a clip of 4 frames, and model.world.steps 1 takes"):
        encoded(config_file(tmp_path, entry={"options": {**SCENES, "tasks": ["colour"], "frames": 4}}), assets)
    assert roll_out(config_file(tmp_path, entry=still), tmp_path / "out", "scenes") == 0
    _, batch = encoded(config_file(tmp_path, entry={**still, "rollout": str(tmp_path / "out")}), assets)
    assert batch["latent_counts"] == [2] * 4


def test_a_run_trains_on_futures_and_refuses_an_encoder_that_trains(tmp_path, capsys):
    path = config_file(tmp_path)
    assert roll_out(path, tmp_path / "out", "scenes") == 0
    path = config_file(tmp_path, entry={"rollout": str(tmp_path / "out")}, trainable=["projector"])
    assert cli.main(["train", str(path)]) == 0
    capsys.readouterr()
    assert cli.main(["train", str(path), f"--run={tmp_path / 'other'}", "--trainable=[projector, world]"]) != 0
    assert "the world encoder trains, and stored futures (`rollout`) stay as it was" in capsys.readouterr().err


def test_a_run_is_measured_on_other_futures_of_its_held_out_data(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scenes = {"source": "scenes", "limit": 8, "options": SCENES}
    path = config_file(tmp_path, data={"train": [scenes], "validation": [scenes], "workers": 0})
    for predictor in ("scenes", "copy"):
        assert roll_out(path, tmp_path / predictor, predictor, "--split=validation") == 0
    assert cli.main(["train", str(path), "--model.world.steps=1"]) == 0
    losses = {}
    for name, given in {"own": [], "scenes": ["--rollout=scenes"], "copy": ["--rollout=copy"]}.items():
        assert cli.main(["eval", "run", "--bench=loss", *given, f"--out=out-{name}"]) == 0
        losses[name] = json.loads((tmp_path / f"out-{name}/metrics.json").read_text())["figures"]["loss"]
    assert losses["scenes"] == losses["own"] != losses["copy"]  # the clip's frames are those of the scene's motion
    capsys.readouterr()
    for given, line in (
        ("scenes,copy", "--rollout names 2 folders for 1 sources of data: name one for each, in order"),
        ("gone", "--rollout: there is no folder gone; `plait data rollout` makes one"),
    ):
        assert cli.main(["eval", "run", "--bench=loss", f"--rollout={given}"]) == 2
        assert line in capsys.readouterr().err


def test_samples_without_a_future_are_counted_by_reason_and_none_at_all_is_refused(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(encoded_picture())
    for name, kept in (("some", 2), ("none", 0)):
        rows = [{"text": "which?", "caption": f"no {i}"} | ({"image": "a.png"} if i < kept else {}) for i in range(7)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": [{"source": "jsonl", "path": str(tmp_path / "some.jsonl")}], "workers": 0}
    told = f"{tmp_path / 'out'}: futures of {{}} samples written, 5 of 7 samples without one: it has no picture to begin with (5)"
    for written in (2, 0):  # the second time all is there
        assert roll_out(config_file(tmp_path, data=data), tmp_path / "out", "copy") == 0
        assert told.format(written) in capsys.readouterr().out
    data["train"][0]["path"] = str(tmp_path / "none.jsonl")
    assert roll_out(config_file(tmp_path, data=data), tmp_path / "nothing", "copy") == 2
    assert "none of 7 samples has a future" in (err := capsys.readouterr().err) and "it has no picture to begin with (7); mend" in err
    assert not list((tmp_path / "nothing").iterdir())


def encoded_picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (9, 99, 199)).save(file, "PNG")
    return file.getvalue()


def test_futures_that_no_world_step_sees_are_refused(tmp_path, capsys):
    assert roll_out(config_file(tmp_path), tmp_path / "out", "copy") == 0
    path = config_file(tmp_path, entry={"rollout": str(tmp_path / "out")})
    assert cli.main(["train", str(path), "--model.world.steps=0"]) == 2
    err = capsys.readouterr().err
    assert "rollout changes nothing: model.world.steps is 0, so that no future is seen: leave it out, or set the steps" in err
    assert cli.main(["train", str(path)]) == 0


@pytest.mark.parametrize(("family", "reason"), [
    ("theworld", "model.world is off, so that this model sees no futures"),
    ("molmo", "family 'molmo' learns from no futures"),
    ("nanodit", "family 'nanodit' learns from no futures"),
])  # fmt: skip
def test_futures_that_a_model_does_not_see_are_refused(tmp_path, capsys, family, reason):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RUN.replace("FAMILY", family) + TINY[family])
    off = ["--model.world=off"] if family == "theworld" else []
    data = json.dumps([{"source": "scenes", "limit": 4, "rollout": str(tmp_path / "futures")}])
    for words in ([f"--data.train={data}"], [f"--data.validation={data}"], [f"--evaluate=[{{bench: loss, data: {data}}}]"]):
        assert cli.main(["train", str(recipe), f"--run={tmp_path / 'run'}", *off, *words]) == 2
        line = f"rollout: {tmp_path / 'futures'} changes nothing: {reason}; leave `rollout` out of the data\n"
        assert capsys.readouterr().err.endswith(line)


def test_wrong_arguments_are_one_clear_line(tmp_path, capsys):
    path = config_file(tmp_path)
    for arguments, message in (
        ([str(path), str(tmp_path / "o"), "--with", "copy", "--number=3"], "--number=3: data.train has 1 entries, counted from 0"),
        (
            [str(path), str(tmp_path / "o"), "--with", "copy", "--model.world.steps=0"],
            "a future has k latent frames after the first, and k is 0: set",
        ),
        ([str(path), str(tmp_path / "o"), "--with", "copy", "--model.world=off"], "model.world is off: there is no encoder"),
        (["scenes", str(tmp_path / "o"), "--with", "copy"], "--model: name the configuration whose world encoder is to see"),
        ([str(path), str(tmp_path / "o"), "--with", "copy", f"--model={path}"], "own world encoder counts; give one of the two"),
        (
            [str(path), str(tmp_path / "o"), "--with", "copy", "--guidance=3"],
            "--guidance changes nothing: only a video world model takes it; leave it out",
        ),
        ([str(path), str(tmp_path / "o"), "--with", "scenes", "--revision=v2"], "--revision changes nothing: only a video world model"),
        (
            ["scenes", str(tmp_path / "o"), "--with", "copy", f"--model={path}", "--number=1"],
            "--number changes nothing: the source is no configuration, which has several; leave it out",
        ),
        ([str(path), str(tmp_path), "--with", "copy"], "is not empty and has no rollout.json: name a new folder"),
        ([str(path), str(tmp_path / "o"), "--with", str(tmp_path)], "has no model_index.json: it is no pipeline of diffusers"),
    ):
        assert cli.main(["data", "rollout", *arguments]) == 2
        err = capsys.readouterr().err
        assert message in err, err


def test_a_predictor_that_the_hub_cannot_give_is_one_clear_line(tmp_path, capsys, monkeypatch):
    class Unreached:
        def model_info(self, *_, **__):
            raise type("ConnectError", (Exception,), {})("[Errno -2] Name or service not known")

    monkeypatch.setattr(cosmos, "HfApi", Unreached)
    assert cli.main(["data", "rollout", str(config_file(tmp_path)), str(tmp_path / "o"), "--with=owner/model"]) == 2
    err = capsys.readouterr().err
    assert "--with=owner/model: it is neither a folder nor a repository: it is not in the cache, and" in err and err.count("\n") == 1


class Guardrail(torch.nn.Module):
    """In place of NVIDIA's, whose weights are large; refuses one word."""

    dtype, device = torch.float32, torch.device("cpu")

    def to(self, *args: Any, **more: Any):
        return self

    def check_text_safety(self, prompt: str) -> bool:
        return prompt != "refused"

    def check_video_safety(self, frames: Any) -> Any:
        raise AssertionError("futures are never decoded")


def transformer(masks: bool = False):
    from diffusers import CosmosTransformer3DModel

    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1, "mlp_ratio": 2, "adaln_lora_dim": 4}
    shape = {"max_size": (4, 32, 32), "patch_size": (1, 2, 2), "rope_scale": (2.0, 1.0, 1.0), "concat_padding_mask": masks}
    return CosmosTransformer3DModel(in_channels=5, out_channels=4, text_embed_dim=32, extra_pos_embed_type=None, **sizes, **shape)


def tokenizer(kind: type, **more: Any):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {name: i for i, name in enumerate(["<pad>", "</s>", "<unk>", "a", "scene"])}
    fast = Tokenizer(models.WordLevel(words, "<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    return kind(tokenizer_object=fast, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", **more)


def write_pipeline(folder: Path, name: str, vae: Any) -> None:
    """Save a pipeline of tiny random weights, as `save_pretrained` writes the published ones, without a guardrail."""
    import diffusers
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, T5Config, T5EncoderModel

    torch.manual_seed(1)
    if name == "Cosmos2VideoToWorldPipeline":
        text = T5EncoderModel(T5Config(vocab_size=8, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
        words = tokenizer(PreTrainedTokenizerFast)
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
        body = transformer()
    else:
        layers = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
        rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
        eyes = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 32}
        text = Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config={**layers, "vocab_size": 8, "rope_parameters": rope}, vision_config=eyes)
        )
        words = tokenizer(PreTrainedTokenizerFast, chat_template="{% for m in messages %}{{ m['content'][0]['text'] }}{% endfor %}")
        scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
        body = transformer()
    made = getattr(diffusers, name)(
        text_encoder=text, tokenizer=words, transformer=body, vae=vae, scheduler=scheduler, safety_checker=Guardrail()
    )
    made.register_modules(safety_checker=None)
    made.save_pretrained(folder)


@pytest.fixture
def with_pipeline(tmp_path, monkeypatch):
    """`with_pipeline(name)` gives (configuration whose world encoder is the pipeline's VAE, the pipeline's folder)."""
    from diffusers.pipelines.cosmos import pipeline_cosmos2_5_predict, pipeline_cosmos2_video2world

    from plait.families.theworld import tiny
    from plait.families.theworld.pretrained import wan

    for module in (pipeline_cosmos2_video2world, pipeline_cosmos2_5_predict):
        monkeypatch.setattr(module, "CosmosSafetyChecker", Guardrail)

    def make(name: str) -> tuple[Path, Path]:
        torch.manual_seed(2)
        vae = wan.make(tiny.encoder_settings(Config(base="tiny").tiny, "wan"), 32)
        tiny.measure_latent_statistics(vae, torch.rand(16, 3, 32, 32) * 2 - 1)
        write_pipeline(tmp_path / "pipeline", name, vae)
        return config_file(tmp_path, world={"source": str(tmp_path / "pipeline")}), tmp_path / "pipeline"

    return make


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # a scheduler of diffusers gives NumPy a tensor
@pytest.mark.parametrize("name", cosmos.CLASSES)
def test_video_world_models_predict_latents_of_the_encoder(tmp_path, with_pipeline, assets, capsys, name):
    path, pipeline = with_pipeline(name)
    options = ["--inference-steps=2", "--guidance=1", "--limit=3", "--prompt=a scene"]
    assert roll_out(path, tmp_path / "out", str(pipeline), *options) == 0
    assert "GB of weights (" in (said := capsys.readouterr().out) and "free on cpu" in said
    limited = {"limit": 3, "rollout": str(tmp_path / "out")}
    config = config_of(config_file(tmp_path, entry=limited, world={"source": str(pipeline)}))
    section = Config.model_validate(config.model)
    (source,) = open_data(config, config.data.train, "train")
    inputs = family.Inputs(section, assets, max_tokens=None, pad="longest", train=True)
    latents = [inputs.encode(source[i], 0).latents for i in range(3)]
    assert all(one.shape == (2, 4, 4, 4) and bool(one.isfinite().all()) for one in latents)
    model = family.build(section, assets, seed=0)
    still = config_of(config_file(tmp_path, entry={"limit": 3}, world={"source": str(pipeline), "steps": 0}))
    (pictures,) = open_data(still, still.data.train, "train")
    alone = family.Inputs(Config.model_validate(still.model), assets, max_tokens=None, pad="longest", train=True).encode(pictures[1], 0)
    with torch.no_grad():
        first = model.world(alone.frames[None])[0, :, 0]
    torch.testing.assert_close(latents[1][0], first, atol=1e-5, rtol=1e-4)
    assert not torch.equal(latents[0][1], latents[0][0]) and not torch.equal(latents[0][1], latents[1][1])
    shutil.rmtree(tmp_path / "out")
    path = config_file(tmp_path, world={"source": str(pipeline)})
    assert roll_out(path, tmp_path / "out", str(pipeline), *options) == 0
    assert torch.equal(inputs.encode(source[2], 0).latents, latents[2]), "noise comes from the sample's index"


def test_a_control_has_no_video_world_model_and_its_futures_are_its_own(tmp_path, with_pipeline, assets, capsys):
    _, pipeline = with_pipeline(cosmos.CLASSES[0])
    eye = config_file(tmp_path, world={"source": "tiny:dinov3"})
    assert roll_out(eye, tmp_path / "a", str(pipeline)) == 2
    said = capsys.readouterr().err
    assert "predict latents of their own VAE, an AutoencoderKLWan, and model.world.source is a DINOv3ViTModel: make futures" in said
    assert roll_out(config_file(tmp_path), tmp_path / "b", "nvidia/Cosmos-Predict2.5-2B") == 2
    said = capsys.readouterr().err
    assert "--with=nvidia/Cosmos-Predict2.5-2B has its diffusers folders in another branch: --revision=diffusers/base/post-trained" in said
    assert roll_out(config_file(tmp_path, world={"source": "tiny:dinov3"}), tmp_path / "out", "copy") == 0
    manifest = json.loads((tmp_path / "out" / "rollout.json").read_text())
    assert manifest["encoder"]["class"] == "DINOv3ViTModel"
    other = config_file(tmp_path, entry={"rollout": str(tmp_path / "out")}, world={"source": "tiny:vjepa2"})
    with pytest.raises(PlaitError, match=r"is made with an encoder of source tiny:dinov3, and that of model\.world is tiny:vjepa2: make"):
        encoded(other, assets)


def test_pipelines_that_do_not_fit_are_one_clear_line(tmp_path, with_pipeline, capsys, monkeypatch):
    path, pipeline = with_pipeline(cosmos.CLASSES[0])
    other = config_file(tmp_path)
    assert roll_out(other, tmp_path / "a", str(pipeline)) == 2
    assert "its VAE is not the encoder of model.world.source, whose latents are others" in capsys.readouterr().err
    config_file(tmp_path, world={"source": str(pipeline)})
    assert roll_out(path, tmp_path / "b", str(pipeline), "--prompt=refused", "--inference-steps=2", "--guidance=1") == 2
    assert f"none of 10 samples has a future, so nothing is kept in {tmp_path / 'b'}: " in capsys.readouterr().err
    monkeypatch.setattr(cosmos, "_free_on_host", lambda: 1000)
    assert roll_out(path, tmp_path / "c", str(pipeline)) == 2
    assert "they do not fit; take a larger machine or a smaller model" in capsys.readouterr().err
    index = json.loads((pipeline / "model_index.json").read_text())
    (pipeline / "model_index.json").write_text(json.dumps({**index, "_class_name": "StableDiffusionPipeline"}))
    assert roll_out(path, tmp_path / "d", str(pipeline)) == 2
    assert "a StableDiffusionPipeline does not predict a video from a picture; known: Cosmos2VideoToWorld" in capsys.readouterr().err


def test_a_pipeline_that_needs_torchvision_says_so_where_there_is_none(tmp_path, with_pipeline, capsys, monkeypatch):
    path, pipeline = with_pipeline(cosmos.CLASSES[0])
    shutil.rmtree(pipeline / "transformer")
    transformer(masks=True).save_pretrained(pipeline / "transformer")
    monkeypatch.setattr(cosmos, "is_torchvision_available", lambda: False)
    assert roll_out(path, tmp_path / "out", str(pipeline)) == 2
    assert "its transformer takes torchvision, which is not installed" in capsys.readouterr().err


def test_a_pipeline_without_its_guardrail_says_what_to_install(tmp_path, with_pipeline, capsys, monkeypatch):
    from diffusers.pipelines.cosmos import pipeline_cosmos2_video2world as module

    path, pipeline = with_pipeline(cosmos.CLASSES[0])

    def absent(*_: Any) -> None:
        raise ImportError("`cosmos_guardrail` is not installed.")

    monkeypatch.setattr(module, "CosmosSafetyChecker", absent)
    assert roll_out(path, tmp_path / "out", str(pipeline)) == 2
    assert "`cosmos_guardrail` is not installed." in capsys.readouterr().err and torch.is_grad_enabled()
