"""What the stages of the full-size recipes hold on one GPU, with activations: the table of docs/planning.md.

    python benchmarks/planning.py [--write]

Nothing is trained and nothing has memory: `plait.training.planning` runs a micro-batch of each stage on tensors of shape and type alone.
Takes minutes on one core. `--write` puts the table into docs/planning.md, between its two marks.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from plait.assembly.configuration import open_config
from plait.training.planning.forecast import StageForecast, StrategyMemory, forecast
from plait.training.planning.hardware import Hardware, gpu_of
from plait.training.planning.meta_model import meta_bundle

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "planning.md"
MARKS = ("<!-- made by benchmarks/planning.py -->\n", "<!-- end -->\n")
NOTES = {"theworld projection": 24, "theworld vision": 40, "theworld language": 60, "theworld world": 84}
"""GB of a stage at a micro-batch of 4, as the notes of theworld's authors guess them."""
RECIPES = (
    ("theworld", "theworld/stages", ["train.micro_batch=4"]),
    ("molmo 7B", "molmo/captioner", ["train.micro_batch=4"]),
    ("molmo 1B (OLMoE, 7B in all)", "molmo/captioner", ["train.micro_batch=4", "model.language=olmoe"]),
    ("nanodit 28/1024", "nanodit/production", ["train.micro_batch=4"]),
)
GB = 1e9


def rows() -> Iterator[tuple[str, StageForecast]]:
    """The name and forecast of each stage on one GPU, with one micro-batch a step."""
    for title, recipe, settings in RECIPES:
        resolved = open_config(ROOT / "configs" / f"{recipe}.yaml", [*settings, "train.global_batch=4", "run=/nonexistent"])
        for stage in forecast(resolved, meta_bundle(resolved.config, Path("/nonexistent")), Hardware(gpu_of("H100"), 1)):
            yield (title if len(resolved.stages) == 1 else f"{title} {stage.view.name}"), stage


def kinds(stage: StageForecast) -> dict[str, StrategyMemory]:
    """Memory by activation checkpointing."""
    return {memory.checkpointing: memory for memory in (stage.chosen, *stage.others)}


def row(title: str, stage: StageForecast) -> str:
    """One row of the table."""
    none, full = (kinds(stage)[kind] for kind in ("none", "full"))
    assert none.step is not None and full.step is not None and none.peak is not None and full.peak is not None and stage.flops is not None
    total = sum(size.total for size in stage.sizes.values())
    tokens = stage.batch.tokens_per_sample if stage.batch is not None else None
    state = none.state
    held = [state.weights, state.gradients + state.moments, state.averages, none.step.logits]
    activations = [none.step.activations, full.step.activations]
    cells = [
        title,
        f"{stage.trained / 1e9:.3f} of {total / 1e9:.2f} B",
        "" if tokens is None else f"{tokens:,.0f}",
        *(f"{value / GB:.2f}" for value in [*held, *activations]),
        *(f"**{memory.peak / GB:.1f}**" for memory in (none, full) if memory.peak is not None),
        str(NOTES.get(title, "")),
        f"{stage.flops / 4 / 1e12:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def table() -> str:
    """The table as Markdown."""
    heads = ["stage", "trained of all", "tokens", "weights", "gradients and moments", "average", "logits"]
    heads += ["activations", "with checkpointing", "peak", "with checkpointing", "the notes", "TFLOP a sample"]
    return "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *(row(*each) for each in rows())]) + "\n"


def written(page: str, made: str) -> str:
    """The page with the table between its marks."""
    before, rest = page.split(MARKS[0])
    return before + MARKS[0] + made + MARKS[1] + rest.split(MARKS[1])[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into docs/planning.md")
    arguments = parser.parse_args()
    made = table()
    if arguments.write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), made), encoding="utf-8")
    print(made, end="")


if __name__ == "__main__":
    main()
