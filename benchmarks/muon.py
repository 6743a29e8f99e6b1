"""Measure Muon against AdamW at equal steps on two tiny recipes: python benchmarks/muon.py [RECIPE OPTIMIZER [RATE ...]], on one core.

Each is trained at several learning rates, by both optimizers from the same weights on the same batches, and its held-out loss is compared.
What is measured is kept in results/muon.json; without arguments the table of it is printed.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml

from plait import files
from plait.assembly.configuration import open_config
from plait.training import run

RESULTS = Path(__file__).resolve().parent / "results" / "muon.json"
COMMON = """
train: {global_batch: 16, grad_clip: 1.0}
data: {workers: 0}
optim: {weight_decay: 0.03, schedule: {name: cosine, warmup: 0.05}}
checkpoint: {every_steps: null, reference: false}
evaluate: [{bench: loss, samples: 128, batch: 64}]
track: {every_steps: 50, tensorboard: false, monitor: false}
guard: {hang_timeout_s: null, blindness: false, spikes: ignore}
"""
RECIPES = {
    "nanodit": """
        family: nanodit
        model: {space: pixels, depth: 3, hidden: 64, heads: 4, patch: 8, image_size: 32, text: words, text_dim: 32, words: 64,
                image_dim: 0, dropout: {neither: 0.1, text_only: 0.0, image_only: 0.0}}
        trainable: ["*"]
        train: {steps: 200}
        data:
          train: [{source: scenes, options: {size: [32, 32], objects: [1, 2], tasks: [caption]}}]
          validation: [{source: scenes, options: {size: [32, 32], objects: [1, 2], tasks: [caption]}}]""",
    "theworld": """
        family: theworld
        preset: tiny
        model:
          tiny: {hidden: 64, layers: 2, heads: 2, mlp: 128, vision_hidden: 64, vision_mlp: 128, patch: 8, world_base: 4,
                 initializer_range: 0.125}
          world: {max_tokens: 1}
        trainable: [projector, vision, language]
        train: {steps: 200}
        data:
          train: [{source: scenes, options: {size: [32, 32], objects: [1, 2], sizes: [large], background: light,
                   tasks: [colour, shape, count]}}]
          validation: [{source: scenes, options: {size: [32, 32], objects: [1, 2], sizes: [large], background: light,
                        tasks: [colour, shape, count]}}]""",
}
RATES = {"nanodit": (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2), "theworld": (2e-3, 4e-3, 8e-3)}
SEEDS = (0, 1)


def merged(low: dict, high: dict) -> dict:
    return {**low, **{name: merged(low.get(name, {}), value) if isinstance(value, dict) else value for name, value in high.items()}}


def measure(recipe: str, name: str, rate: float, seed: int) -> dict[str, float]:
    """Train once; returns the held-out loss, and the processor time of a step."""
    with tempfile.TemporaryDirectory() as folder:
        tree = merged(yaml.safe_load(COMMON), yaml.safe_load(RECIPES[recipe]))
        tree |= {"run": f"{folder}/run", "seed": seed}
        tree["optim"] |= {"name": name, "lr": rate}
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump(tree))
        begun = time.process_time()
        run.train(open_config(path), run.TrainOptions())
        spent = time.process_time() - begun
        rows = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    (held_out,) = [row["eval/loss"] for row in rows if "eval/loss" in row]
    return {"loss": held_out, "ms": 1000 * spent / tree["train"]["steps"]}


def table(found: dict[str, dict[str, float]]) -> str:
    """Return the held-out losses as Markdown, seeds side by side, by recipe and learning rate."""
    lines = ["| recipe | learning rate | AdamW | Muon |", "|---|---|---|---|"]
    for recipe in RECIPES:
        for rate in sorted({float(key.split()[2]) for key in found if key.startswith(recipe)}):
            cells = [
                ", ".join(f"{found[key]['loss']:.4f}" for seed in SEEDS if (key := f"{recipe} {name} {rate:g} {seed}") in found)
                for name in ("adamw", "muon")
            ]
            lines.append(f"| {recipe} | {rate:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    os.environ.setdefault("PLAIT_CACHE", tempfile.mkdtemp())
    torch.set_num_threads(1)
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    if sys.argv[1:]:
        recipe, name, *chosen = sys.argv[1:]
        for rate in map(float, chosen) if chosen else RATES[recipe]:
            for seed in SEEDS:
                found[f"{recipe} {name} {rate:g} {seed}"] = measure(recipe, name, rate, seed)
        files.write_json(RESULTS, dict(sorted(found.items())))
    print(table(found))


if __name__ == "__main__":
    main()
