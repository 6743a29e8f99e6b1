"""How often the 95 % intervals of `plait eval` hold the truth: simulated evaluations of models whose accuracy is known.

    OMP_NUM_THREADS=1 python benchmarks/intervals.py [--evaluations 1000] [--samples 50 200 1000] [--losses 4 8 16 64]

Each sample has a difficulty of its own, drawn anew in every evaluation, so that the answers with an input, without it and with another's
are correlated, as those of one model are; the true accuracies are integrals over it. Counted is how often the interval of the accuracy
holds its truth, and that of the difference on - off, which `--ablate` tells, its own. A second model answers nearly all samples alike in
all ways: of it many evaluations have no sample at all that differs, in which a bootstrap would have no width.

Of losses the differences of samples are drawn: normal (mean 0.5, deviation 1) and lognormal (deviation 1 of the logarithm), which is as
skewed as losses of hard samples. Writes benchmarks/results/intervals.json.
"""

import argparse
import math
import platform
import time
from pathlib import Path

import numpy as np

from plait.commands.actions.evaluation.ablations import compare
from plait.engine.evaluation import Bench
from plait.families.ablation import Ablation, ablated
from plait.files import write_json
from plait.keys import rng
from plait.training.figures.intervals import bootstrap, percentiles, resampled
from plait.training.figures.paired import differences

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


SINGLE = Bench(lambda *_, **__: [], lambda rows: mean_loss(rows, "off"), means=True)
LOSSES = {"normal": 0.5, "lognormal": math.exp(0.5)}
"""The true mean differences of losses, by how those of samples are distributed."""


def losses(draw: np.random.Generator, kind: str, samples: int) -> list[dict]:
    """Return the losses of a simulated evaluation's samples in two ways."""
    gains = draw.normal(LOSSES[kind], 1.0, samples) if kind == "normal" else draw.lognormal(0.0, 1.0, samples)
    return [{"on": 0.0, "off": float(gain)} for gain in gains]


def of_losses(kind: str, samples: int, evaluations: int) -> dict[str, float]:
    """Return how often a loss difference's interval holds its truth, and a bootstrap's percentiles alone do; and a single loss's does."""
    held = alone = single = 0
    for number in range(evaluations):
        rows = losses(rng("losses", kind, samples, number), kind, samples)
        pair = {"on-off": ("on", "off")}
        found = differences(rows, pair, mean_loss, lower=True, behind=lambda figure: None)["loss"]["on-off"]
        drawn = resampled(rows, lambda chosen: {"gain": mean_loss(chosen, "off")["loss"] - mean_loss(chosen, "on")["loss"]})
        low, high = percentiles(drawn["gain"])
        held += found.low <= LOSSES[kind] <= found.high
        alone += low <= LOSSES[kind] <= high
        of_one = bootstrap(SINGLE, rows).get("loss")
        single += of_one is not None and of_one[0] <= LOSSES[kind] <= of_one[1]
    return {"held": held / evaluations, "bootstrap": alone / evaluations, "single": single / evaluations}


def mean_loss(rows: list[dict], way: str) -> dict[str, float]:
    return {"loss": sum(row[way] for row in rows) / len(rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--evaluations", type=int, default=1000)
    parser.add_argument("--samples", type=int, nargs="+", default=[50, 200, 1000])
    parser.add_argument("--losses", type=int, nargs="+", default=[4, 8, 16, 64], help="samples of simulated losses")
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
    of_kinds = []
    for samples in asked.losses:
        by_kind = {kind: of_losses(kind, samples, asked.evaluations) for kind in LOSSES}
        of_kinds.append({"samples": samples, **by_kind})
        shares = ", ".join(
            f"{kind} {one['held']:.1%} (by the bootstrap alone {one['bootstrap']:.1%}; of one loss {one['single']:.1%})"
            for kind, one in by_kind.items()
        )
        print(f"{samples:>5} samples: of differences of losses the truth lies in {shares}", flush=True)
    machine = {"python": platform.python_version(), "processor": platform.processor() or platform.machine()}
    write_json(RESULTS, {"evaluations": asked.evaluations, "accuracies": ACCURACY, "machine": machine, "rows": found, "losses": of_kinds})


if __name__ == "__main__":
    main()
