"""What watching how a model learns costs a step (track.monitor), in processor time, which other programs disturb little.

    OMP_NUM_THREADS=1 python benchmarks/monitor.py [--rounds 4] [--steps 200]

Each family's tiny model trains with the monitor and without it, in turns, at the usual interval of records (track.every_steps: 10). The
processor time of each step is taken, its record included; the first 20 are not counted. By how much recorded steps take longer than the
others of the same run, with the monitor and without, is compared: what other programs do to a run falls out. What a step costs that is not
recorded is timed at the monitor's own calls. Told are medians over all rounds. Figures go to benchmarks/results/monitor.json.
"""

import argparse
import itertools
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from plait import cli
from plait.assembly.configuration import open_config
from plait.files import write_json
from plait.training import run
from plait.training.monitor.source_losses import SourceLosses
from plait.training.monitor.stage_monitor import StageMonitor

RESULTS = Path(__file__).resolve().parent / "results" / "monitor.json"
WARM, EVERY = 20, 10
calls: dict[str, list[float]] = {}
"""Processor seconds of each call of the monitor that comes in every step."""

COMMON = """
checkpoint: {{every_steps: null, best: null}}
evaluate: []
track: {{every_steps: 10, tensorboard: false}}
"""
SCENES = """
data:
  train: [{{source: scenes, limit: 200, options: {{size: [48, 48], objects: [1, 2], tasks: [colour, count]}}}}]
  validation: []
  workers: 0
"""
RECIPES = {
    "theworld": "family: theworld\npreset: tiny\nmodel: {{world: {{image_size: 32}}}}\ntrainable: [projector, language]\n"
    "train: {{global_batch: 4}}\n" + SCENES,
    "molmo": "family: molmo\npreset: debug\ntrain: {{global_batch: 2}}\n" + SCENES,
    "nanodit": "family: nanodit\npreset: tiny\nmodel: {{metadata: {folder}/latents, hidden: 96, dropout: {{neither: 0.1, text_only: 0.1, "
    "image_only: 0.1}}}}\ndata: {{train: [{{source: latents, path: {folder}/latents}}], validation: [], workers: 0}}\n"
    "train: {{global_batch: 6}}\n",
}
LATENTS = (
    "data", "shard", "scenes", "{folder}/latents", "--limit=60", "--latents=tiny", "--texts=tiny", "--images=tiny",
    "--statistics=published", "--buckets=32x32", "--options.size=[32,32]", "--options.tasks=[caption]", "--options.objects=[1,2]",
)  # fmt: skip


def seconds(recipe: Path, folder: Path, steps: int, *, monitor: bool) -> tuple[list[float], list[float]]:
    """Train, and return the processor seconds of each recorded step and of each other one."""
    moments: list[float] = []
    calls.clear()
    overrides = [f"run={folder}", f"train.steps={steps}", f"track.monitor={str(monitor).lower()}"]
    options: dict[str, Any] = {"hooks": (lambda state, row: moments.append(time.process_time()),)}
    run.train(open_config(recipe, overrides), run.TrainOptions(**options))
    took = [(number, after - before) for number, (before, after) in enumerate(itertools.pairwise(moments), 2)]
    counted = [(number, value) for number, value in took if number > WARM]
    return [value for number, value in counted if number % EVERY == 0], [value for number, value in counted if number % EVERY]


def timed(owner: type, name: str) -> None:
    """Have the processor seconds of each call of a method written to `calls`."""
    usual = getattr(owner, name)

    def call(*given: Any) -> Any:
        began = time.process_time()
        try:
            return usual(*given)
        finally:
            calls.setdefault(name, []).append(time.process_time() - began)

    setattr(owner, name, call)


def cost(recipe: Path, folder: Path, rounds: int, steps: int) -> dict[str, float]:
    """Return what watching costs a step of this recipe: milliseconds of a step without, and percent of it."""
    found: dict[bool, list[tuple[list[float], list[float]]]] = {True: [], False: []}
    more_other = 0.0
    for turn in range(rounds):
        for monitor in (True, False) if turn % 2 else (False, True):
            found[monitor].append(seconds(recipe, folder / f"{turn}-{monitor}", steps, monitor=monitor))
            more_other = sum(map(statistics.median, calls.values())) if monitor else more_other
    usual = statistics.median(value for _, others in found[False] for value in others)
    beyond = {monitor: [statistics.median(one) - statistics.median(others) for one, others in runs] for monitor, runs in found.items()}
    more_recorded = statistics.median(beyond[True]) - statistics.median(beyond[False])
    more = more_recorded / EVERY + more_other
    return {
        "step_ms": round(usual * 1e3, 2),
        "recorded_step_more_us": round(more_recorded * 1e6, 1),
        "other_step_more_us": round(more_other * 1e6, 1),
        "percent": round(100 * more / usual, 2),
    }


def main() -> None:
    """Measure each family."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--families", nargs="+", default=[*RECIPES], choices=[*RECIPES])
    given = parser.parse_args()
    torch.set_num_threads(1)
    timed(StageMonitor, "begin")
    timed(SourceLosses, "look")
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as kept:
        folder = Path(kept)
        if "nanodit" in given.families:
            assert cli.main([word.format(folder=folder) for word in LATENTS]) == 0
        for family in given.families:
            recipe = folder / f"{family}.yaml"
            recipe.write_text((RECIPES[family] + COMMON).format(folder=folder))
            figures[family] = cost(recipe, folder / family, given.rounds, given.steps)
            print(family, figures[family], flush=True)
    write_json(RESULTS, {"machine": platform.machine(), "rounds": given.rounds, "steps": given.steps, "families": figures})


if __name__ == "__main__":
    main()
