"""Record the golden digits: `python -m tests.golden.record` writes tests/golden/*.json.

Done once before a refactoring and whenever a change of the digits is meant; a refactoring changes none of them.
"""

import hashlib
import json
import math
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from plait import cli
from plait.config.schema import Optim
from plait.data.buckets import BucketOrder
from plait.data.order import Order, permute
from plait.engine import schedule
from plait.keys import key, rng
from tests.golden import recipes

FOLDER = Path(__file__).parent
_FIGURES = ("loss", "grad_norm", "lr/", "weight/", "eval/", "share/", "ids", "samples", "tokens", "step", "stage")
_NOT_FIGURES = ("samples_per_s", "step_s")
FIRST_IDS = 1000


def run(family: str, folder: Path) -> dict:
    """Train one golden recipe through the command line; its rows without what clocks say, and a hash of every saved tensor."""
    torch.set_num_threads(1)
    if family == "nanodit":
        assert cli.main([item.format(folder=folder) for item in recipes.LATENTS]) == 0
    recipe = folder / f"{family}.yaml"
    recipe.write_text(recipes.RUNS[family].format(folder=folder))
    assert cli.main(["train", str(recipe)]) == 0
    rows = [json.loads(line) for line in (folder / family / "metrics.jsonl").read_text().splitlines()]
    kept = [{name: value for name, value in row.items() if name.startswith(_FIGURES) and name not in _NOT_FIGURES} for row in rows]
    return {"rows": kept, "tensors": tensors(folder / family)}


def tensors(folder: Path) -> dict[str, str]:
    """A hash over names and bytes of each group of tensors of the last checkpoint."""
    newest = max(folder.glob("stage-*/step-*"), key=lambda path: path.name)
    found = {}
    for path in sorted(newest.glob("*.safetensors")):
        digest = hashlib.sha256()
        for name, value in sorted(load_file(path).items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        found[path.name] = digest.hexdigest()
    return found


def first(order, count: int = FIRST_IDS) -> str:
    """A hash of the first `count` sample ids of an order, and the first five of them to look at."""
    ids = [tuple(identity) for step in range(-(-count // len(order.ids(0)))) for identity in order.ids(step)][:count]
    return " ".join(f"{s}:{i}@{e}" for s, i, e in ids[:5]) + " " + hashlib.sha256(repr(ids).encode()).hexdigest()


def functions() -> dict:
    """What keys, permutations, orders, mixtures, buckets and schedules give."""
    orders = {
        "one source": Order([5000], [1.0], 7, 16),
        "a small source, many epochs": Order([13], [1.0], 0, 4),
        "a mixture": Order([1000, 50, 333], [0.7, 0.1, 0.2], 3, 24),
        "buckets": BucketOrder([[100, 37, 5]], [1.0], 11, 8),
        "a mixture of buckets": BucketOrder([[100, 37, 5], [64]], [2.0, 1.0], 5, 8),
    }
    curves = {}
    for name in ("constant", "linear", "cosine", "inverse_sqrt"):
        optim = Optim.model_validate({"lr": 3e-4, "schedule": {"name": name, "warmup_steps": 10, "min_lr": 3e-5}})
        curves[name] = [
            schedule.lr_factor(name, schedule.progress_at(optim.schedule, step, 100, {}, {}), 10, 0.1) for step in range(0, 100, 3)
        ]
    return {
        "orders": {name: first(order) for name, order in orders.items()},
        "keys": [key(*parts) for parts in ((0,), ("a",), (0, "order", 1, 2), (1234567890123, "noise"), ("é", -5))],
        "permutation": [permute(i, 1000, 0, "texts") for i in range(20)],
        "random": rng(0, "golden").standard_normal(8).tolist(),
        "schedules": curves,
    }


def write() -> None:
    """Write all files of digits."""
    with tempfile.TemporaryDirectory() as folder:
        for family in recipes.RUNS:
            made = run(family, Path(folder))
            assert all(math.isfinite(row["loss"]) for row in made["rows"] if "loss" in row)
            (FOLDER / f"{family}.json").write_text(json.dumps(made, indent=1) + "\n")
    (FOLDER / "functions.json").write_text(json.dumps(functions(), indent=1) + "\n")


if __name__ == "__main__":
    write()
