"""What the stages of the full-size recipes hold on one GPU, with activations: the table of docs/planning.md, and what recipes say of it.

    python benchmarks/planning.py [--write] [--stated]

Nothing is trained and nothing has memory: `plait.training.planning` runs a micro-batch of each stage on tensors of shape and type alone.
Takes minutes on one core. `--write` puts the table into docs/planning.md, between its two marks. `--stated` compares the GB that heads of
recipes and sentences of that page state with what `plait plan` gives now, in place of the table; the exit code is 1 where one differs.
"""

import argparse
import functools
import re
import sys
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
PLANNED = {
    "small": ("nanodit/small", "RTX4090", 1, "train", None),
    "medium": ("nanodit/medium", "H100", 1, "train", None),
    "production": ("nanodit/production", "H100", 8, "train", None),
    "captioner": ("molmo/captioner", "H100", 8, "train", None),
    "projection": ("theworld/stages", "H100", 1, "projection", "none"),
    "projection_full": ("theworld/stages", "H100", 1, "projection", "full"),
    "vision": ("theworld/stages", "H100", 1, "vision", "none"),
    "vision_full": ("theworld/stages", "H100", 1, "vision", "full"),
    "language": ("theworld/stages", "H100", 1, "language", "full"),
    "language_of_2": ("theworld/stages", "H100", 2, "language", None),
    "world_of_2": ("theworld/stages", "H100", 2, "world", None),
}
"""By name: recipe, GPU, ranks, stage, and activation checkpointing where it is not the recipe's."""
STATED = {
    "configs/nanodit/small.yaml": ["one 24 GB GPU ({small} GB by `plait plan`)"],
    "configs/nanodit/medium.yaml": ["one 80 GB GPU ({medium} GB by `plait plan`)"],
    "configs/nanodit/production.yaml": ["eight 80 GB GPUs ({production} GB each by `plait plan`)"],
    "configs/molmo/captioner.yaml": ["{captioner} GB each by `plait plan`"],
    "configs/theworld/stages.yaml": [
        "stage 1 takes {projection} GB and stage 2 {vision} on one, {projection_full} and {vision_full} with activation checkpointing",
        "take {language_of_2} and {world_of_2} GB each",
    ],
    "configs/theworld/stage1_projection.json": ["one GPU, bf16; {projection} GB"],
    "configs/theworld/stage2_vision.json": ["one GPU, bf16; {vision} GB, or {vision_full} with activation checkpointing"],
    "configs/theworld/stage3_language.json": ["{language} GB on one GPU", "{language_of_2} GB on each of two with fsdp"],
    "docs/planning.md": [
        "stage 2 then takes {vision} GB and stage 3 {language} with checkpointing",
        "`fsdp` ({language_of_2} and {world_of_2} GB each",
    ],
}
"""By file: sentences of it, with the names above in place of whole GB."""


@functools.cache
def stage_planned(recipe: str, gpu: str, ranks: int, name: str) -> StageForecast:
    """The forecast of a stage of a recipe as it is."""
    resolved = open_config(ROOT / "configs" / f"{recipe}.yaml", ["run=/nonexistent"])
    (stage,) = forecast(resolved, meta_bundle(resolved.config, Path("/nonexistent")), Hardware(gpu_of(gpu), ranks), only=name)
    return stage


def planned_gb(name: str) -> int:
    """The peak of a rank in GB."""
    *which, checkpointing = PLANNED[name]
    stage = stage_planned(*which)
    peak = (stage.chosen if checkpointing is None else kinds(stage)[checkpointing]).peak
    assert peak is not None
    return round(peak / GB)


def stated(file: str) -> Iterator[tuple[str, int]]:
    """The names in a file's sentences, and the GB that stand there. Raises ValueError where a sentence is not in the file."""
    text = " ".join(re.sub(r"^ *(#|//)", "", line) for line in (ROOT / file).read_text(encoding="utf-8").splitlines())
    for sentence in STATED[file]:
        parts = re.split(r"\{(\w+)\}", sentence)
        pattern = "".join(r"(\d+)" if i % 2 else re.escape(part) for i, part in enumerate(parts))
        if (match := re.search(pattern, " ".join(text.split()))) is None:
            raise ValueError(f"{file} does not say: {sentence}")
        yield from zip(parts[1::2], map(int, match.groups()), strict=True)


def differing(files: Iterator[str]) -> Iterator[str]:
    """A line for each figure of the files that is not what `plait plan` gives."""
    for file in files:
        for name, gb in stated(file):
            if (planned := planned_gb(name)) != gb:
                yield f"{file}: {name} {gb} GB, by plait plan {planned}"


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
    parser.add_argument("--stated", action="store_true", help="compare what recipes and the page state with the plan")
    arguments = parser.parse_args()
    if arguments.stated:
        lines = list(differing(iter(STATED)))
        print(*lines or ["all as stated"], sep="\n")
        sys.exit(bool(lines))
    made = table()
    if arguments.write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), made), encoding="utf-8")
    print(made, end="")


if __name__ == "__main__":
    main()
