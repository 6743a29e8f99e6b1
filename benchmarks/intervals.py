"""How often the 95 % intervals of `plait eval` hold the truth: simulated evaluations of models whose accuracy is known.

    OMP_NUM_THREADS=1 python benchmarks/intervals.py [--evaluations 1000] [--samples 50 200 1000]

Each sample has a difficulty of its own, drawn anew in every evaluation, so that the answers with an input, without it and with another's
are correlated, as those of one model are; the true accuracies are integrals over it. Counted is how often the interval of the accuracy
holds its truth, and that of the difference on - off, which `--ablate` tells, its own. A second model answers nearly all samples alike in
all ways: of it many evaluations have no sample at all that differs, in which a bootstrap would have no width. Writes
benchmarks/results/intervals.json.
"""

import argparse
import platform
import time
from pathlib import Path

import numpy as np

from plait.commands.actions.evaluation.ablations import compare
from plait.engine.evaluation import Bench
from plait.families.ablation import Ablation, ablated
from plait.files import write_json
from plait.keys import rng
from plait.training.figures.intervals import bootstrap

RESULTS = Path(__file__).resolve().parent / "results" / "intervals.json"
ACCURACY = {"on": 0.80, "off": 0.70, "shuffled": 0.65}


SELDOM = {"on": 0.02, "off": 0.01}
"""Of the second model: the shares of samples that only the one way answers right. Of the others 80 % are right in all ways."""


def accuracy(rows):
    return {"accuracy": sum(row["correct"] for row in rows) / len(rows)}


BENCH = ablated(
    Bench(lambda *_, **__: [], accuracy), "x", Ablation(lambda sample: None, lambda sample: sample, lambda sample, other: sample)
)


def evaluation(draw: np.random.Generator, samples: int) -> list[dict]:
    """Return the rows of a simulated evaluation. Half of the numbers drawn are shared by the ways: a hard sample is hard in each."""
    rows = []
    for number in range(samples):
        shared = draw.random()
        right = {way: bool((shared if draw.random() < 0.5 else draw.random()) < share) for way, share in ACCURACY.items()}
        ways = {way: {"id": str(number), "correct": right[way]} for way in ("off", "shuffled")}
        rows.append({"id": str(number), "correct": right["on"], "ways": ways})
    return rows


def seldom(draw: np.random.Generator, samples: int) -> list[dict]:
    """Return the rows of a simulated evaluation of the second model; shuffled is as off."""
    rows = []
    for number in range(samples):
        place, right = draw.random(), bool(draw.random() < ACCURACY["on"])
        on = place < SELDOM["on"] or (place >= SELDOM["on"] + SELDOM["off"] and right)
        off = SELDOM["on"] <= place < SELDOM["on"] + SELDOM["off"] or (place >= SELDOM["on"] + SELDOM["off"] and right)
        ways = {way: {"id": str(number), "correct": off} for way in ("off", "shuffled")}
        rows.append({"id": str(number), "correct": on, "ways": ways})
    return rows


def of_seldom(samples: int, evaluations: int) -> dict[str, float]:
    """Return how often the interval of the second model's difference holds its truth, and how many evaluations have none that differs."""
    held = alike = 0
    for number in range(evaluations):
        (one,) = compare(BENCH, seldom(rng("seldom", samples, number), samples))
        difference = one.differences["on-off"]
        held += difference.low <= SELDOM["on"] - SELDOM["off"] <= difference.high
        alike += bool(difference.alike)
    return {"difference": held / evaluations, "alike": alike / evaluations}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--evaluations", type=int, default=1000)
    parser.add_argument("--samples", type=int, nargs="+", default=[50, 200, 1000])
    asked = parser.parse_args()
    found = []
    for samples in asked.samples:
        began, held, of_difference = time.monotonic(), 0, 0
        for number in range(asked.evaluations):
            rows = evaluation(rng("intervals", samples, number), samples)
            low, high = bootstrap(BENCH, rows)["accuracy"]
            difference = compare(BENCH, rows)[0].differences["on-off"]
            held += low <= ACCURACY["on"] <= high
            of_difference += difference.low <= ACCURACY["on"] - ACCURACY["off"] <= difference.high
        few = of_seldom(samples, asked.evaluations)
        row = {"samples": samples, "accuracy": held / asked.evaluations, "difference": of_difference / asked.evaluations, "seldom": few}
        found.append(row)
        shares = f"{row['accuracy']:.1%} of the intervals of the accuracy, {row['difference']:.1%} of those of on - off"
        of_few = f"{few['difference']:.1%} of those of a model that seldom differs ({few['alike']:.1%} without a sample that does)"
        print(f"{samples:>5} samples: the truth lies in {shares}, in {of_few} ({time.monotonic() - began:.0f} s)", flush=True)
    machine = {"python": platform.python_version(), "processor": platform.processor() or platform.machine()}
    write_json(RESULTS, {"evaluations": asked.evaluations, "accuracies": ACCURACY, "machine": machine, "rows": found})


if __name__ == "__main__":
    main()
