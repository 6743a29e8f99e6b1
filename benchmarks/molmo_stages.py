"""Held-out accuracy per task of molmo checkpoints, beside two floors: does stage 2 gain from stage 1?

For each run or step folder given, free answers to SAMPLES questions of every kind that the tiny recipes hold out, spread evenly over them
(twice as many points in scenes and five times as many human sentences, which are nearest to their floors), and the loss of the right
answers in nats per token. The floors of a kind: the one answer that would be right most often on these very questions, whatever is asked;
and what the first run says when it is shown the picture of another of these questions. Run where the recipes run:
    python benchmarks/molmo_stages.py SAMPLES caption|asked NAME=RUN [NAME=RUN/STAGE/STEP ...]
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from plait.assembly import saved
from plait.assembly.model import ModelBundle
from plait.config.schema import SourceEntry
from plait.data.sources.open import open_source
from plait.engine.parallel.distributed import Ranks
from plait.families.molmo.evaluate import accuracy, benches, golds

RECIPES = [Path("configs/molmo") / f"debug-{stage}.yaml" for stage in ("captioner", "multitask")]
SCENES = ("caption", "colour", "shape", "exists", "count", "point")
NLVR = ("caption", "truth", "statement", "count", "point")
MORE = {"nlvr truth": 5, "scenes point": 2}  # times as many samples
BATCH = 50
Kinds = dict[str, list[dict[str, Any]]]


def kinds(samples: int, captions: bool) -> Kinds:
    """Held-out samples by kind: descriptions, or questions."""
    (_, photos, _), (drawn, nlvr) = (yaml.safe_load(path.read_text())["data"]["validation"] for path in RECIPES)
    many = {**nlvr, "options": {**nlvr["options"], "wordings": "many"}}
    asked = [*((f"scenes {task}", drawn, task) for task in SCENES), *((f"nlvr {task}", nlvr, task) for task in NLVR)]
    asked.append(("nlvr statement in many wordings", many, "statement"))
    entries = {name: {**entry, "limit": None, "options": {**entry.get("options", {}), "tasks": [task]}} for name, entry, task in asked}
    entries["cifar10 caption"] = photos
    entries = {name: entry for name, entry in entries.items() if name.endswith("caption") is captions}
    opened = {name: open_source(SourceEntry(**entry), seed=0, split="validation") for name, entry in entries.items()}
    counts = {name: samples * MORE.get(name, 1) for name in opened}
    return {
        name: [source[n * len(source) // count] for n in range(count)]
        for (name, count), source in zip(counts.items(), opened.values(), strict=True)
    }


def elsewhere(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same questions, each with the picture of the one half the list away."""
    half = len(samples) // 2
    return [{**sample, "images": other["images"]} for sample, other in zip(samples, samples[half:] + samples[:half], strict=True)]


def floor(samples: list[dict[str, Any]]) -> tuple[float, str]:
    """The share that the best constant answer gets right, and that answer."""
    candidates = {gold for sample in samples for gold in golds(sample)}
    return max((sum(accuracy(answer, sample)["score"] for sample in samples) / len(samples), answer) for answer in sorted(candidates))


def nats(built: ModelBundle, inputs: Any, samples: list[dict[str, Any]]) -> float:
    """Loss of the right answers, per unit of token weight."""
    loss, total, weight = built.family.Loss(built.section), 0.0, 0.0
    for start in range(0, len(samples), BATCH):
        batch = inputs.collate([inputs.encode(sample, 0) for sample in samples[start : start + BATCH]])
        with torch.no_grad():
            total += float(loss.sums(built.model, batch)["loss"])
        weight += float(loss.weights(batch)["loss"])
    return total / weight


def right(built: ModelBundle, inputs: Any, samples: list[dict[str, Any]]) -> float:
    """The share of right answers."""
    bench = benches["accuracy"]
    return bench.summarise(bench.predict(built.model, samples, inputs, batch=BATCH))["score"]


def measure(run: Path, asked: Kinds) -> dict[str, tuple[float, float]]:
    """(share of right answers, loss) per kind, of a run's newest checkpoint or a step folder."""
    located = saved.locate(run)
    built = saved.open_checkpoint(located, Ranks(0, 1, torch.device("cpu")))
    config = located.config
    inputs = built.inputs(config, train=False)
    return {name: (right(built, inputs, samples), nats(built, inputs, samples)) for name, samples in asked.items()}


def unseen(run: Path, asked: Kinds) -> dict[str, float]:
    """The share of right answers per kind to questions shown with another one's picture."""
    located = saved.locate(run)
    built = saved.open_checkpoint(located, Ranks(0, 1, torch.device("cpu")))
    config = located.config
    inputs = built.inputs(config, train=False)
    return {name: right(built, inputs, elsewhere(samples)) for name, samples in asked.items()}


def main(samples: int, captions: bool, runs: dict[str, Path]) -> None:
    """Print the table."""
    asked, began = kinds(samples, captions), time.process_time()
    found = {name: measure(run, asked) for name, run in runs.items()}
    blind = unseen(next(iter(runs.values())), asked)
    print(f"| kind | one answer | another picture | {' | '.join(found)} |\n|---|---|---|{'---|' * len(found)}")
    for kind, listed in asked.items():
        share, answer = floor(listed)
        cells = " | ".join(f"{100 * figures[kind][0]:.1f} %, {figures[kind][1]:.3f}" for figures in found.values())
        print(f"| {kind} | {100 * share:.1f} % ({answer[:40]}) | {100 * blind[kind]:.1f} % | {cells} |", flush=True)
    print(f"{samples} samples of each kind: right answers, nats per token; {time.process_time() - began:.0f} s of CPU")


if __name__ == "__main__":
    main(
        int(sys.argv[1]),
        {"caption": True, "asked": False}[sys.argv[2]],
        {n: Path(run) for n, _, run in (a.partition("=") for a in sys.argv[3:])},
    )
