"""How often the 95 % intervals of `plait eval` hold the truth: simulated evaluations of models whose accuracy is known.

    OMP_NUM_THREADS=1 python benchmarks/intervals.py [--evaluations 1000] [--samples 50 200 1000]

Each sample has a difficulty of its own, drawn anew in every evaluation, so that the answers with an input, without it and with another's
are correlated, as those of one model are; the true accuracies are integrals over it. Counted is how often the interval of the accuracy
holds its truth, and that of the difference on - off, which `--ablate` tells, its own. Writes benchmarks/results/intervals.json.
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
        row = {"samples": samples, "accuracy": held / asked.evaluations, "difference": of_difference / asked.evaluations}
        found.append(row)
        shares = f"{row['accuracy']:.1%} of the intervals of the accuracy, {row['difference']:.1%} of those of on - off"
        print(f"{samples:>5} samples: the truth lies in {shares} ({time.monotonic() - began:.0f} s)", flush=True)
    machine = {"python": platform.python_version(), "processor": platform.processor() or platform.machine()}
    write_json(RESULTS, {"evaluations": asked.evaluations, "accuracies": ACCURACY, "machine": machine, "rows": found})


if __name__ == "__main__":
    main()
