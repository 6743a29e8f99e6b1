"""What watching how a model learns costs a step (track.monitor), in processor time, which other programs disturb little.

    OMP_NUM_THREADS=1 python benchmarks/monitor.py [--rounds 4] [--steps 200]

Each family's tiny model trains with the monitor and without it, in turns, at the usual interval of records (track.every_steps: 10). The
processor time of each step is taken, its record included; the first 50 are not counted, in which every recorded step is looked at. By how
much longer those take that are recorded and looked at, and those that are recorded alone, than the others of the same run, with the
monitor and without, is compared: what other programs do to a run falls out. What a step costs that is not recorded is timed at the
monitor's own calls. Told are medians over all rounds, weighted by how many steps there are of each kind, and what the rows themselves
say (spent.monitor). Figures go to benchmarks/results/monitor.json.
"""

import argparse
import itertools
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from plait import cli
from plait.assembly.configuration import open_config
from plait.files import read_rows, write_json
from plait.training import run
from plait.training.monitor.learning import LOOKS
from plait.training.monitor.look_budget import FIRST_STEPS
from plait.training.monitor.source_losses import SourceLosses
from plait.training.monitor.stage_monitor import StageMonitor

RESULTS = Path(__file__).resolve().parent / "results" / "monitor.json"
EVERY = 10
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


@dataclass
class Taken:
    """Processor seconds of each step of a run after the first ones, by kind, and the monitor's share of the time by the rows themselves."""

    looked: list[float]
    recorded: list[float]
    others: list[float]
    told: float


def seconds(recipe: Path, folder: Path, steps: int, *, monitor: bool) -> Taken:
    """Train, and return what the steps took."""
    moments: list[float] = []
    calls.clear()
    overrides = [f"run={folder}", f"train.steps={steps}", f"track.monitor={str(monitor).lower()}"]
    options: dict[str, Any] = {"hooks": (lambda state, row: moments.append(time.process_time()),)}
    run.train(open_config(recipe, overrides), run.TrainOptions(**options))
    rows = [row for row in read_rows(folder / "metrics.jsonl") if "loss" in row and row["step"] > FIRST_STEPS]
    looked = {row["step"] for row in rows if any(name.startswith(LOOKS) for name in row)}
    spent = [row["spent"] for row in rows if "spent" in row]
    told = sum(one["monitor"] for one in spent) / sum(sum(one["seconds"].values()) for one in spent) if spent else 0.0
    taken = Taken([], [], [], told)
    for step, (before, after) in enumerate(itertools.pairwise(moments), 2):
        if FIRST_STEPS < step < steps:  # the last one is saved
            kind = taken.looked if step in looked else taken.others if step % EVERY else taken.recorded
            kind.append(after - before)
    return taken


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
    runs: dict[bool, list[Taken]] = {True: [], False: []}
    other: list[float] = []
    for turn in range(rounds):
        for monitor in (True, False) if turn % 2 else (False, True):
            runs[monitor].append(seconds(recipe, folder / f"{turn}-{monitor}", steps, monitor=monitor))
            other += [sum(map(statistics.median, calls.values()))] if monitor else []
    usual = statistics.median(value for one in runs[False] for value in one.others)
    without = statistics.median(statistics.median(one.recorded) - statistics.median(one.others) for one in runs[False])

    def more(kind: str) -> tuple[float, int]:
        """Return by how much longer such steps take than without the monitor, and how many there were."""
        having = [(getattr(one, kind), one.others) for one in runs[True] if getattr(one, kind)]
        beyond = [statistics.median(values) - statistics.median(others) - without for values, others in having]
        return (statistics.median(beyond) if beyond else 0.0), sum(len(values) for values, _ in having)

    (of_look, looks), (of_record, records), of_other = more("looked"), more("recorded"), statistics.median(other)
    total = looks * of_look + records * of_record
    share = (total / (EVERY * (looks + records)) + of_other) / usual
    return {
        "step_ms": round(usual * 1e3, 2),
        "looked_step_more_us": round(of_look * 1e6, 1),
        "recorded_step_more_us": round(of_record * 1e6, 1),
        "other_step_more_us": round(of_other * 1e6, 1),
        "looks_of_recorded_steps": round(looks / (looks + records), 2),
        "percent": round(100 * share, 2),
        "percent_by_the_rows": round(100 * statistics.median(one.told for one in runs[True]), 2),
    }


def main() -> None:
    """Measure each family."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--families", nargs="+", default=[*RECIPES], choices=[*RECIPES])
    given = parser.parse_args()
    if given.steps <= FIRST_STEPS + EVERY:
        parser.error(f"--steps={given.steps} has no recorded step after the first {FIRST_STEPS}: take {FIRST_STEPS + EVERY + 1} or more")
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
