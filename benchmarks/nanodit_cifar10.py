"""Class-conditional CIFAR-10 samples of a trained run, scored by a small classifier that is trained here, on the same 10,000 photos.

The classifier's own accuracy on the 2,000 held-out photos says how far to trust it. Samples are drawn with averaged and with last weights,
from the same noise, at several guidance scales. `spread` is the mean distance between samples of a class over that between photos of it:
well below 1, the model repeats itself.
Run: python benchmarks/nanodit_cifar10.py RUN [samples per class] [steps]
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from plait.assembly import saved
from plait.config.schema import SourceEntry
from plait.data import images
from plait.data.sources.open import open_source
from plait.engine.parallel.distributed import Ranks
from plait.families.nanodit import pictures
from plait.families.nanodit.network.conditions import Conditions
from plait.families.nanodit.sampler import Request, draw
from plait.keys import key

DATA = "../shared/data/cifar10"
SCALES = (1.0, 2.0, 3.0)
EPOCHS, BATCH = 12, 64


def photos(split: str) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """All photos of a split in [-1, 1] with their class numbers."""
    source = open_source(SourceEntry(source="shards", path=DATA), seed=0, split=split)
    pixels, labels = [], []
    for i in range(len(source)):
        sample = source[i]
        pixels.append(images.to_unit(images.decode(sample["images"][0])))
        labels.append(sample["fields"]["label"])
    names = sorted(set(labels))
    return torch.stack(pixels), torch.tensor([names.index(label) for label in labels]), names


def classifier() -> nn.Module:
    """Three stages of two convolutions, 0.6 M parameters."""
    layers: list[nn.Module] = []
    for wide_in, wide in ((3, 48), (48, 96), (96, 192)):
        for first in (wide_in, wide):
            layers += [nn.Conv2d(first, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(192, 10))


def train_classifier(x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    """With mirrored and shifted photos, one-cycle learning rate."""
    torch.manual_seed(0)
    model = classifier().to(memory_format=torch.channels_last)
    steps = EPOCHS * (len(x) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for some in torch.randperm(len(x))[: len(x) // BATCH * BATCH].split(BATCH):
            batch = torch.where((torch.rand(BATCH) < 0.5)[:, None, None, None], x[some].flip(-1), x[some])
            down, right = torch.randint(0, 9, (2,)).tolist()
            batch = F.pad(batch, (4, 4, 4, 4), mode="reflect")[..., down : down + 32, right : right + 32]
            optimizer.zero_grad()
            F.cross_entropy(model(batch), y[some], label_smoothing=0.05).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def share(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    return float(torch.cat([model(part).argmax(1) for part in x.split(256)]).eq(y).float().mean())


def spread(x: torch.Tensor, y: torch.Tensor) -> float:
    """Mean distance between two pictures of one class, over 8 x 8 averages."""
    small = F.avg_pool2d(x, 4).flatten(1)
    return float(np.mean([torch.pdist(small[y == c][:200]).mean() for c in y.unique()]))


def samples(run: Path, averaged: bool, scale: float, each: int, steps: int, names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """`each` samples of every class, from noise that does not depend on weights or scale."""
    located = saved.locate(run)
    built = saved.open_checkpoint(located, Ranks(0, 1, torch.device("cpu")), averaged=averaged)
    config = located.config
    inputs = built.inputs(config, train=False)
    sampling = inputs.config.sampling.model_copy(update={"text_scale": scale, "image_scale": 0.0, "steps": steps, "solver": "heun"})
    side = inputs.config.image_size
    asked = [Request(Conditions(inputs.words(name)), (3, side, side), key("cifar", i)) for i in range(each) for name in names]
    found = torch.cat([draw(built.model, inputs, asked[i : i + 100], sampling) for i in range(0, len(asked), 100)])
    return found.clamp(-1, 1), torch.arange(len(names)).repeat(each)


def main(run: Path, each: int, steps: int) -> None:
    began = time.perf_counter()
    x, y, names = photos("train")
    held_x, held_y, _ = photos("validation")
    kept = run / "classifier.safetensors"
    scorer = classifier()
    if kept.exists():
        scorer.load_state_dict(load_file(kept))
        scorer.eval()
    else:
        scorer = train_classifier(x, y)
        save_file({name: value.contiguous() for name, value in scorer.state_dict().items()}, kept)
    report = {"classifier on held-out photos": round(share(scorer, held_x, held_y), 4), "seconds": round(time.perf_counter() - began)}
    print(json.dumps(report), flush=True)
    real = spread(held_x, held_y)
    for averaged in (True, False):
        for scale in SCALES:
            began = time.perf_counter()
            drawn, labels = samples(run, averaged, scale, each, steps, names)
            figures = {
                "samples": len(drawn),
                "accuracy": round(share(scorer, drawn, labels), 4),
                "spread": round(spread(drawn, labels) / real, 3),
            }
            row = {"weights": "averaged" if averaged else "last", "text_scale": scale, "steps": steps, **figures}
            print(json.dumps({**row, "seconds": round(time.perf_counter() - began)}), flush=True)
            sheet = pictures.tile(pictures.as_pixels(drawn[:100]))
            Image.fromarray(sheet).resize((sheet.shape[1] * 2, sheet.shape[0] * 2), 0).save(run / f"samples-{row['weights']}-{scale:g}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(int(part) for part in (sys.argv[2:4] + ["50", "25"][len(sys.argv[2:4]) :])))
