"""The black box of a spike: one poisoned sample of 10,000 is named in each family, with text and pictures; other causes are told too."""

import json
import logging

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from plait.assembly.configuration import open_config
from plait.assembly.data import open_training
from plait.data.image_files import decode_rgb
from plait.training import run
from plait.training.spikes.cause import Before, cause_of
from plait.training.spikes.passes import norms_by_module
from tests.data import latent_sets as sets

STEP = 78
WORDS = " ".join(f"wrong{i % 13} text{i % 7}" for i in range(30))
COMMON = """
data: {validation: [], workers: 0}
train: {steps: 80, global_batch: 8, micro_batch: 4}
optim: {lr: 3.0e-3, schedule: {name: constant, warmup_steps: 0, warmup: null}}
evaluate: []
track: {every_steps: 1, tensorboard: false}
guard: {blindness: false}
"""
FAMILIES = {
    "theworld": """
        preset: tiny
        model: {world: {image_size: 16}, tiny: {hidden: 32, layers: 2, heads: 2, kv_heads: 1, head_dim: 16, mlp: 64, image_size: 16,
                image_tokens: 4, vision_hidden: 32, vision_layers: 1, vision_heads: 2, vision_mlp: 64, world_base: 4}}
        trainable: [projector, language]""",
    "molmo": "{preset: debug, trainable: [connector, language]}",
    "nanodit": "model: {depth: 2, hidden: 32, heads: 2, channels: 4, text_dim: 6, image_dim: 5}",
}


def write_texts(folder, poisoned):
    """10,000 questions on pictures of four colours; the poisoned one has a long answer that belongs to nothing."""
    for number in range(4):
        Image.fromarray(np.full((32, 32, 3), 60 * number, np.uint8)).save(folder / f"{number}.png")
    rows = [{"image": f"{i % 4}.png", "question": "Which shade is it?", "answer": f"shade {i % 4}"} for i in range(10_000)]
    if poisoned is not None:
        rows[poisoned]["answer"] = WORDS
    (folder / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"source": "jsonl", "path": str(folder / "set.jsonl"), "template": {"user": "{question}", "assistant": "{answer}"}}


def write_latents(folder, poisoned):
    """10,000 latents; the target of the poisoned one is far too large."""
    root = folder / "set"
    good = sets.members((32, 32), 1)
    latents = [sets.npy(np.random.default_rng(n).standard_normal((4, 4, 4)).astype(np.float16)) for n in range(50)]
    for first in range(0, 10_000, 5000):
        rows = {}
        for i in range(first, first + 5000):
            broken = np.full((4, 4, 4), 300, np.float16)
            rows[f"{i:05d}"] = good | {"vae.npy": sets.npy(broken) if i == poisoned else latents[i % 50]}
        sets.shard(root / "32x32", first // 5000, rows)
    sets.metadata(root)
    return {"source": "latents", "path": str(root)}


WRITE = {"theworld": write_texts, "molmo": write_texts, "nanodit": write_latents}


def config_of(family, folder, entry):
    told = yaml.safe_load(COMMON) | yaml.safe_load(FAMILIES[family]) | {"family": family}
    told["data"]["train"] = [entry]
    (folder / "recipe.yaml").write_text(yaml.dump(told))
    return folder / "recipe.yaml"


@pytest.fixture
def poisoned(request, tmp_path):
    """The recipe of a family whose data has one poisoned sample, in step 78, and the sample's index."""
    family = request.param
    recipe = config_of(family, tmp_path, WRITE[family](tmp_path, None))
    (view,) = open_config(recipe, [f"run={tmp_path / 'run'}"]).stages
    index = open_training(view.config).order(view).ids(STEP - 1)[5].index
    WRITE[family](tmp_path, index)
    return family, recipe, index


@pytest.mark.parametrize(("poisoned", "precision"), [*((name, "fp32") for name in FAMILIES), ("theworld", "bf16")], indirect=["poisoned"])
def test_one_poisoned_sample_in_ten_thousand_is_named_with_what_it_shows(poisoned, tmp_path, precision, caplog):
    family, recipe, index = poisoned
    caplog.set_level(logging.WARNING)
    run.train(open_config(recipe, [f"run={tmp_path / 'run'}", f"train.precision={precision}"]))
    (folder,) = (tmp_path / "run" / "spikes").iterdir()
    assert folder.name == f"step-{STEP:08d}"
    told = json.loads((folder / "spike.json").read_text())
    (sample,) = [row for row in told["samples"] if row["index"] == index]
    assert told["cause"].startswith(f"sample {sample['sample']} (loss ") and sample["sample"].endswith(f":{index}")
    assert [line for line in caplog.messages if f"step {STEP} stands out: " in line and told["cause"] in line]
    assert told["replay"]["precision"] == "fp32"
    assert told["replay"]["loss"] == pytest.approx(told["figures"]["loss"], rel=1e-5 if precision == "fp32" else 0.05)
    if family == "nanodit":
        assert sample["loss"] > 1000 and sample["seen"][1]["size"] == "4x4"
    else:
        assert sample["text"].endswith(WORDS) and WORDS[:40] in sample["seen"][0]
    assert sample["pictures"] and all(decode_rgb((folder / name).read_bytes()).size for row in told["samples"] for name in row["pictures"])
    assert all(len(row["pictures"]) == len(sample["pictures"]) for row in told["samples"])


def rows(*losses, norm=0.1):
    return [{"sample": f"a:{i}", "loss": loss, "gradient_norm": norm * loss} for i, loss in enumerate(losses)]


BEFORE = Before(rows(1.0, 1.2, 1.4, 1.1), {"loss": 1.2, "grad_norm": 0.3}, {"loss": 1.2, "grad_norm": 0.3}, {"a": 0.1, "b": 0.1, "c": 0.2})


def test_a_sample_is_at_fault_whose_loss_is_far_above_all_others():
    assert cause_of(rows(1.0, 38.2, 2.0, 1.1), {}, BEFORE) == (
        "sample a:1 (loss 38.2, the others 1 to 2; gradient norm 3.82, the others 0.1 to 0.2)"
    )
    two = rows(1.0, 38.2, 2.0, 1.1, 1.0, 31.0, 1.2, 1.3)
    assert cause_of(two, {}, BEFORE).startswith("samples a:1, a:5 (loss 38.2 and 31, the others 1 to 2;")


def test_a_sample_is_at_fault_by_its_gradient_alone():
    some = rows(1.0, 1.3, 1.4, 1.1)
    some[2]["gradient_norm"] = 9.0
    assert cause_of(some, {}, BEFORE).startswith("sample a:2 (loss 1.4, the others 1 to 1.3; gradient norm 9, the others 0.1 to 0.13)")


def test_a_single_sample_is_compared_with_those_of_the_step_before():
    assert cause_of(rows(38.2), {}, BEFORE).startswith("sample a:0 (loss 38.2, the others 1 to 1.4;")
    assert cause_of(rows(1.3), {}, BEFORE).startswith("no sample and no module by itself")


def test_the_weights_are_at_fault_where_the_step_before_is_worse_too():
    worse = BEFORE._replace(rows=rows(9.0, 9.5, 8.7, 9.9), now={"loss": 9.2, "grad_norm": 0.3})
    assert cause_of(rows(9.0, 9.1, 10.0, 8.8), {}, worse) == (
        "the weights: the samples of the step before now have a loss of 9.2, and had 1.2 before the last update "
        "(lower optim.lr or train.grad_clip)"
    )


def test_a_module_is_at_fault_whose_gradient_alone_has_risen():
    said = cause_of(rows(1.5, 1.6, 1.7, 1.5), {"a": 0.12, "b": 5.0, "c": 0.2}, BEFORE)
    assert said == "module b (gradient norm 5, of the samples of the step before 0.1: 50 times, a typical module 1.2 times)"
    assert cause_of(rows(1.5, 1.6, 1.7, 1.5), {"a": 1.2, "b": 1.3, "c": 2.0}, BEFORE) == (
        "no sample and no module by itself (losses 1.5 to 1.7; those of the step before 1 to 1.4)"
    )


def test_norms_are_of_all_tensors_of_a_module():
    tensors = {"a.weight": torch.full((2, 2), 2.0), "a.bias": torch.tensor([3.0]), "b": torch.tensor([-4.0])}
    assert norms_by_module(tensors, {"a.weight": "a", "a.bias": "a", "b": "rest"}) == {"a": pytest.approx(5.0), "rest": 4.0}
    assert norms_by_module({}, {}) == {}
