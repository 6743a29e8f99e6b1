"""`plait plan` against the runs that it plans: tiny recipes of all families, on a CPU."""

import json

import pytest
import yaml

from plait import cli
from plait.assembly.configuration import open_config
from plait.engine.checkpoints import checkpoint
from tests.training.planning.reality import measured

PLAIN = """
data:
  train: [{source: scenes, limit: 64, options: {size: [32, 32], objects: [1, 2], tasks: [caption]}}]
  workers: 0
train: {global_batch: 16, epochs: 2}
optim: {lr: 1.0e-3, ema: {decay: 0.9}, schedule: {name: constant, warmup_steps: 0}}
checkpoint: {every_steps: 4, keep: 2, async_save: false}
track: {every_steps: 1, tensorboard: false}
guard: {hang_timeout_s: null, blindness: false}
"""
RECIPES = {
    "theworld": """
        preset: tiny
        adapters: {language: {kind: dora, rank: 8}}
        stages:
          - {name: first, trainable: [projector]}
          - {name: lora, trainable: [language.lora]}
          - {name: second, trainable: [projector, vision, language, world]}""",
    "molmo": "{preset: debug, trainable: [connector, language], train: {micro_batch: 4}}",
    "nanodit": """
        model: {space: pixels, depth: 4, hidden: 128, heads: 4, patch: 4, text: words, text_dim: 32, words: 64, image_dim: 0,
                dropout: {neither: 0.1, text_only: 0.0, image_only: 0.0}}
        optim: {name: muon}
        train: {precision: bf16, residual_dtype: bfloat16}
        trainable: ["*"]""",
}
CHECKPOINTING = {"theworld": "none", "molmo": "full", "nanodit": "selective"}


def merged(low, high):
    return {**low, **{name: merged(low.get(name, {}), value) if isinstance(value, dict) else value for name, value in high.items()}}


@pytest.fixture(params=sorted(RECIPES))
def recipe(request, tmp_path):
    tree = merged(yaml.safe_load(PLAIN), yaml.safe_load(RECIPES[request.param]))
    tree |= {
        "family": request.param,
        "run": str(tmp_path / "run"),
        "distributed": {"activation_checkpointing": CHECKPOINTING[request.param]},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def plan(path, capsys, *options):
    cli.main(["plan", str(path), "--json", *options])
    return json.loads(capsys.readouterr().out)


def test_a_run_takes_what_its_plan_says(recipe, capsys, monkeypatch, tmp_path):
    """Memory: the allocator's peak of a step past the first, whose moments are not there yet. FLOPs: the mean of the run's own count."""
    planned = plan(recipe, capsys)
    real = measured(open_config(recipe), monkeypatch, range(1, 4))
    folders = checkpoint.published(tmp_path / "run")
    for number, stage in enumerate(planned["stages"], start=1):
        rows = [row for row in real.rows if row["stage"] == number]
        assert stage["steps"] == len(rows) == 8
        peak = max(bytes_ for (name, _), bytes_ in real.peak.items() if name == stage["name"])
        assert stage["memory"][0]["peak"] == pytest.approx(peak, rel=0.03)
        flops = sum(row["tflop_per_s"] * 1e12 * 16 / row["samples_per_s"] for row in rows) / len(rows)
        assert stage["flops_per_step"] == pytest.approx(flops, rel=0.02)
        sizes = [sum(file.stat().st_size for file in folder.iterdir()) for folder in folders if f"stage-{number}-" in str(folder)]
        assert stage["checkpoints"]["kept"] == len(sizes)
        assert sizes == pytest.approx([stage["checkpoints"]["size"]] * len(sizes), rel=0.002)
