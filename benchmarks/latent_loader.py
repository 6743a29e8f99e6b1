"""Bucketed latents: samples per second of the loader, against what the smallest models train at, on the same machine.

    python benchmarks/latent_loader.py [--samples 600] [--rounds 3]

Two sets are made of random arrays, in three buckets each. `tiny`: latents of about (48, 16, 16), as the tiny encoders give for 64 px;
`real`: latents of about (16, 64, 64), as a VAE gives for 512 px, with 120 to 200 text tokens of 1,024. Two workers load them, once with
nothing after reading (`read`) and once with the family's whole encoding and collation (`encoded`: noise, time, conditions). The models are
family nanodit's tiny preset and its smallest published size, 12/384, in float32 on the same cores: forward, backward, AdamW.
Rounds are interleaved and the median is told. The table goes to the screen, the figures to benchmarks/results/latent_loader.json.
"""

import argparse
import io
import json
import platform
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plait.data.aspect import Bucket
from plait.data.formats import npy
from plait.data.loading.bucketing import order_of
from plait.data.loading.loader import Loader
from plait.data.sources.latents import Latents
from plait.families.nanodit import family
from plait.files import write_json

BATCH, WORKERS = 16, 2
RESULTS = Path(__file__).resolve().parent / "results" / "latent_loader.json"
SETS: dict[str, dict[str, Any]] = {
    "tiny": {"buckets": [(64, 64), (48, 80), (80, 48)], "channels": 48, "downsample": 4, "width": 64, "tokens": (8, 24)},
    "real": {"buckets": [(512, 512), (416, 608), (608, 416)], "channels": 16, "downsample": 8, "width": 1024, "tokens": (120, 200)},
}
MODELS: dict[str, dict[str, Any]] = {
    "tiny": {"depth": 4, "hidden": 128, "heads": 4, "channels": 48, "text_dim": 64, "image_dim": 64},
    "real": {"size": "12/384"},
}


class Reading:
    """Inputs that only stack what the source gives."""

    def encode(self, sample: dict, key: int) -> torch.Tensor:
        return torch.from_numpy(sample["arrays"]["vae"])

    def collate(self, examples: list[torch.Tensor]) -> dict:
        return {"x0": torch.stack(examples)}


def pack(root: Path, samples: int, buckets: list, channels: int, downsample: int, width: int, tokens: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for bucket in (Bucket(*size) for size in buckets):
        folder = root / f"bucket_{bucket.name}"
        folder.mkdir(parents=True)
        with tarfile.open(folder / "shard-000000.tar", "w") as tar:
            for k in range(samples // len(buckets)):
                length = int(rng.integers(*tokens))
                shape = (channels, bucket.height // downsample, bucket.width // downsample)
                arrays = {
                    "vae": rng.standard_normal(shape, np.float32).astype(np.float16),
                    "t5h": rng.standard_normal((length, width), np.float32).astype(np.float16),
                    "t5m": np.ones(length, np.uint8),
                    "dinov3": rng.standard_normal(width, np.float32),
                }
                bodies = {"json": json.dumps({"caption": f"picture {k}"}).encode()} | {f"{n}.npy": npy.dump(a) for n, a in arrays.items()}
                for kind, body in bodies.items():
                    member = tarfile.TarInfo(f"{k:06d}.{kind}")
                    member.size = len(body)
                    tar.addfile(member, io.BytesIO(body))
    latents = {"channels": channels, "downsample": downsample, "mean": [0.0] * channels, "std": [1.0] * channels}
    write_json(root / "metadata.json", {"latents": latents, "texts": {"width": width}, "images": {"width": width}})


def loading(source: Latents, inputs: Any) -> float:
    """Samples per second over two epochs; the first steps, in which workers start, are not counted."""
    order = order_of([source], [1.0], 0, BATCH)
    steps = 2 * len(source) // BATCH
    with Loader([source], order, inputs, seed=0, workers=WORKERS, stop_step=steps) as loader:
        start = 0.0
        for _ in loader:
            start = start or time.perf_counter()
        return (steps - 1) * BATCH / (time.perf_counter() - start)


def training(source: Latents, section: Any, steps: int) -> float:
    """Samples per second of forward, backward and AdamW, on batches that are ready."""
    inputs, loss = family.Inputs(section, Path(), train=True), family.Loss(section)
    model = family.build(section, Path(), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    with Loader([source], order_of([source], [1.0], 0, BATCH), inputs, seed=0, workers=0, stop_step=steps + 1) as loader:
        batches = [step.micro[0].batch for step in loader]
    for k, batch in enumerate(batches):
        if k == 1:
            start = time.perf_counter()
        sums = loss.sums(model, batch)
        sum(loss.coefficients[name] * value / BATCH for name, value in sums.items() if loss.coefficients[name]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return steps * BATCH / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, facts in SETS.items():
            pack(Path(folder, name), given.samples, **facts)
            source = Latents(str(Path(folder, name)), {})
            section = family.Config.model_validate(MODELS[name])
            steps = 10 if name == "tiny" else 1
            runs: dict[str, Callable[[], float]] = {
                "read": lambda source=source: loading(source, Reading()),
                "encoded": lambda source=source, section=section: loading(source, family.Inputs(section, Path(), train=True)),
                "trained": lambda source=source, section=section, steps=steps: training(source, section, steps),
            }
            rates: dict[str, list[float]] = {run: [] for run in runs}
            for _ in range(given.rounds):
                for run, go in runs.items():
                    rates[run].append(go())
            found[name] = {run: round(statistics.median(rate), 1) for run, rate in rates.items()}
            row = found[name]
            told = ", ".join(f"{run} {rate:,.1f}/s" for run, rate in row.items())
            print(f"{name:5} {told}; encoded / trained = {row['encoded'] / row['trained']:.1f}")
            write_json(RESULTS, {"machine": platform.processor() or platform.machine(), "torch": torch.__version__, "samples_per_s": found})


if __name__ == "__main__":
    main()
