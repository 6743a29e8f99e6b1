"""Held-out accuracy per task of molmo checkpoints, beside the best constant answer: does stage 2 gain from stage 1?

For each run given, free answers to the first SAMPLES questions of every kind that the tiny recipes hold out. The floor of a kind is the one
answer that would be right most often on these very questions, whatever is asked. Run:
    python benchmarks/molmo_stages.py SAMPLES NAME=RUN [NAME=RUN ...]
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch

from plait import saved
from plait.data.sources import open_source
from plait.engine.distributed import World
from plait.families.molmo.evaluate import benches, golds
from plait.schema import Source, Template

DATA = "../shared/data"
SIZE = {"size": [48, 48], "objects": [1, 2], "supersample": 2}
SCENES = ("caption", "colour", "shape", "exists", "count", "point")
Kinds = dict[str, list[dict[str, Any]]]


def kinds(samples: int) -> Kinds:
    """Held-out samples by kind of question."""
    entries = {f"scenes {task}": Source(source="scenes", limit=samples, options={**SIZE, "tasks": [task]}) for task in SCENES}
    for task in ("truth", "count", "point"):
        path = f"{DATA}/nlvr/validation-*.tar"
        entries[f"nlvr {task}"] = Source(source="nlvr", path=path, limit=samples, options={"tasks": [task]})
    template = Template(user="Describe the photo.", assistant="a photo of a {label}")
    entries["cifar10 caption"] = Source(source="shards", path=f"{DATA}/cifar10/validation-*.tar", limit=samples, template=template)
    opened = {name: open_source(entry, seed=0, split="validation") for name, entry in entries.items()}
    return {name: [source[i] for i in range(len(source))] for name, source in opened.items()}


def floor(samples: list[dict[str, Any]]) -> tuple[float, str]:
    """The share that the best constant answer gets right, and that answer."""
    score = benches["accuracy"].score
    said = {gold for sample in samples for gold in golds(sample)}
    return max((sum(score(answer, sample)["score"] for sample in samples) / len(samples), answer) for answer in sorted(said))


def measure(run: Path, asked: Kinds) -> dict[str, dict[str, float]]:
    """Figures per kind of a run's newest checkpoint."""
    built, _, config = saved.open_checkpoint(run, World(0, 1, torch.device("cpu")))
    inputs, bench = built.inputs(config, train=False), benches["accuracy"]
    return {name: bench.summarise(bench.predict(built.model, samples, inputs, batch=50)) for name, samples in asked.items()}


def main(samples: int, runs: dict[str, Path]) -> None:
    """Print the table."""
    asked, began = kinds(samples), time.process_time()
    found = {name: measure(run, asked) for name, run in runs.items()}
    print(f"| kind | best constant answer | {' | '.join(found)} |\n|---|---|{'---|' * len(found)}")
    for kind, listed in asked.items():
        share, answer = floor(listed)
        scores = " | ".join(f"{100 * figures[kind]['score']:.1f} %" for figures in found.values())
        print(f"| {kind} | {100 * share:.1f} % ({answer[:40]}) | {scores} |", flush=True)
    print(f"{samples} samples of each kind, {time.process_time() - began:.0f} s of CPU")


if __name__ == "__main__":
    main(int(sys.argv[1]), {name: Path(run) for name, _, run in (item.partition("=") for item in sys.argv[2:])})
