"""What each stage of the full-size recipes holds and sends per GPU, by strategy, up to 256 GPUs: the table of docs/scaling.md.

    python benchmarks/scaling.py [--write]

Nothing is measured: the models are built on the meta device, which takes no memory, and `plait.engine.parallel.memory_estimate` counts.
`--write` puts the table into docs/scaling.md, between its two marks.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch

from plait.assembly.configuration import open_config
from plait.engine import optim
from plait.engine.parallel import memory_estimate
from plait.engine.parallel.memory_estimate import Layout, ParameterCounts, Storage
from plait.families import registry

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "scaling.md"
MARKS = ("<!-- made by benchmarks/scaling.py -->\n", "<!-- end -->\n")
RECIPES = ("theworld/stages", "molmo/captioner", "nanodit/production")
GPUS = (8, 64, 256)
NODE = 8
GB = 1e9


def stages(recipe: str) -> Iterator[tuple[str, ParameterCounts, Storage]]:
    """Name, counts and bytes per value of each stage of a recipe."""
    path = ROOT / "configs" / f"{recipe}.yaml"
    resolved = open_config(path)
    family = registry.load(resolved.config.family)
    with torch.device("meta"):
        model = family.build(family.Config.model_validate(resolved.config.model), None, seed=0)
    ever: set[str] = set()
    for view in resolved.stages:
        chosen = optim.select(family.components(model), view.config.trainable, family.never_trained)
        now = {name for part in chosen.values() for name in part}
        ever |= now
        yield (
            f"{resolved.config.family} {view.name}",
            memory_estimate.count_parameters(model, now, ever, family.blocks(model)),
            Storage.of(view.config.train.precision, view.config.optim.ema is not None),
        )


def layouts(gpus: int) -> dict[str, Layout]:
    """Each strategy on so many GPUs; hybrid sharding cuts within a node."""
    names = ("ddp", "shard_grad_op", "fsdp")
    return {name: Layout(name, gpus) for name in names} | {"hsdp": Layout("hsdp", gpus, NODE)}  # type: ignore[arg-type]


def cell(weights: ParameterCounts, layout: Layout, storage: Storage) -> str:
    """Memory and what is sent per step, GB."""
    held, sent = memory_estimate.memory(weights, layout, storage), memory_estimate.traffic(weights, layout, storage)
    said = f"{sent.within / GB:.2f} + {sent.between / GB:.2f}" if layout.strategy == "hsdp" else f"{sent.total / GB:.2f}"
    return f"{held.total / GB:.2f} / {said}"


def table() -> str:
    """The table as Markdown."""
    head = [f"| stage | trained of all | strategy | {' | '.join(f'{gpus} GPUs' for gpus in GPUS)} |", "|---" * (3 + len(GPUS)) + "|"]
    rows = []
    for recipe in RECIPES:
        for name, weights, storage in stages(recipe):
            counts = f"{weights.trained / GB:.3f} of {(weights.trained + weights.paused + weights.frozen) / GB:.2f} B"
            for i, strategy in enumerate(layouts(NODE)):
                cells = [cell(weights, layouts(gpus)[strategy], storage) for gpus in GPUS]
                rows.append(f"| {' | ' if i else f'{name} | {counts}'} | `{strategy}` | {' | '.join(cells)} |")
    return "\n".join([*head, *rows]) + "\n"


def written(page: str, made: str) -> str:
    """The page with the table between its marks."""
    before, rest = page.split(MARKS[0])
    return before + MARKS[0] + made + MARKS[1] + rest.split(MARKS[1])[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into docs/scaling.md")
    made = table()
    if parser.parse_args().write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), made), encoding="utf-8")
    print(made, end="")


if __name__ == "__main__":
    main()
