"""The guide's four stages as separate runs, chained by `resume_from_checkpoint` through repositories: each loads only what it needs."""

import json
import shutil
from pathlib import Path

import pytest

from plait import cli
from plait.engine.checkpoints import checkpoint, integrity
from plait.families.theworld import family
from plait.families.theworld.config import Config
from tests import hub_server
from tests.data.packing import pack, picture
from tests.hub_server import Repository

from .conftest import TEXTS

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "theworld"
pytestmark = pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument is deprecated:UserWarning")  # diffusers gives it
STAGES = ("stage1_projection", "stage2_vision", "stage3_language", "stage4_world")
TRAINS = (["projector"], ["projector", "vision"], ["projector", "vision", "language"], ["projector", "vision", "language", "world"])
SIZES = {"hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp": 64, "image_size": 16, "image_tokens": 4}
SIZES |= {"vision_hidden": 32, "vision_layers": 1, "vision_heads": 2, "vision_mlp": 64, "world_base": 4}
BASE, COSMOS = "someone/gemma-3-tiny", "someone/cosmos-tiny"
SHORT = ("--max_steps=3", "--warmup_steps=1", "--save_steps=2", "--batch_size=2", "--gradient_accumulation_steps=2", "--num_workers=0")
TINY = (*SHORT, f"--model_name={BASE}", f"--cosmos_model_name={COSMOS}", "--log_to_wandb=false", "--model.world.image_size=16")
GEMMA = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
VAE = {"vae/config.json", "vae/diffusion_pytorch_model.safetensors"}


def files_below(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def published(folder):
    """Tiny parts as their authors publish the large ones: Gemma with other formats of its weights, the whole pipeline around the VAE."""
    config = Config(base="tiny", tiny=SIZES, world={"source": "tiny", "image_size": 16})
    family.prepare(config, folder / "assets", lambda: TEXTS)
    model = family.build(config, folder / "assets", seed=1)
    model.gemma.save_pretrained(folder / "gemma")
    shutil.copy(folder / "assets/tokenizer/tokenizer.json", folder / "gemma/tokenizer.json")
    model.world.vae.save_pretrained(folder / "cosmos/vae")
    others = ("transformer/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "model_index.json", "guardrail/x.pt")
    gemma = files_below(folder / "gemma") | {"pytorch_model.bin": b"x", "README.md": b"x"}
    return {BASE: Repository(gemma), COSMOS: Repository(files_below(folder / "cosmos") | dict.fromkeys(others, b"x"))}


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Train the four files in turn, each on a machine that has nothing; returns {stage: (its run, what it downloaded by repository)}."""
    folder, done = tmp_path_factory.mktemp("guide"), {}
    for name, first, count in (("datacomp", 0, 12), ("datacomp-validation", 50, 6)):
        members = [
            (f"{i:03d}.{kind}", body) for i in range(first, first + count) for kind, body in (("png", picture(i)), ("txt", b"a cat"))
        ]
        (folder / "data" / name).mkdir(parents=True)
        pack(folder / "data" / name / "0.tar", members)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PLAIT_CACHE", str(folder / "cache"))
        repositories = published(folder)
        before = None
        for stage in STAGES:
            with pytest.MonkeyPatch.context() as inner, hub_server.serving(inner, folder / f"machine-{stage}") as hub:
                hub.repositories = {("models", name): repository for name, repository in repositories.items()}
                run = folder / "runs" / stage
                resume = [f"--resume_from_checkpoint={before}"] if before else []
                words = ["train", str(CONFIGS / f"{stage}.json"), f"--output_dir={run}", *TINY, *resume]
                words += ["--dataset_name=./data/datacomp/*.tar", "--eval_dataset_path=./data/datacomp-validation/*.tar"]
                assert cli.main(words) == 0
                done[stage] = (run, downloads(hub))
            before = f"someone/{stage}"
            repositories[before] = Repository(files_below(run))
        yield done


def downloads(hub):
    """{repository: the files whose content was asked for}."""
    given: dict[str, list[str]] = {}
    for method, path, _ in hub.asked:
        if method == "GET" and "/resolve/" in path:
            name, _, rest = path.strip("/").partition("/resolve/")
            given.setdefault(name, []).append(rest.partition("/")[2])
    return given


def newest(run):
    return integrity.locate(checkpoint.published(run)[0])


@pytest.mark.parametrize("number", range(4))
def test_each_stage_trains_its_parts_and_goes_on_from_the_one_before(chain, number):
    run, _ = chain[STAGES[number]]
    saved = newest(run)
    assert (saved.step, saved.manifest["trainable"]) == (3, TRAINS[number])
    if number:
        lineage = json.loads((run / "lineage.json").read_text())
        assert (lineage["kind"], lineage["from"], lineage["step"]) == ("from", f"someone/{STAGES[number - 1]}", 3)
        assert set(newest(chain[STAGES[number - 1]][0]).tensors("weights")) <= set(saved.tensors("weights"))


def once(names):
    """The names, each of which is there once. The configuration has two in a run, and one content: either or both may be asked for."""
    copies = [name for name in names if name.endswith("config.yaml")]
    assert copies and len(set(names)) == len(names)
    return sorted([*(set(names) - set(copies)), "config.yaml"])


@pytest.mark.parametrize("number", range(4))
def test_each_stage_downloads_only_what_it_needs_and_that_once(chain, number):
    given = {name: sorted(names) for name, names in chain[STAGES[number]][1].items()}
    overwritten = number == 3  # stage 3 trained all of Gemma: the weights it began with are not fetched
    assert given[BASE] == sorted(GEMMA - {"model.safetensors"} if overwritten else GEMMA)
    assert given[COSMOS] == sorted(VAE)
    if number:
        before = chain[STAGES[number - 1]][0]
        step = checkpoint.published(before)[0]
        kept = [path.relative_to(before).as_posix() for path in step.iterdir() if path.name not in ("config.yaml", "run-config.yaml")]
        assert once(given[f"someone/{STAGES[number - 1]}"]) == sorted([*kept, "config.yaml"])  # which tells what `model:` changed
    assert len(given) == (3 if number else 2)


def test_the_weights_of_a_stage_are_those_the_next_began_with(chain):
    """A learning rate of 1e-4 or less moves a weight by at most as much a step: others would show."""
    for number in range(1, 4):
        before, after = (newest(chain[STAGES[place]][0]).tensors("weights") for place in (number - 1, number))
        rate = [5e-5, 1e-5, 5e-6][number - 1]
        assert all(
            float((after[name] - value).abs().max()) <= 3.1 * rate * (1 + float(value.abs().max())) for name, value in before.items()
        )


def test_the_rates_of_the_guide_are_those_of_its_files():
    rates = [json.loads(_without_remarks(stage))["learning_rate"] for stage in STAGES]
    assert rates == [1e-4, 5e-5, 1e-5, 5e-6]
    resumes = [json.loads(_without_remarks(stage)).get("resume_from_checkpoint") for stage in STAGES]
    assert resumes == [None, *(f"runs/theworld/{stage}" for stage in STAGES[:3])]


def _without_remarks(stage):
    lines = (CONFIGS / f"{stage}.json").read_text().splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith("//"))


def test_the_four_stages_in_one_file_are_one_run(tmp_path, monkeypatch):
    """configs/theworld/multistage_test.json, with fewer steps of smaller pictures."""
    monkeypatch.setenv("PLAIT_CACHE", str(tmp_path / "cache"))
    for name, first, count in (("train", 0, 12), ("validation", 50, 6)):
        members = [
            (f"{i:03d}.{kind}", body)
            for i in range(first, first + count)
            for kind, body in (("png", picture(i)), ("json", b'{"label": "cat"}'))
        ]
        pack(tmp_path / f"{name}-0.tar", members)
    sizes = [f"--model.tiny.{name}={value}" for name, value in SIZES.items()]
    stages = [f"--stages.{number}.train.steps=2" for number in range(4)]
    words = [
        "train",
        str(CONFIGS / "multistage_test.json"),
        f"--output_dir={tmp_path / 'run'}",
        *SHORT[2:3],
        "--batch_size=2",
        "--num_workers=0",
    ]
    words += [f"--dataset_name={tmp_path}/train-*.tar", f"--eval_dataset_path={tmp_path}/validation-*.tar", "--model.world.image_size=16"]
    assert cli.main([*words, *sizes, *stages, "--warmup_steps=1"]) == 0
    manifests = [checkpoint.read(path).manifest for path in checkpoint.published(tmp_path / "run")]
    ended = {one["stage"]: one["trainable"] for one in manifests if one["state"]["stage_done"]}
    assert [ended[name] for name in ("projection", "vision", "language", "world")] == [*TRAINS]
    assert {one["state"]["step"] for one in manifests if one["state"]["stage_done"]} == {2, 4, 6, 8}
