"""Bytes that a sample brings over the bus to the device, of each family at its published size, beside what it would be in float32.

    python benchmarks/bus.py

A batch of the family's usual shapes, as its data workers make it (nothing is read, trained or downloaded): pictures are uint8 until they
are on the device. Writes benchmarks/results/bus.json.
"""

from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from plait.assembly.configuration import open_config
from plait.families.planning import planner
from plait.files import write_json
from plait.training.planning.meta_model import meta_bundle

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "bus.json"
RECIPES = {"theworld": "theworld/stages", "molmo": "molmo/captioner", "nanodit 28/1024": "nanodit/production"}
SAMPLES = 4


def tensors_of(recipe: str) -> dict[str, list[torch.Tensor]]:
    """The tensors of a batch of `SAMPLES` samples, by its entries."""
    config = open_config(ROOT / "configs" / f"{recipe}.yaml", ["run=/nonexistent"]).config
    family, bundle = planner(config.family), meta_bundle(config, Path("/nonexistent"))
    assert family is not None
    batch: dict[str, Any] = dict(family.assumed_batch(bundle.section, samples=SAMPLES, tokens=config.data.max_tokens, picture=None))
    return {name: [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)] for name, value in batch.items()}


def main() -> None:
    """Print the bytes per sample, and what they are made of."""
    found = {}
    for title, recipe in RECIPES.items():
        entries = tensors_of(recipe)
        each = {name: sum(value.nbytes for value in values) / SAMPLES for name, values in entries.items()}
        wide = sum(value.numel() * max(4, value.itemsize) for values in entries.values() for value in values) / SAMPLES
        total = sum(each.values())
        largest = sorted(each, key=lambda name: -each[name])[:3]
        print(f"{title:16s} {total / 1e6:6.3f} MB a sample ({wide / total:.2f} x in float32): ", end="")
        print(", ".join(f"{name} {each[name] / 1e6:.3f}" for name in largest))
        found[title] = {"bytes": total, "float32_bytes": wide, "entries": each}
    write_json(RESULTS, {"samples": SAMPLES, "families": found})


if __name__ == "__main__":
    main()
