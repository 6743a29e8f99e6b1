"""What each stage of configs/theworld/stages.yaml trains, at which rate, and what it holds and saves: the table of docs/training_guide.md.

    python benchmarks/guide.py [--write]

Nothing is measured: the model is built on the meta device, which takes no memory, and its parameters are counted. `--write` puts the table
into docs/training_guide.md, between its two marks.
"""

import argparse
from pathlib import Path

import torch

from plait.assembly.configuration import open_config
from plait.engine import optim
from plait.engine.parallel import memory_estimate
from plait.engine.parallel.memory_estimate import Layout, Storage
from plait.families import registry

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "training_guide.md"
MARKS = ("<!-- made by benchmarks/guide.py -->\n", "<!-- end -->\n")
GB = 1e9
SAVED_BYTES = 12  # per value that trains or did: the weight and both moments, float32


def table() -> str:
    """The table as Markdown."""
    resolved = open_config(ROOT / "configs" / "theworld" / "stages.yaml")
    family = registry.load(resolved.config.family)
    with torch.device("meta"):
        model = family.build(family.Config.model_validate(resolved.config.model), None, seed=0)
    rows = ["| stage | trains | of all | rate | ends after | not before | state on one GPU | checkpoint |", "|---" * 8 + "|"]
    ever: set[str] = set()
    for view in resolved.stages:
        config = view.config
        chosen = optim.select(family.components(model), config.trainable, family.never_trained)
        now = {name for part in chosen.values() for name in part}
        ever |= now
        counts = memory_estimate.count_parameters(model, now, ever, family.blocks(model))
        storage = Storage.of(config.train.precision, config.optim.ema is not None)
        held = memory_estimate.memory(counts, Layout("ddp", 1), storage).total / GB
        every = sum(value.numel() for value in model.parameters())  # the decoder too, which stays on the host
        saved = SAVED_BYTES * (counts.trained + counts.paused) / GB
        rule, steps = config.train.plateau, config.train.steps
        assert rule is not None and steps is not None
        cells = [view.name, f"{counts.trained / 1e6:,.1f} M", f"{counts.trained / every:.2%}", f"{config.optim.lr:g}"]
        cells += [f"{steps:,} steps", f"{rule.min_steps:,}", f"{held:.1f} GB", f"{saved:.2f} GB"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def written(page: str, made: str) -> str:
    """The page with the table between its marks."""
    before, rest = page.split(MARKS[0])
    return before + MARKS[0] + made + MARKS[1] + rest.split(MARKS[1])[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into docs/training_guide.md")
    made = table()
    if parser.parse_args().write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), made), encoding="utf-8")
    print(made, end="")


if __name__ == "__main__":
    main()
