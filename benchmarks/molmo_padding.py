"""What padding costs molmo: real tokens per CPU second, forward and backward, of the same samples in each layout of `data.pad`.

The samples are those of the tiny multitask recipe's first steps (scenes with several questions, NLVR pictures with one), as the loader
gives them: real lengths, and their spread. Rounds go through the layouts in turn, so that a busy machine slows all alike. Run where the
recipes run:
    python benchmarks/molmo_padding.py MICRO_BATCH MAX_TOKENS [STEPS] [ROUNDS]
"""

import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from plait.assembly.configuration import open_config
from plait.assembly.data import data_seed, open_training
from plait.assembly.model import ModelBundle, build_model
from plait.data.loading.loader import Loader
from plait.engine.parallel.distributed import Ranks

RECIPE = Path("configs/molmo/debug-multitask.yaml")
LAYOUTS = ("to_max", "to_128", "longest", "none")


def prepared(folder: Path, micro_batch: int, max_tokens: int, steps: int) -> tuple[ModelBundle, dict[str, list[Any]]]:
    """The model, and the micro-batches of the recipe's first steps in each layout."""
    said = ["from=null", f"run={folder}", f"data.max_tokens={max_tokens}"]
    resolved = open_config(RECIPE, said)
    built = build_model(resolved.config, folder, Ranks(0, 1, torch.device("cpu")))
    data = open_training(resolved.config)
    seed, order = data_seed(resolved.stages[0]), data.order(resolved.stages[0])
    found = {}
    for pad in LAYOUTS:
        inputs = built.family.Inputs(built.section, built.assets, max_tokens=max_tokens, pad=pad, train=True)
        with Loader(data.sources, order, inputs, seed=seed, micro_batch=micro_batch, workers=0, stop_step=steps) as loader:
            found[pad] = [micro.batch for batch in loader for micro in batch.micro]
    return built, found


def seconds(built: ModelBundle, batches: list[Any]) -> float:
    """CPU seconds of forward and backward."""
    loss, began = built.family.Loss(built.section), time.process_time()
    for batch in batches:
        loss.sums(built.model, batch)["loss"].backward()
    return time.process_time() - began


def main(micro_batch: int, max_tokens: int, steps: int = 2, rounds: int = 5) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        built, layouts = prepared(Path(folder), micro_batch, max_tokens, steps)
    loss = built.family.Loss(built.section)
    lengths = [n for batch in layouts["longest"] for n in loss.by_sample(batch)["tokens"].tolist()]
    turns = [{pad: seconds(built, layouts[pad]) for pad in LAYOUTS} for _ in range(rounds)]
    low, middle, high = quantiles(lengths, n=20)[0], median(lengths), quantiles(lengths, n=20)[-1]
    print(f"{len(lengths)} samples of {low:.0f} to {high:.0f} tokens (5 to 95 %), median {middle:.0f}; max_tokens {max_tokens}")
    print("| layout | tokens per CPU second | ratio to to_max |\n|---|---|---|")
    rates = {pad: sum(lengths) / median(turn[pad] for turn in turns) for pad in LAYOUTS}
    for pad in LAYOUTS:
        print(f"| `{pad}` | {rates[pad]:,.0f} | {rates[pad] / rates['to_max']:.2f} |")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
