"""The flat JSON dialect: every key, the authors' own files, and what is refused."""

from pathlib import Path

import pytest

from plait.config import reading
from plait.config.dialects import flat_json, table
from plait.config.load import load_config
from plait.config.nodes import Node, leaves
from plait.config.resolved import Resolved, difference, dump
from plait.config.show import render
from plait.config.translation import Dialect, Translation
from plait.data.sources.open import KINDS
from plait.errors import PlaitError
from plait.families.theworld.config import Config

from .conftest import BASE

ROOT = Path(__file__).resolve().parents[2]
AUTHORS = ROOT.parent / "shared" / "dialects"
RECIPES = sorted((ROOT / "configs" / "theworld").glob("*.json"))
NAMES = ["datacomp_production", "multistage_test", "stage1_projection", "stage2_vision", "stage3_language"]
ISSUE_KEYS = [
    "model_name",
    "cosmos_model_name",
    "num_world_steps",
    "max_world_steps",
    "freeze_gemma_vision",
    "freeze_gemma_language",
    "freeze_cosmos_vae",
    "learning_rate",
    "batch_size",
    "gradient_accumulation_steps",
    "num_epochs",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "use_gradient_checkpointing",
    "mixed_precision",
    "output_dir",
    "save_steps",
    "save_total_limit",
    "resume_from_checkpoint",
    "eval_steps",
    "do_eval",
    "logging_steps",
    "log_to_wandb",
    "wandb_project",
    "wandb_run_name",
    "log_to_tensorboard",
    "dataset_name",
    "num_samples",
    "streaming",
    "question_template",
    "max_seq_length",
    "num_workers",
    "push_to_hub",
    "hub_model_id",
    "hub_strategy",
    "device",
    "load_full_cosmos_pipeline",
]
NEGATIVE = "must be greater than or equal to 0, got -1"
SECRET = "looks like a secret, which no file or command line may hold: remove it and set the environment variable"
MIXED = "belongs to the flat dialect, but optim (line 1) is plait's own, and a file speaks one of them: write it in plait's names"


def resolve(path: Path, *overrides: str) -> Resolved:
    return load_config(path, overrides, model_config=lambda family: Config, preset=None, sources=KINDS, dialects=table.dialects())


def author(name: str) -> Path:
    if not AUTHORS.is_dir():
        pytest.skip("the authors' files are not here")
    return AUTHORS / f"{name}.json"


@pytest.mark.parametrize("name", NAMES)
def test_authors_files_load_as_written(name: str) -> None:
    resolved = resolve(author(name))
    written = list(reading.read(author(name)).value)
    assert [row[0] for row in resolved.translation] == written
    assert all(ours is not None or note for _, _, ours, note in resolved.translation)
    assert resolved.config.family == "theworld"


def test_first_stage_means_what_its_author_meant() -> None:
    config = resolve(author("stage1_projection")).config
    assert (config.run, config.trainable, config.from_) == ("./checkpoints/stage1_projection", ["projector"], None)
    assert (config.train.epochs, config.train.global_batch, config.train.micro_batch, config.train.precision) == (1.0, 16, 4, "bf16")
    assert (config.optim.lr, config.optim.betas, config.optim.schedule.name, config.optim.schedule.warmup_steps) == (
        1e-4,
        (0.9, 0.999),
        "linear",
        500,
    )
    assert (config.checkpoint.every_steps, config.checkpoint.keep, config.track.every_steps) == (1000, 5, 100)
    assert [(one.bench, one.every_steps) for one in config.evaluate] == [("loss", 5000)]
    assert (config.data.train[0].split, config.data.validation, config.data.held_out_share) == ("train", "1%", 0.01)
    assert config.model["world"]["source"] == "nvidia/Cosmos-Predict2-2B-Video2World"


def test_later_stages_unfreeze_and_start_from_the_earlier_one() -> None:
    second, third = resolve(author("stage2_vision")).config, resolve(author("stage3_language")).config
    assert (second.trainable, second.from_) == (["projector", "vision"], "your-username/theworld-stage1-projection")
    assert (third.trainable, third.distributed.activation_checkpointing) == (["projector", "vision", "language"], "full")


def test_production_file_names_what_has_no_meaning() -> None:
    resolved = resolve(author("datacomp_production"))
    rows = {key: (ours, note) for key, _, ours, note in resolved.translation}
    assert rows["device"] == ("distributed.device", "the whole model is on one GPU: choose which by CUDA_VISIBLE_DEVICES=1")
    assert rows["load_full_cosmos_pipeline"] == (None, flat_json.NO_MEANING["load_full_cosmos_pipeline"])
    assert [key for key, (ours, _) in rows.items() if ours is None] == [
        "load_full_cosmos_pipeline", "streaming",
    ]  # fmt: skip
    ignored, device = resolved.warnings
    assert "load_full_cosmos_pipeline;" in ignored
    assert device.endswith("device is 'cuda:1': the whole model is on one GPU: choose which by CUDA_VISIBLE_DEVICES=1")
    hub = resolved.config.hub
    assert hub is not None and (hub.push, hub.private) == ("every_save", False) and rows["hub_model_id"] == ("hub.repo", "")


def test_nearly_empty_file_takes_the_original_defaults() -> None:
    resolved = resolve(author("multistage_test"))
    assert (resolved.config.train.epochs, resolved.config.train.global_batch, resolved.config.run) == (3.0, 16, "runs/multistage_test")
    assert resolved.origins["optim.lr"] == "default of the flat dialect"
    assert resolved.origins["data.train.0.limit"].endswith("multistage_test.json:3")


def test_every_key_of_the_dialect_is_known() -> None:
    assert set(ISSUE_KEYS) <= set(flat_json.KEYS)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_load_without_a_warning(path: Path) -> None:
    resolved = resolve(path)
    assert resolved.warnings == []
    source = "datasets" if path.stem == "datacomp_production" else "shards"  # by name: it is a list of links, to be fetched first
    assert (resolved.config.trainable[0], resolved.config.data.train[0].source) == ("projector", source)
    assert resolved.config.model["base"] == ("tiny" if path.stem == "multistage_test" else "google/gemma-3-4b-it")


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ('"num_epochs": 0.5', "train.epochs", 0.5),
        ('"num_epochs": 9, "max_steps": 50', "train.steps", 50),
        ('"max_steps": 50', "optim.schedule.warmup_steps", 5),
        ('"mixed_precision": "no"', "train.precision", "fp32"),
        ('"mixed_precision": "fp16"', "train.precision", "fp16"),
        ('"max_grad_norm": 0', "train.grad_clip", None),
        ('"device": "cpu"', "distributed.device", "cpu"),
        ('"max_seq_length": 512', "data.max_tokens", 512),
        ('"num_workers": 0', "data.workers", 0),
        ('"question_template": "Is {it}?"', "data.train.0.template.user", "Is {{it}}?"),
        ('"resume_from_checkpoint": true', "from", None),
        ('"log_to_tensorboard": false', "track.tensorboard", False),
        ('"save_total_limit": null', "checkpoint.keep", 0),
        ('"freeze_cosmos_vae": false', "trainable.1", "world"),
        ('"batch_size": 2, "gradient_accumulation_steps": 3', "train.global_batch", 6),
        ('"do_eval": true, "eval_batch_size": 9', "evaluate.0.batch", 9),
        ('"do_eval": true, "dataset_name": "./x/*.tar"', "data.validation", "1%"),
        ('"do_eval": true, "dataset_name": "scenes"', "data.validation.0.split", "validation"),
        ('"lr_scheduler_type": "cosine"', "optim.schedule.name", "cosine"),
        ('"lr_scheduler_type": "constant_with_warmup"', "optim.schedule.name", "constant"),
        ('"do_eval": true, "eval_dataset_path": "./held/*.tar"', "data.validation.0.path", "./held/*.tar"),
    ],
)
def test_keys_translate(load, text: str, path: str, value: object) -> None:
    named = "" if "dataset_name" in text else '"dataset_name": "some/set", '
    dumped = load("{" + named + text + "}", name="x.json").config
    wanted = str(Path(str(value)).absolute()) if path.endswith(".path") else value  # relative to the working directory, as in the original
    assert dict(leaves(dump(dumped)))[tuple(int(step) if step.isdigit() else step for step in path.split("."))] == wanted


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("datacomp", {"source": "datasets", "name": "mlfoundations/datacomp_small", "split": "train"}),
        ("me/mine", {"source": "datasets", "name": "me/mine", "split": "train"}),
        ("./shards/{000..009}.tar", {"source": "shards", "path": "./shards/{000..009}.tar"}),
        ("./rows.jsonl", {"source": "jsonl", "path": "./rows.jsonl"}),
        ("./pictures", {"source": "folder", "path": "./pictures"}),
        ("scenes", {"source": "scenes", "split": "train"}),
    ],
)
def test_dataset_names_become_sources(load, name: str, source: dict[str, str]) -> None:
    config = load(f'{{"dataset_name": "{name}"}}', name="x.json").config.data.train[0]
    source |= {"path": str(Path(source["path"]).absolute())} if "path" in source else {}
    assert {key: value for key in ("source", "path", "name", "split") if (value := getattr(config, key))} == source


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"lerning_rate": 1, "batch_size": 4}', "x.json:1: lerning_rate is not a key: did you mean learning_rate?"),
        ('{"dataset_name": "x",\n"learning_rate": "fast"}', "x.json:2: learning_rate must be a number, got 'fast'"),
        ('{"dataset_name": "x",\n"do_eval": 1}', "x.json:2: do_eval must be true or false, got 1"),
        ('{"batch_size": -4}', "x.json:1: batch_size must be 1 or more, got -4"),
        ('{"dataset_name": "x", "warmup_steps": -1}', f"x.json:1: warmup_steps (optim.schedule.warmup_steps) {NEGATIVE}"),
        ('{"mixed_precision": "fp8"}', "x.json:1: mixed_precision must be 'bf16', 'fp16' or 'no', got 'fp8'"),
        (
            '{"lr_scheduler_type": "polynomial"}',
            "x.json:1: lr_scheduler_type must be 'linear', 'cosine', 'constant_with_warmup' or 'inverse_sqrt', got 'polynomial'",
        ),
        ('{"device": "tpu"}', "x.json:1: device must be 'cuda', 'cpu' or 'auto', got 'tpu'"),
        ('{"log_to_wandb": true}', "x.json:1: log_to_wandb is true, but wandb_project is missing: name the project"),
        ('{"num_epochs": 0.5}', "x.json: data.train names no source: for example data.train=[{source: scenes}]"),
        ('{"hf_token": "abc", "seed": 1}', f"x.json:1: hf_token {SECRET} HF_TOKEN"),
        ('{"optim": {},\n"dataset_name": "x"}', f"x.json:2: dataset_name {MIXED}"),
    ],
)  # fmt: skip
def test_wrong_flat_file_gives_one_line(load, text: str, message: str) -> None:
    with pytest.raises(PlaitError) as caught:
        load(text, name="x.json")
    assert str(caught.value) == message


def test_their_keys_and_ours_both_override_a_flat_file(load) -> None:
    resolved = load('{"dataset_name": "x", "num_epochs": 3}', "--num_epochs=0.5", "--optim.lr=1e-3", "--output_dir=007", name="x.json")
    assert (resolved.config.train.epochs, resolved.config.optim.lr, resolved.config.run) == (0.5, 1e-3, "007")
    assert resolved.origins["train.epochs"] == "command line"
    with pytest.raises(PlaitError, match=r"^command line: learning_rat is not a key: did you mean learning_rate\?$"):
        load('{"dataset_name": "x"}', "--learning_rat=1", name="x.json")


def test_translated_file_becomes_plaits_own(load) -> None:
    before = load('{"dataset_name": "x", "do_eval": true}', name="x.json")
    after = load(before.yaml)
    assert difference(before, after) == []
    assert after.translation == []


def test_render_sets_their_keys_beside_ours(load) -> None:
    text = render(load('{"dataset_name": "x", "learning_rate": 3e-4, "streaming": true}', name="x.json"))
    assert "learning_rate = 0.0003  optim.lr = 0.0003" in text
    row = next(line for line in text.splitlines() if line.startswith("streaming = true"))
    assert row.split("  ", 1)[1].split(maxsplit=1) == ["-", flat_json.NO_MEANING["streaming"]]
    assert text.splitlines()[-1] == "warning: x.json: without meaning here: streaming; `plait config x.json` says why"


def test_another_dialect_is_a_row_of_the_table(load, monkeypatch: pytest.MonkeyPatch) -> None:
    def translate(tree, overrides, path, own) -> Translation:
        seed = Node(5, "x.yaml", 1, "their_seed")
        return Translation(Node({**tree.value["ours"].value, "seed": seed}, "x.yaml", 1), overrides, [("their_seed", 5, "seed", "")])

    monkeypatch.setattr(table, "SHIPPED", (Dialect("toy", lambda tree, own: "ours" in tree.value, translate), *table.SHIPPED))
    resolved = load("ours:\n  " + BASE.replace("\n", "\n  "))
    assert (resolved.config.seed, resolved.origins["seed"], resolved.config.train.steps) == (5, "x.yaml:1", 100)


def hub_of(tmp_path: Path, text: str) -> Resolved:
    path = tmp_path / "x.json"
    path.write_text('{"model_name": "tiny", "dataset_name": "scenes", "max_steps": 1, "output_dir": "runs/mine"' + text + "}")
    return resolve(path)


@pytest.mark.parametrize(
    ("text", "hub"),
    [
        ("", None),
        (', "push_to_hub": false, "hub_model_id": "me/x"', None),
        (', "push_to_hub": true', ("mine", "every_save", False)),
        (', "push_to_hub": true, "hub_model_id": "me/x", "hub_strategy": "end"', ("me/x", "end", False)),
        (', "push_to_hub": true, "hub_strategy": "checkpoint", "hub_private_repo": true', ("mine", "every_save", True)),
        (', "push_to_hub": true, "hub_strategy": null, "hub_model_id": null', ("mine", "every_save", False)),
    ],
)
def test_pushes_to_the_hub_mean_what_transformers_means(tmp_path: Path, text: str, hub: tuple[str, str, bool] | None) -> None:
    found = hub_of(tmp_path, text).config.hub
    assert (found and (found.repo, found.push, found.private)) == hub


def test_a_strategy_that_there_is_not_is_one_line_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(PlaitError, match="must be 'every_save', 'end', 'checkpoint' or 'all_checkpoints', got 'sometimes'"):
        hub_of(tmp_path, ', "push_to_hub": true, "hub_strategy": "sometimes"')
