"""Mistakes planted in tiny runs of the three families, and healthy ones: what training warns of, at which step, and whether that is right.

    OMP_NUM_THREADS=1 python benchmarks/monitor_faults.py [--only NAME ...] [--keep FOLDER]

Each run is that of a published recipe (configs/), with its schedule and its intervals, asked to stop after some steps, as a user would. A
fault is planted as a user makes the mistake: by a setting, or in data on disk, which are drawn scenes. It is named where a warning, or the
line that ends the run, says what is wrong and where. Healthy runs are the same recipes with other seeds. Processor: one core, 15 minutes.
Figures go to benchmarks/results/monitor_faults.json; rows that were not run keep what an earlier run wrote.
"""

import argparse
import contextlib
import functools
import json
import os
import platform
import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from plait import cli
from plait.assembly.configuration import open_config
from plait.data.synthetic.scenes import Scenes
from plait.engine.monitoring import reporter
from plait.engine.monitoring.signals import Paused
from plait.errors import PlaitError
from plait.files import read_rows, write_json
from plait.keys import rng
from plait.training import run as training
from plait.training.run_context import TrainOptions

ROOT = Path(__file__).resolve().parents[1]
CONFIGS, RESULTS = ROOT / "configs", ROOT / "benchmarks" / "results" / "monitor_faults.json"
WITHIN = 50
"""Steps of a stage within which a fault is to be named."""
SCENE: dict[str, Any] = {
    "shapes": ["circle", "triangle", "cross"],
    "colours": ["red", "yellow", "green", "blue", "purple"],
    "objects": [1, 2],
    "sizes": ["large"],
    "holdout": 0,
    "background": "light",
    "supersample": 2,
}
LATENTS = (
    "data", "shard", "scenes", "{folder}/latents", "--limit=600", "--latents=tiny:8x64", "--texts=tiny", "--images=tiny", "--buckets=32x32",
    "--options.size=[32,32]", "--options.tasks=[caption]", "--options.objects=[1,2]",
)  # fmt: skip
QUIET = ("checkpoint.every_steps=null", "checkpoint.best=null", "track.tensorboard=false")


def scenes(**options: Any) -> dict[str, Any]:
    """Return an entry of `data:` of drawn scenes."""
    return {"source": "scenes", "options": {**SCENE, **options}}


@dataclass(frozen=True)
class Recipe:
    """A published recipe with settings over it. `side`: of the pictures that faults write to disk, in pixels."""

    file: str
    settings: tuple[str, ...] = ()
    side: int = 0


CAPTIONS = json.dumps([scenes(size=[48, 48], tasks=["caption"])])
QUESTIONS = json.dumps([scenes(size=[48, 48], questions=6, tasks={"count": 1, "colour": 1, "shape": 1, "exists": 1, "point": 3})])
LATENT = json.dumps([{"source": "latents", "path": "{folder}/latents", "options": {"held_out": 0.1}}])
RECIPES = {
    "theworld": Recipe("theworld/demo.yaml", ("stages=[]", "trainable=[projector,vision,language]"), 32),
    "theworld stages": Recipe("theworld/demo.yaml", (), 32),
    "molmo": Recipe("molmo/debug.yaml", (), 48),
    "molmo captioner": Recipe("molmo/debug-captioner.yaml", (f"data.train={CAPTIONS}", f"data.validation={CAPTIONS}"), 48),
    "molmo multitask": Recipe("molmo/debug-multitask.yaml", (f"data.train={QUESTIONS}", f"data.validation={QUESTIONS}", "from=null"), 48),
    "nanodit": Recipe("nanodit/tiny.yaml", ("model.metadata={folder}/latents", f"data.train={LATENT}", f"data.validation={LATENT}"), 32),
}


@dataclass(frozen=True)
class Planted:
    """A run. `named`: a pattern of the line that names its fault, "" of a healthy one; `steps`: after which it is asked to stop."""

    recipe: str
    settings: tuple[str, ...] = ()
    named: str = ""
    steps: int = 60
    data: Callable[[Path, int], Any] | None = None
    """Writes data to a folder, with pictures of a size, and returns the entries of data.train."""


@dataclass
class Told:
    """What a run told. `warnings`: (step of its stage, line), in order; `seconds`: of the processor."""

    warnings: list[tuple[int, str]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


def written(file: Path, side: int, count: int, *, task: str, pictures: Sequence[int], texts: Sequence[int]) -> dict[str, Any]:
    """Write drawn scenes as JSONL with PNGs beside it, picture `pictures[i]` with the text `texts[i]`; return its entry of `data:`."""
    source = Scenes({**SCENE, "size": [side, side], "tasks": [task]}, seed=1, split="train", length=count)
    samples = [source[i] for i in range(count)]
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        image = file.with_name(f"{file.stem}-{i}.png")
        image.write_bytes(samples[picture]["images"][0])
        turns = samples[text]["messages"]
        lines.append(json.dumps({"image": image.name, "messages": turns}))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"source": "jsonl", "path": str(file)}


def sound(folder: Path, side: int, *, task: str, count: int = 1500) -> dict[str, Any]:
    """Write scenes as they are."""
    return written(folder / f"{task}.jsonl", side, count, task=task, pictures=range(count), texts=range(count))


def mixed_up(folder: Path, side: int, *, task: str, count: int = 1500) -> dict[str, Any]:
    """Write scenes with each other's texts, as a join by a wrong column does."""
    order = rng("monitor faults", task).permutation(count).tolist()
    return written(folder / f"{task}-bad.jsonl", side, count, task=task, pictures=range(count), texts=order)


def all_sound(folder: Path, side: int, *, tasks: Sequence[str]) -> list[dict[str, Any]]:
    return [sound(folder, side, task=task) for task in tasks]


def all_mixed_up(folder: Path, side: int, *, task: str) -> list[dict[str, Any]]:
    return [mixed_up(folder, side, task=task)]


def one_mixed_up(folder: Path, side: int, *, good: Sequence[str], bad: str) -> list[dict[str, Any]]:
    """Return sources of which the last has the texts of other pictures."""
    return [*(sound(folder, side, task=task) for task in good), mixed_up(folder, side, task=bad)]


def few(folder: Path, side: int, *, count: int) -> list[dict[str, Any]]:
    """Return a source of so many scenes."""
    return [sound(folder, side, task="colour", count=count)]


RUNS: dict[str, Planted] = {
    "projector at rate 0": Planted("theworld", ("optim.components.projector.lr=0",), "projector.lr must be greater than 0"),
    "projector at rate 1e-10": Planted("theworld", ("optim.components.projector.lr=1e-10",), "projector does not learn"),
    "projector frozen by mistake": Planted("theworld", ("trainable=[vision,language]",), "projector is frozen as it was drawn"),
    "language model and its head frozen by mistake": Planted(
        "theworld", ("trainable=[projector,vision]",), "language is drawn at random and nothing trains it"
    ),
    "rate of the projector forgotten": Planted(
        "theworld", ("optim.components.projector.lr=3e-5",), "language moves .* as fast as projector"
    ),
    "rate of a part ten times too high": Planted("theworld", ("optim.components.language.lr=3e-2",), "language .*; --optim.comp"),
    "rate of a part a hundred times too high": Planted(
        "theworld", ("optim.components.vision.lr=0.3",), "vision .*--optim.components.vision"
    ),
    "clipping far below the gradient": Planted("theworld", ("train.grad_clip=0.001",), "train.grad_clip leaves"),
    "pictures shuffled": Planted(
        "theworld", (), "its pictures tell nothing of its texts", 60, functools.partial(all_mixed_up, task="colour")
    ),
    "one source with the captions of other pictures": Planted(
        "theworld", (), r"source jsonl:caption-bad\.jsonl: ", 60, functools.partial(one_mixed_up, good=["caption", "colour"], bad="caption")
    ),
    "one source with wrong labels": Planted(
        "theworld", (), r"source jsonl:colour-bad\.jsonl: ", 60, functools.partial(one_mixed_up, good=["colour"], bad="colour")
    ),
    "few samples, learned by heart": Planted(
        "theworld",
        ("evaluate=[{bench: loss, every_steps: 10, samples: 64}]",),
        "learns its samples by heart",
        60,
        functools.partial(few, count=32),
    ),
    "molmo: connector at rate 1e-10": Planted("molmo", ("optim.components.connector.lr=1e-10",), "connector does not learn"),
    "molmo: connector frozen by mistake": Planted("molmo", ("trainable=[vision,language]",), "connector is frozen as it was drawn"),
    "molmo: rate of the tower ten times too high": Planted(
        "molmo", ("optim.components.vision.lr=0.01",), "vision .*--optim.components.vision"
    ),
    "molmo: rate of the connector a hundred times too high": Planted(
        "molmo captioner", ("optim.components.connector.lr=0.1",), "connector .*--optim.components"
    ),
    "molmo: pictures shuffled": Planted(
        "molmo captioner", (), "its pictures tell nothing of its texts", 60, functools.partial(all_mixed_up, task="caption")
    ),
    "nanodit: head frozen by mistake": Planted(
        "nanodit", ("trainable=[embed,conditioning,blocks]",), "final is drawn at random and nothing trains it"
    ),
    "nanodit: conditioning at rate 1e-10": Planted("nanodit", ("optim.components.conditioning.lr=1e-10",), "conditioning does not learn"),
    "nanodit: rate of the blocks a hundred times too high": Planted(
        "nanodit", ("optim.components.blocks.lr=0.2",), "blocks .*--optim.components.blocks"
    ),
    **{f"healthy: theworld demo, seed {seed}": Planted("theworld stages", (f"seed={seed}",), "", 80) for seed in range(3)},
    **{f"healthy: theworld without stages, seed {seed}": Planted("theworld", (f"seed={seed}",), "", 60) for seed in range(2)},
    "healthy: theworld, two sources on disk": Planted("theworld", (), "", 110, functools.partial(all_sound, tasks=["colour", "caption"])),
    **{f"healthy: molmo debug, seed {seed}": Planted("molmo", (f"seed={seed}",), "", 60) for seed in range(2)},
    **{f"healthy: molmo captioner, seed {seed}": Planted("molmo captioner", (f"seed={seed}",), "", 60) for seed in range(2)},
    **{f"healthy: molmo multitask, seed {seed}": Planted("molmo multitask", (f"seed={seed}",), "", 60) for seed in range(2)},
    **{f"healthy: nanodit tiny, seed {seed}": Planted("nanodit", (f"seed={seed}",), "", 60) for seed in range(3)},
}


class Stop:
    """Asks this process to stop after so many steps, as a scheduler does: a hook of the loop."""

    def __init__(self, steps: int) -> None:
        self.steps, self.asked = steps, False

    def __call__(self, state: Any, _row: Any) -> None:
        """Look at the step."""
        if state.step >= self.steps:
            self.asked = True
            os.kill(os.getpid(), signal.SIGTERM)


def observed(planted: Planted, folder: Path, run: Path, every: Sequence[str] = ()) -> Told:
    """Train, and return what the run told."""
    recipe, told, began = RECIPES[planted.recipe], Told(), time.process_time()
    settings = [word.replace("{folder}", str(folder)) for word in recipe.settings]
    if planted.data is not None:
        settings.append(f"data.train={json.dumps(planted.data(run.with_name(f'{run.name}-data'), recipe.side))}")
    ended, stop = "", Stop(planted.steps)
    try:
        resolved = open_config(CONFIGS / recipe.file, [f"run={run}", *QUIET, *settings, *planted.settings, *every])
        told.warnings += [(0, line) for line in resolved.warnings]
        training.train(resolved, TrainOptions(hooks=(stop,)))
    except Paused:
        if not stop.asked:  # somebody else did
            raise
    except PlaitError as error:
        ended = str(error)
    starts: dict[int, int] = {}
    step = 0
    for row in read_rows(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else ():
        first = starts.setdefault(row["stage"], step)
        step = row["step"]
        told.warnings += [(step - first, line) for line in row.get("warnings", ())]
        told.losses += [row["loss"]] if "loss" in row else []
    told.warnings += [(step, ended)] if ended else []
    told.seconds = time.process_time() - began
    return told


def judged(planted: Planted, told: Told) -> dict[str, Any]:
    """Return the row of a run: at which step its fault was named, and what else was told."""
    naming = [step for step, line in told.warnings if planted.named and re.search(planted.named, line)]
    others = [line for _, line in told.warnings if not planted.named or not re.search(planted.named, line)]
    named = naming[0] if naming else None
    good = not told.warnings if not planted.named else named is not None and named <= WITHIN
    return {
        "recipe": planted.recipe,
        "settings": list(planted.settings),
        "named_at": named,
        "as_it_should": good,
        "warnings": [[step, line] for step, line in told.warnings],
        "others": len(others),
        "loss": [round(told.losses[0], 3), round(told.losses[-1], 3)] if told.losses else [],
        "processor_s": round(told.seconds, 1),
    }


def lines(rows: dict[str, Any]) -> Iterator[str]:
    """Yield the table of runs in Markdown."""
    yield "| run | named at step | also told |"
    yield "|---|---|---|"
    for name, row in rows.items():
        at = "" if name.startswith("healthy") else row["named_at"] or "not named"
        yield f"| {name} | {at} | {row['others'] or ''} |"


@contextlib.contextmanager
def working(keep: str | None) -> Iterator[Path]:
    """Yield a folder to work in, which goes afterwards unless it is to be kept."""
    if keep is not None:
        yield Path(keep)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs, and print and write what they told."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="runs with this in their names")
    parser.add_argument("--keep", metavar="FOLDER", help="work in this new folder, and keep it")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    reporter.install()
    known = json.loads(RESULTS.read_text(encoding="utf-8"))["runs"] if RESULTS.is_file() else {}
    chosen = {name: planted for name, planted in RUNS.items() if any(part in name for part in given.only)}
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "torch": torch.__version__}
    with working(given.keep) as folder:
        if any(planted.recipe == "nanodit" for planted in chosen.values()) and not (folder / "latents").exists():
            assert cli.main([word.format(folder=folder) for word in LATENTS]) == 0
        for number, (name, planted) in enumerate(chosen.items()):
            known[name] = judged(planted, observed(planted, folder, folder / f"run-{number}"))
            rows = {name: known[name] for name in RUNS if name in known}
            write_json(RESULTS, {"command": "python benchmarks/monitor_faults.py", "within": WITHIN, "machine": machine, "runs": rows})
    print(*lines(rows), sep="\n")


if __name__ == "__main__":
    main()
