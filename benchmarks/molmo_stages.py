"""Held-out accuracy per task of molmo checkpoints, beside the best constant answer: does stage 2 gain from stage 1?

For each run or step folder given, free answers to the first SAMPLES questions of every kind that the tiny recipes hold out, and the loss of
the right answers in nats per token. The floor of a kind is the one answer that would be right most often on these very questions, whatever
is asked. Run where the recipes run:
    python benchmarks/molmo_stages.py SAMPLES NAME=RUN [NAME=RUN/STAGE/STEP ...]
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from plait import saved
from plait.data.sources import open_source
from plait.engine.distributed import World
from plait.families.molmo.evaluate import benches, golds
from plait.parts import Parts
from plait.schema import Source

RECIPES = [Path("configs/molmo") / f"debug-{stage}.yaml" for stage in ("captioner", "multitask")]
SCENES = ("caption", "colour", "shape", "exists", "count", "point")
BATCH = 50
Kinds = dict[str, list[dict[str, Any]]]


def kinds(samples: int) -> Kinds:
    """Held-out samples by kind of question."""
    (_, photos), (drawn, nlvr) = (yaml.safe_load(path.read_text())["data"]["validation"] for path in RECIPES)
    asked = [*((f"scenes {task}", drawn, task) for task in SCENES), *((f"nlvr {task}", nlvr, task) for task in ("truth", "count", "point"))]
    entries = {
        name: Source(**{**entry, "limit": samples, "options": {**entry.get("options", {}), "tasks": [task]}}) for name, entry, task in asked
    }
    entries["cifar10 caption"] = Source(**photos, limit=samples)
    opened = {name: open_source(entry, seed=0, split="validation") for name, entry in entries.items()}
    return {name: [source[i] for i in range(len(source))] for name, source in opened.items()}


def floor(samples: list[dict[str, Any]]) -> tuple[float, str]:
    """The share that the best constant answer gets right, and that answer."""
    score = benches["accuracy"].score
    said = {gold for sample in samples for gold in golds(sample)}
    return max((sum(score(answer, sample)["score"] for sample in samples) / len(samples), answer) for answer in sorted(said))


def nats(built: Parts, inputs: Any, samples: list[dict[str, Any]]) -> float:
    """Loss of the right answers, per unit of token weight."""
    loss, total, weight = built.family.Loss(built.section), 0.0, 0.0
    for start in range(0, len(samples), BATCH):
        batch = inputs.collate([inputs.encode(sample, 0) for sample in samples[start : start + BATCH]])
        with torch.no_grad():
            total += float(loss.sums(built.model, batch)["loss"])
        weight += float(loss.weights(batch)["loss"])
    return total / weight


def measure(run: Path, asked: Kinds) -> dict[str, tuple[float, float]]:
    """(share of right answers, loss) per kind, of a run's newest checkpoint or a step folder."""
    built, _, config = saved.open_checkpoint(run, World(0, 1, torch.device("cpu")))
    inputs, bench = built.inputs(config, train=False), benches["accuracy"]
    scores = {name: bench.summarise(bench.predict(built.model, samples, inputs, batch=BATCH))["score"] for name, samples in asked.items()}
    return {name: (scores[name], nats(built, inputs, samples)) for name, samples in asked.items()}


def main(samples: int, runs: dict[str, Path]) -> None:
    """Print the table."""
    asked, began = kinds(samples), time.process_time()
    found = {name: measure(run, asked) for name, run in runs.items()}
    print(f"| kind | best constant answer | {' | '.join(found)} |\n|---|---|{'---|' * len(found)}")
    for kind, listed in asked.items():
        share, answer = floor(listed)
        cells = " | ".join(f"{100 * figures[kind][0]:.1f} %, {figures[kind][1]:.3f}" for figures in found.values())
        print(f"| {kind} | {100 * share:.1f} % ({answer[:40]}) | {cells} |", flush=True)
    print(f"{samples} samples of each kind: right answers, nats per token; {time.process_time() - began:.0f} s of CPU")


if __name__ == "__main__":
    main(int(sys.argv[1]), {name: Path(run) for name, _, run in (item.partition("=") for item in sys.argv[2:])})
