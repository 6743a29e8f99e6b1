"""Samples per second: plait's loader, torch DataLoader over tarfile, and webdataset, on the same shards at equal work.

    python benchmarks/loader.py [--data DIR] [--rounds 5] [--samples 4000]

Equal work: read image and label in shuffled order, decode, resize, scale to [-1, 1], collate into batches of 64; two workers each.
Decoding, resizing and collating are the same functions in all of them. Start-up and the first 8 batches are not counted. Rounds are
interleaved and the median is told. The table goes to the screen, the figures to benchmarks/results/loader.json.
"""

import argparse
import io
import json
import os
import platform
import random
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader, Dataset, RandomSampler

from plait.config import Source
from plait.data import images
from plait.data.loader import Loader
from plait.data.order import Order
from plait.data.sources import open_source
from plait.files import write_json

BATCH, WORKERS, SKIPPED = 64, 2, 8
DATA = Path(os.environ.get("PLAIT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
RESULTS = Path(__file__).resolve().parent / "results" / "loader.json"


class Encoder:
    """The work, the same for everyone. As a family's Inputs it serves plait's loader."""

    def __init__(self, size: int) -> None:
        self.size = size

    def pixels(self, data: bytes) -> torch.Tensor:
        decoded = images.decode(data, at_least=(self.size, self.size))
        return images.resize(decoded, self.size, self.size, mode="bilinear")

    def encode(self, sample: dict, key: int) -> tuple[torch.Tensor, str]:
        return self.pixels(sample["images"][0]), sample["fields"]["label"]

    def collate(self, examples: list[tuple[torch.Tensor, str]]) -> dict:
        return {"pixels": images.to_unit(torch.stack([pixels for pixels, _ in examples])), "label": [label for _, label in examples]}


class TarImages(Dataset):
    """What one writes around tarfile: the members are listed once, each worker opens its own handles."""

    def __init__(self, shards: list[Path], encoder: Encoder) -> None:
        self.encoder, self.members, self.handles = encoder, [], {}
        for shard in shards:
            with tarfile.open(shard) as tar:
                by_stem: dict[str, dict[str, tarfile.TarInfo]] = {}
                for member in tar:
                    stem, _, kind = member.name.partition(".")
                    by_stem.setdefault(stem, {})[kind] = member
                self.members += [(shard, kinds) for kinds in by_stem.values()]

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, str]:
        shard, kinds = self.members[i]
        if shard not in self.handles:
            self.handles[shard] = tarfile.open(shard)  # noqa: SIM115  # for as long as the worker lives
        tar = self.handles[shard]
        return self.encoder.pixels(tar.extractfile(kinds["jpg"]).read()), json.load(tar.extractfile(kinds["json"]))["label"]


def ours(shards: list[Path], encoder: Encoder, kind: str) -> Iterator[dict]:
    names = ",".join(shard.name for shard in shards)
    pattern = str(shards[0].parent / (f"{{{names}}}" if len(shards) > 1 else names))
    source = open_source(Source(source="shards", path=pattern), seed=0)
    order = Order([len(source)], [1.0], 0, BATCH)
    with Loader([source], order, encoder, seed=0, workers=WORKERS, kind=kind, prefetch=4) as loader:
        for step in loader:
            yield step.micro[0].batch


def torch_loader(shards: list[Path], encoder: Encoder) -> Iterator[dict]:
    dataset = TarImages(shards, encoder)
    endless = RandomSampler(dataset, num_samples=1 << 30)  # one permutation after the other: no restart of workers between epochs
    yield from DataLoader(dataset, BATCH, sampler=endless, num_workers=WORKERS, collate_fn=encoder.collate)


def web(shards: list[Path], encoder: Encoder) -> Iterator[dict]:
    def encode(sample: dict) -> tuple[torch.Tensor, str]:
        return encoder.pixels(sample["jpg"]), json.loads(sample["json"])["label"]

    dataset = webdataset.WebDataset([str(s) for s in shards], shardshuffle=False, resampled=True, nodesplitter=webdataset.split_by_node)
    chain = dataset.shuffle(1000).map(encode).batched(BATCH, collation_fn=encoder.collate)
    yield from webdataset.WebLoader(chain, batch_size=None, num_workers=WORKERS)


PEERS: dict[str, Callable[[list[Path], Encoder], Iterator[dict]]] = {
    "plait, threads": lambda shards, encoder: ours(shards, encoder, "threads"),
    "plait, processes": lambda shards, encoder: ours(shards, encoder, "processes"),
    "torch DataLoader": torch_loader,
    "webdataset": web,
}


def rate(batches: Iterator[dict], samples: int) -> float:
    """Samples per second after the first batches."""
    for _ in range(SKIPPED):
        next(batches)
    start, seen = time.perf_counter(), 0
    while seen < samples:
        seen += len(next(batches)["label"])
    took = time.perf_counter() - start
    batches.close()
    return seen / took


def large_shards(folder: Path, samples: int = 400, side: int = 512) -> list[Path]:
    """Generated JPEGs with the detail of photographs: smoothed noise over a gradient."""
    draw = np.random.default_rng(0)
    with tarfile.open(folder / "large-00000.tar", "w") as tar:
        for number in range(samples):
            noise = Image.fromarray(draw.integers(0, 256, (side // 4, side // 4, 3), np.uint8)).resize(
                (side, side), Image.Resampling.BICUBIC
            )
            body = io.BytesIO()
            noise.save(body, "JPEG", quality=85)
            for kind, data in (("jpg", body.getvalue()), ("json", json.dumps({"label": str(number)}).encode())):
                member = tarfile.TarInfo(f"{number:06d}.{kind}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return [folder / "large-00000.tar"]


def compare(title: str, shards: list[Path], size: int, samples: int, rounds: int) -> dict:
    encoder = Encoder(size)
    figures: dict[str, list[float]] = {name: [] for name in PEERS}
    for number in range(rounds):
        names = list(PEERS)
        random.Random(number).shuffle(names)
        for name in names:
            figures[name].append(rate(PEERS[name](shards, encoder), samples))
    medians = {name: statistics.median(values) for name, values in figures.items()}
    print(f"\n{title}: median of {rounds} rounds, {samples} samples each")
    for name, median in medians.items():
        spread = f"{min(figures[name]):8.0f} to {max(figures[name]):.0f}"
        against = "  ".join(
            f"{median / medians[peer]:.2f}x {peer}" for peer in ("torch DataLoader", "webdataset") if name.startswith("plait")
        )
        print(f"  {name:18s} {median:8.0f} samples/s  ({spread.strip()})  {against}")
    return {"title": title, "rounds": figures, "median": medians}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=4000)
    asked = parser.parse_args()
    load_before = os.getloadavg()[0]  # others at work on the machine make the figures worthless; say so in the record
    small = sorted((asked.data / "cifar10").glob("train-*.tar"))
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            compare("CIFAR-10 JPEG 32 px to 64 px", small, 64, asked.samples, asked.rounds),
            compare("JPEG 512 px to 512 px", large_shards(Path(folder)), 512, max(BATCH, asked.samples // 10), asked.rounds),
        ]
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__, "load_before": load_before}
    write_json(RESULTS, {"machine": machine, "batch": BATCH, "workers": WORKERS, "rows": rows})


if __name__ == "__main__":
    main()
