"""What batches of similar length save: the share of padding, and CPU time of forward and backward, of the same samples in both orders.

The samples are pictures with captions whose numbers of words are log-normal (median 40, 5 to 95 %: 11 to 150), as captions of the web
and of people are spread; the models are the tiny ones of theworld and molmo. Rounds take both orders in turn, so that a busy machine slows
both alike.
    python benchmarks/length_batches.py [SAMPLES] [MICRO_BATCH] [ROUNDS]
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from plait.assembly.configuration import open_config
from plait.assembly.data import open_training
from plait.assembly.model import ModelBundle, build_model
from plait.data.loading.length_order import padded_share
from plait.data.loading.loader import Loader
from plait.data.order import Order
from plait.engine.parallel.distributed import Ranks
from plait.training.batching import token_lengths

WORDS = "a red blue green square circle above below left right of three small large the and with near far"
FAMILIES = {"theworld": "tiny", "molmo": "debug"}


def written(folder: Path, samples: int) -> Path:
    """A list of pictures with captions, and its configuration's data."""
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / "a.png")
    counts = np.exp(random.normal(np.log(40), 0.8, samples)).round().clip(1, 400).astype(int)
    rows = [{"image": "a.png", "caption": " ".join(random.choice(WORDS.split(), count))} for count in counts]
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prepared(folder: Path, family: str, samples: int, micro_batch: int) -> tuple[ModelBundle, dict[str, float], dict[str, list[Any]]]:
    """The model, and by order the share of padding and the micro-batches of an epoch."""
    (folder / family).mkdir()
    path = folder / f"{family}.yaml"
    data = {"train": [{"source": "jsonl", "path": str(folder / "data.jsonl")}], "batching": "length", "cache": str(folder / "cache")}
    train = {"epochs": 1, "global_batch": micro_batch, "micro_batch": micro_batch}
    path.write_text(json.dumps({"family": family, "preset": FAMILIES[family], "run": str(folder / family), "data": data, "train": train}))
    resolved = open_config(path)
    view, config = resolved.stages[0], resolved.stages[0].config
    built = build_model(config, folder / family, Ranks(0, 1, torch.device("cpu")))
    data_opened, inputs = open_training(config), built.inputs(config, train=True)
    _, arranged = token_lengths.prepare(view, data_opened, built.family, inputs)
    plain = data_opened.order(view)
    lengths = built.family.token_lengths(inputs)
    counts = [np.array([lengths.of(source[i]) for i in range(len(source))], np.float32) for source in data_opened.sources]
    shares, batches = {}, {}
    for name, order in (("random", plain), ("length", arranged)):
        assert isinstance(order, Order)
        steps = order.steps(samples)
        shares[name] = padded_share(counts, order, steps, micro_batch)
        with Loader(data_opened.sources, order, inputs, seed=0, micro_batch=micro_batch, workers=0, stop_step=steps) as loader:
            batches[name] = [micro.batch for batch in loader for micro in batch.micro]
    return built, shares, batches


def seconds(built: ModelBundle, batches: list[Any]) -> float:
    """CPU seconds of forward and backward."""
    loss, began = built.family.Loss(built.section), time.process_time()
    for batch in batches:
        sum(loss.sums(built.model, batch).values()).backward()
    return time.process_time() - began


def main(samples: int = 512, micro_batch: int = 8, rounds: int = 3) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        written(folder, samples)
        for family in FAMILIES:
            built, shares, batches = prepared(folder, family, samples, micro_batch)
            turns = [{name: seconds(built, batches[name]) for name in batches} for _ in range(rounds)]
            ratios = [turn["random"] / turn["length"] for turn in turns]
            print(
                f"{family}: {samples} samples, micro-batches of {micro_batch}: padding {shares['random']:.1%} -> {shares['length']:.1%}; "
                f"{median(turn['random'] for turn in turns):.2f} s -> {median(turn['length'] for turn in turns):.2f} s CPU, "
                f"{median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})"
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
