"""Samples per second: plait's loader, torch DataLoader over tarfile, webdataset, and datasets, on the same shards at equal work.

    OMP_NUM_THREADS=1 python benchmarks/loader.py [--data DIR] [--rounds 5] [--samples 4000]

Equal work: read image and label in shuffled order, decode, resize with torch's antialiased kernel, scale to [-1, 1], collate into batches
of 64; two workers each, and a consumer that reads every number once, as a copy to a device would. Each peer runs twice: as its
documentation has it (Pillow, every sample to its tensor, then the default collate), and with plait's own functions for decoding and for
resizing a batch in one call, so that nothing differs but the loader. Before anything is timed, samples of each are held to the bit against
their files. Start-up and the first 8 batches are not counted. Rounds are interleaved and the median is told: of wall time, and of the
processor time of all processes per sample, which other programs disturb less. The table goes to the screen, the figures to
benchmarks/results/loader.json.
"""

import argparse
import io
import itertools
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

import datasets
import numpy as np
import torch
import webdataset
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler, default_collate

from plait.config.schema import SourceEntry
from plait.data import images
from plait.data.loading.loader import Loader
from plait.data.order import Order
from plait.data.sources.open import open_source
from plait.files import write_json

BATCH, WORKERS, SKIPPED = 64, 2, 8
DATA = Path(os.environ.get("PLAIT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
RESULTS = Path(__file__).resolve().parent / "results" / "loader.json"


Example = tuple[str, torch.Tensor, str]


class Encoder:
    """The work, the same for everyone. As a family's Inputs it serves plait's loader."""

    def __init__(self, size: int) -> None:
        self.size = size

    def pixels(self, data: bytes) -> torch.Tensor:
        return images.decode(data, at_least=(self.size, self.size))

    def encode(self, sample: dict, key: int) -> Example:
        return sample["id"].rpartition("/")[2], self.pixels(sample["images"][0]), sample["fields"]["label"]

    def collate(self, examples: list[Example]) -> dict:
        names, pictures, labels = zip(*examples, strict=True)
        pixels = images.resize_all(pictures, self.size, self.size, mode="bilinear")
        return {"name": names, "pixels": images.to_unit(pixels), "label": labels}


class Usual(Encoder):
    """The same result in the way of the peers' tutorials."""

    def pixels(self, data: bytes) -> torch.Tensor:
        picture = torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)
        if picture.shape[1:] != (self.size, self.size):
            picture = F.interpolate(picture[None], (self.size, self.size), mode="bilinear", antialias=True)[0]
        return picture.float().div(127.5).sub(1.0)

    def collate(self, examples: list[Example]) -> dict:
        return dict(zip(("name", "pixels", "label"), default_collate(examples), strict=True))


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
                self.members += [(shard, stem, kinds) for stem, kinds in by_stem.items()]

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, i: int) -> Example:
        shard, stem, kinds = self.members[i]
        if shard not in self.handles:
            self.handles[shard] = tarfile.open(shard)  # noqa: SIM115  # for as long as the worker lives
        tar = self.handles[shard]
        return stem, self.encoder.pixels(tar.extractfile(kinds["jpg"]).read()), json.load(tar.extractfile(kinds["json"]))["label"]


def ours(shards: list[Path], encoder: Encoder, kind: str) -> Iterator[dict]:
    names = ",".join(shard.name for shard in shards)
    pattern = str(shards[0].parent / (f"{{{names}}}" if len(shards) > 1 else names))
    source = open_source(SourceEntry(source="shards", path=pattern), seed=0)
    order = Order([len(source)], [1.0], 0, BATCH)
    with Loader([source], order, encoder, seed=0, workers=WORKERS, kind=kind, prefetch=4) as loader:
        for step in loader:
            yield step.micro[0].batch


def torch_loader(shards: list[Path], encoder: Encoder) -> Iterator[dict]:
    dataset = TarImages(shards, encoder)
    endless = RandomSampler(dataset, num_samples=1 << 30)  # one permutation after the other: no restart of workers between epochs
    yield from DataLoader(dataset, BATCH, sampler=endless, num_workers=WORKERS, collate_fn=encoder.collate)


def web(shards: list[Path], encoder: Encoder) -> Iterator[dict]:
    def encode(sample: dict) -> Example:
        return sample["__key__"], encoder.pixels(sample["jpg"]), json.loads(sample["json"])["label"]

    dataset = webdataset.WebDataset([str(s) for s in shards], shardshuffle=False, resampled=True, nodesplitter=webdataset.split_by_node)
    chain = dataset.shuffle(1000).map(encode).batched(BATCH, collation_fn=encoder.collate)
    yield from webdataset.WebLoader(chain, batch_size=None, num_workers=WORKERS)


class Rows(Dataset):
    """The shards as a table of the library datasets, which converts them to Arrow first; that is not counted."""

    def __init__(self, shards: list[Path], encoder: Encoder) -> None:
        datasets.disable_progress_bars()
        folder = (
            str(shards[0].parent / "arrow") if os.access(shards[0].parent, os.W_OK) else str(Path(tempfile.gettempdir()) / "plait-arrow")
        )
        rows = datasets.load_dataset("webdataset", data_files=[str(shard) for shard in shards], split="train", cache_dir=folder)
        self.encoder, self.rows = encoder, rows.cast_column("jpg", datasets.Image(decode=False))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Example:
        row = self.rows[i]
        return row["__key__"], self.encoder.pixels(row["jpg"]["bytes"]), row["json"]["label"]


def table(shards: list[Path], encoder: Encoder) -> Iterator[dict]:
    rows = Rows(shards, encoder)
    endless = RandomSampler(rows, num_samples=1 << 30)
    yield from DataLoader(rows, BATCH, sampler=endless, num_workers=WORKERS, collate_fn=encoder.collate)


PEERS: dict[str, Callable[[list[Path], Encoder], Iterator[dict]]] = {
    "plait, threads": lambda shards, encoder: ours(shards, encoder, "threads"),
    "plait, processes": lambda shards, encoder: ours(shards, encoder, "processes"),
    "DataLoader": lambda shards, encoder: torch_loader(shards, Usual(encoder.size)),
    "DataLoader, our functions": torch_loader,
    "webdataset": lambda shards, encoder: web(shards, Usual(encoder.size)),
    "webdataset, our functions": web,
    "datasets": lambda shards, encoder: table(shards, Usual(encoder.size)),
    "datasets, our functions": table,
}


def check(name: str, shards: list[Path], encoder: Encoder) -> None:
    """Hold two batches against the files themselves, decoded and resized one by one."""
    files = {}
    for shard in shards:
        with tarfile.open(shard) as tar:
            files |= {member.name: tar.extractfile(member).read() for member in tar}
    batches = PEERS[name](shards, encoder)
    for batch in itertools.islice(batches, 2):
        for stem, pixels, label in zip(batch["name"], batch["pixels"], batch["label"], strict=True):
            alone = images.resize(images.decode(files[f"{stem}.jpg"]), encoder.size, encoder.size, mode="bilinear")
            if not torch.equal(pixels, images.to_unit(alone)) or label != json.loads(files[f"{stem}.json"])["label"]:
                raise SystemExit(f"{name}: sample {stem} is not what its file holds")
    batches.close()


def processor_s() -> float:
    """Processor time of this process and its living descendants, in seconds."""
    ticks, parents = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        parents[int(stat.parent.name)], ticks[int(stat.parent.name)] = int(after[1]), int(after[11]) + int(after[12])
    family = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(ticks[pid] for pid in family) / os.sysconf("SC_CLK_TCK")


def rate(batches: Iterator[dict], samples: int) -> dict[str, float]:
    """Samples per second of wall time, and microseconds of processor time per sample, after the first batches."""
    for _ in range(SKIPPED):
        next(batches)["pixels"].sum()
    start, began, seen = time.perf_counter(), processor_s(), 0
    while seen < samples:
        batch = next(batches)
        batch["pixels"].sum()
        seen += len(batch["label"])
    figures = {"samples_per_s": seen / (time.perf_counter() - start), "processor_us": (processor_s() - began) / seen * 1e6}
    batches.close()
    return figures


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
    for name in PEERS:
        check(name, shards, encoder)
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in PEERS}
    for number in range(rounds):
        names = list(PEERS)
        random.Random(number).shuffle(names)
        for name in names:
            taken[name].append(rate(PEERS[name](shards, encoder), samples))
    median = {name: {what: statistics.median(one[what] for one in rows) for what in rows[0]} for name, rows in taken.items()}
    print(f"\n{title}: median of {rounds} rounds, {samples} samples each; x: wall time (processor time) of a peer over plait's")
    for name, mine in median.items():
        slowest, fastest = (pick(one["samples_per_s"] for one in taken[name]) for pick in (min, max))
        print(f"  {name:26s} {mine['samples_per_s']:6.0f}/s ({slowest:.0f} to {fastest:.0f}) {mine['processor_us']:6.0f} us")
        for peer, theirs in median.items():
            if name.startswith("plait") and not peer.startswith("plait"):
                wall, work = mine["samples_per_s"] / theirs["samples_per_s"], theirs["processor_us"] / mine["processor_us"]
                print(f"    {wall:.2f}x ({work:.2f}x) {peer}")
    return {"title": title, "rounds": taken, "median": median}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=4000)
    asked = parser.parse_args()
    load_before = os.getloadavg()[0]  # others at work on the machine make the figures worthless; say so in the record
    small = sorted((asked.data / "cifar10").glob("train-*.tar"))
    if not small:
        files = "tar shards of CIFAR-10, <key>.jpg and <key>.json with a label, are not part of the repository"
        parser.error(f"no train-*.tar in {asked.data / 'cifar10'}: {files}; --data or PLAIT_DATA names the folder that has cifar10/")
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            compare("CIFAR-10 JPEG 32 px to 64 px", small, 64, asked.samples, asked.rounds),
            compare("JPEG 512 px to 512 px", large_shards(Path(folder)), 512, max(BATCH, asked.samples // 10), asked.rounds),
        ]
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__, "load_before": load_before}
    write_json(RESULTS, {"machine": machine, "batch": BATCH, "workers": WORKERS, "rows": rows})


if __name__ == "__main__":
    main()
