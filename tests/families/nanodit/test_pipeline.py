"""`plait export` of nanodit: diffusers draws the pictures of `plait generate` from the same seeds, in a process without plait."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from plait import cli
from plait.errors import PlaitError
from plait.families.nanodit.config import Sampling
from plait.families.nanodit.export import checks, code, write
from plait.families.nanodit.export.pipeline_plait_nanodit import PlaitNanoDiTPipeline
from plait.families.nanodit.export.transformer_plait_nanodit import PlaitNanoDiTTransformer
from plait.families.nanodit.network.conditions import Conditions
from plait.families.nanodit.sampler import Request, draw
from plait.keys import key
from tests.encoder_folders import write_dino, write_t5, write_vae

SHARDED = "data shard scenes {folder}/shards --limit=12 --buckets={size} --options.tasks=[caption] --options.size=[32,32]"
RECIPE = """
family: nanodit
model: {{depth: 1, hidden: 16, heads: 2, {model}}}
data: {{train: [{{source: {source}}}], validation: [], workers: 0, {data}}}
train: {{steps: 4, global_batch: 4, precision: {precision}}}
optim: {{lr: 0.05, ema: {{decay: 0.5, post_hoc: true}}, schedule: {{name: constant, warmup_steps: 0}}}}
checkpoint: {{every_steps: 2}}
track: {{tensorboard: false}}
"""
LATENTS = "latents, path: {folder}/shards"
RUNS = {
    "tiny": {
        "encoders": {"latents": "tiny:8x64", "texts": "tiny", "images": "tiny"},
        "model": "channels: 64, patch: 1, text_dim: 64, image_dim: 64, prediction: x, sampling: {steps: 3, guidance: joint, solver: heun}",
        "size": "32x32,48x32",
    },
    "pretrained": {
        "encoders": {"latents": "{folder}/vae", "texts": "{folder}/t5", "images": "{folder}/dino"},
        "model": "channels: 4, text_dim: 16, image_dim: 32, sampling: {steps: 3, interval: [0.1, 0.9], grid: quadratic, shift: 2}",
        "size": "16x16",
    },
    "words": {
        "source": "scenes, limit: 8, options: {size: [32, 32], tasks: [caption]}",
        "model": "space: pixels, patch: 8, text: words, text_dim: 16, words: 64, image_dim: 0, image_size: 32, sampling: {steps: 2}",
        "precision": "bf16",
        "data": "max_tokens: 3",
    },
}
ASKED = {
    "tiny": [{"prompt": ["a red circle", ""], "image": "ref.jpg", "count": 2, "seed": 5}, {"prompt": "a cat", "width": 48, "height": 32}],
    "pretrained": [{"prompt": ["a red dog", "a cat left of a blue dog"], "image": "ref.jpg", "count": 9}, {"prompt": "", "solver": "heun"}],
    "words": [{"prompt": "a large red circle and more", "count": 3, "text_scale": 5.0, "num_inference_steps": 4}],
}
PROGRAM = """
import json, sys
sys.modules["plait"] = None  # an import of it fails
import numpy as np
from diffusers import DiffusionPipeline
for name, folder, asked, out in json.loads(sys.argv[1]):
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    for number, options in enumerate(asked):
        options["num_images_per_prompt"] = options.pop("count", 1)
        np.save(f"{out}/{name}-{number}.npy", np.stack([np.array(image) for image in pipeline(**options).images]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("pipeline")
    for name, written in {"vae": write_vae, "t5": write_t5, "dino": write_dino}.items():
        written(place / name)
    noise = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((260, 180)).save(place / "ref.jpg")  # of four times the largest picture: decoded at a part of its size
    return place


@pytest.fixture(scope="module")
def exports(folder):
    """Runs of each kind of RUNS, and the folders they are exported to: {name: (run, export)}."""
    made = {}
    for name, recipe in RUNS.items():
        place = folder / name
        place.mkdir()
        model, source = recipe["model"], recipe.get("source", LATENTS)
        if "encoders" in recipe:
            encoders = [f"--{kind}={encoder.format(folder=folder)}" for kind, encoder in recipe["encoders"].items()]
            assert cli.main([*SHARDED.format(folder=place, size=recipe["size"]).split(), *encoders]) == 0
            model += f", metadata: {place}/shards"
        values = {"precision": recipe.get("precision", "fp32"), "data": recipe.get("data", "")}
        (place / "a.yaml").write_text(RECIPE.format(model=model, source=source.replace("{folder}", str(place)), **values))
        assert cli.main(["train", str(place / "a.yaml"), f"--run={place / 'run'}"]) == 0
        assert cli.main(["export", str(place / "run"), str(place / "out")]) == 0
        made[name] = place / "run", place / "out"
    return made


@pytest.fixture(scope="module")
def drawn_elsewhere(exports, folder):
    """The folder of what diffusers draws, in one process without plait."""
    jobs = []
    for name, (_, out) in exports.items():
        asked = [{**options, **({"image": str(folder / "ref.jpg")} if "image" in options else {})} for options in ASKED[name]]
        jobs.append((name, str(out), asked, str(folder)))
    run_without_plait(folder, PROGRAM, json.dumps(jobs))
    return folder


def run_without_plait(folder, program, *arguments):
    places = {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    command = [sys.executable, "-P", "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env={**os.environ, **places})
    assert done.returncode == 0, done.stderr
    assert "Expected types" not in done.stderr


def generated(run, out, options, folder):
    """The pictures that `plait generate` draws, by prompt and seed."""
    prompts = options["prompt"] if isinstance(options["prompt"], list) else [options["prompt"]]
    names = {"count": "count", "seed": "seed", "solver": "solver", "text_scale": "text_scale", "num_inference_steps": "steps"}
    words = [f"--{names[name]}={options[name]}" for name in names if name in options]
    words += [f"--image={folder / options['image']}"] if "image" in options else []
    words += [f"--size={options['width']}x{options['height']}"] if "width" in options else []
    pictures = []
    for number, prompt in enumerate(prompts):  # in folders of their own, as files are named by the first words
        assert cli.main(["generate", str(run), *(f"--prompt={text}" for text in prompts), *words, "--out", str(out / str(number))]) == 0
        files = [Image.open(path) for path in (out / str(number)).glob("*.png") if not path.name.startswith("grid")]
        told = [(json.loads(file.text["plait"]), np.array(file)) for file in files]
        own = sorted((settings["seed"], picture.tobytes(), picture) for settings, picture in told if settings["prompt"] == prompt)
        pictures += [picture for _, _, picture in own]
    return np.stack(pictures)


@pytest.mark.parametrize(("name", "number"), [(name, number) for name, asked in ASKED.items() for number in range(len(asked))])
def test_diffusers_draws_the_pictures_of_plait_from_the_same_seeds(exports, drawn_elsewhere, tmp_path, name, number):
    expected = generated(exports[name][0], tmp_path, ASKED[name][number], drawn_elsewhere)
    theirs = np.load(drawn_elsewhere / f"{name}-{number}.npy")
    assert np.array_equal(theirs, expected)
    assert expected.std() > 5 and len({picture.tobytes() for picture in expected}) == len(expected)


def test_the_parts_of_an_export_are_those_of_the_libraries(exports):
    index = json.loads((exports["pretrained"][1] / "model_index.json").read_text())
    assert index["vae"] == ["diffusers", "AutoencoderKL"] and index["text_encoder"] == ["transformers", "T5EncoderModel"]
    assert index["image_encoder"] == ["transformers", "DINOv3ViTModel"] and index["tokenizer"][0] == "transformers"
    none = json.loads((exports["words"][1] / "model_index.json").read_text())
    assert none["vae"] == none["text_encoder"] == none["image_encoder"] == [None, None]
    assert (none["settings"]["precision"], none["settings"]["max_tokens"]) == ("bf16", 3)


def test_diffusers_refuses_the_code_of_an_export_unless_it_is_trusted(exports):
    from diffusers import DiffusionPipeline  # here, as it is slow to import

    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(exports["words"][1])


@pytest.mark.parametrize("name", [write.PIPELINE, write.TRANSFORMER])
def test_the_code_of_an_export_imports_nothing_of_plait(name):
    tree = ast.parse(write.code(name))
    imported = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in ast.walk(tree) if is_import(node)}
    allowed = {"torch", "diffusers", "numpy", "PIL", "xxhash"} | sys.stdlib_module_names
    assert {module.partition(".")[0] for module in imported} <= allowed


def is_import(node):
    return isinstance(node, ast.Import | ast.ImportFrom)


def test_files_that_cannot_be_one_are_not_joined(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.py").write_text('"""A."""\n\nrows = 1\n')
    with pytest.raises(AssertionError, match=r"defined twice: \['rows'\]"):
        code.one_file([tmp_path / "a.py", tmp_path / "b.py"])
    (tmp_path / "b.py").write_text('"""B."""\n\nfrom plait import keys\n')
    with pytest.raises(AssertionError, match=r"from plait import keys names what stands nowhere above"):
        code.one_file([tmp_path / "a.py", tmp_path / "b.py"])


def test_an_export_holds_the_weights_that_were_asked_for(exports, tmp_path):
    run = exports["words"][0]
    values = {}
    for number, words in enumerate([[], ["--raw"], ["--ema-length=0.2"]]):
        out = tmp_path / str(number)
        assert cli.main(["export", str(run), str(out), *words]) == 0
        model = PlaitNanoDiTTransformer.from_pretrained(out / "transformer")
        values[number] = model.embed.weight.detach()
    assert cli.main(["ckpt", "ema", str(run), "--length=0.2"]) == 0
    (kept,) = (run / "averages").glob("length-*/weights.safetensors")
    assert torch.equal(values[2], load(kept)["embed.weight"])
    assert not torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2]) and not torch.equal(values[1], values[2])


def load(path: Path):
    from safetensors.torch import load_file

    return load_file(path)


def test_an_export_is_a_start_and_is_asked_as_its_run_is(exports, tmp_path, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, out = exports["tiny"]
    asked = {"prompt": "a red circle", "image": "ref.jpg"}
    assert np.array_equal(generated(out, tmp_path / "a", asked, folder), generated(run, tmp_path / "b", asked, folder))


@pytest.fixture(scope="module")
def pipeline(exports):
    """Of the words that a model learned, opened by the classes here."""
    out = exports["words"][1]
    settings = json.loads((out / "model_index.json").read_text())["settings"]
    made = PlaitNanoDiTPipeline(PlaitNanoDiTTransformer.from_pretrained(out / "transformer"), settings=settings)
    made.set_progress_bar_config(disable=True)
    return made


def test_a_run_without_metadata_is_exported_and_has_no_pictures_to_compare(make, directory, tmp_path):
    config, model, inputs = make(image_dim=64, channels=48, text_dim=64)
    run = {"train": {"precision": "fp32"}}
    lines = write.write_diffusers(model, config, directory, tmp_path / "out", run=run)
    assert "without metadata of the run's shards no encoder is known" in lines[1]
    settings = json.loads((tmp_path / "out/model_index.json").read_text())["settings"]
    opened = PlaitNanoDiTPipeline(PlaitNanoDiTTransformer.from_pretrained(tmp_path / "out/transformer"), settings=settings)
    opened.set_progress_bar_config(disable=True)
    states = [torch.ones(3, 64)]
    drawn = opened("", width=64, height=32, prompt_embeds=states, image_embeds=torch.ones(64), output_type="latent", num_inference_steps=2)
    request = Request(Conditions(states[0], torch.ones(64)), (48, 4, 8), key("generate", 0))
    assert torch.equal(drawn.images[0], draw(model, inputs, [request], Sampling(steps=2))[0])
    with pytest.raises(ValueError, match="this pipeline has no VAE"):
        opened("", width=64, height=32, num_inference_steps=2)
    with pytest.raises(PlaitError, match=r"^--check diffusers: the run does not know the VAE of its latents \(model\.metadata\)"):
        checks["diffusers"].asked(inputs, [])


def test_a_generator_stands_for_its_seed(pipeline):
    by_seed = pipeline("a red circle", seed=7, output_type="latent").images[0]
    generator = torch.Generator().manual_seed(7)
    assert torch.equal(pipeline("a red circle", generator=generator, output_type="latent").images[0], by_seed)
    assert by_seed.shape == (3, 32, 32) and pipeline("a", output_type="np").images[0].dtype == np.uint8


WRONG = {
    "solver is 'rk4': expected euler or heun": {"solver": "rk4"},
    "the size is 32x36: both sides must be multiples of 8 pixels": {"width": 32, "height": 36},
    "width is 32 and height None: give both, in pixels": {"width": 32},
    "this model was trained without reference images": {"image": Image.new("RGB", (8, 8))},
    "output_type is 'pt': expected pil, np or latent": {"output_type": "pt"},
    r"steps 0, interval \[0.0, 1.0\], shift 1.0: expected at least 1, rising in 0..1, above 0": {"num_inference_steps": 0},
}


@pytest.mark.parametrize(("line", "options"), WRONG.items())
def test_what_cannot_be_drawn_is_told_in_one_line(pipeline, line, options):
    with pytest.raises(ValueError, match=line):
        pipeline("a red circle", **options)
