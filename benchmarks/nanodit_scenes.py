"""Drawn scenes by a trained run of `configs/nanodit/tiny.yaml`: are the colours and shapes that a held-out caption names in the picture?

A small convolutional network learns from freshly drawn scenes (same options, another seed) which colours and which shapes are in a picture:
one yes or no for each of the 9 colours and 8 shapes. The run then draws held-out captions as `plait generate` does, eight to a seed.

A picture has its colour right where the network finds every colour that the caption names, and its shape right where it finds every shape:
with two objects both must be there. `exactly` also asks that nothing else is found. `guessing` scores each picture by the captions of all
other pictures. Intervals are Wilson's, 95 %. Writes benchmarks/results/nanodit_scenes.json, and RUN/scenes/sheet.png to look at.
Run: OMP_NUM_THREADS=1 python benchmarks/nanodit_scenes.py RUN [--captions=256]
"""

import argparse
import json
import math
import re
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from plait.assembly import saved
from plait.data import images
from plait.data.sources.open import open_source
from plait.data.synthetic.lexicon import COLOURS, SHAPES
from plait.data.synthetic.scenes import Scenes
from plait.engine.parallel.distributed import Ranks
from plait.families.nanodit import pictures
from plait.families.nanodit.generate import GenerateOptions, generate
from plait.families.nanodit.inputs import caption

RESULTS = Path(__file__).parent / "results/nanodit_scenes.json"
OPTIONS: dict[str, Any] = {"tasks": ["caption"], "objects": [1, 2]}  # as at the head of the recipe
SEED = 1  # of the scenes that the network learns from; those of the recipe have 0
DRAWN, HELD_OUT = 6_000, 1_000  # scenes for the network, and to measure it by
EPOCHS, BATCH, NOISE = 8, 64, 0.05
PER_SEED = 8  # captions drawn from the same noise
WORDS = {"colour": tuple(COLOURS), "shape": SHAPES}


def named(text: str) -> Tensor:
    """Which colours and shapes a caption names, (17,) of 0 and 1; plurals count."""
    said = {re.sub(r"(?<=cross)es$|(?<!cros)s$", "", word) for word in re.findall(r"\w+", text.lower())}
    return torch.tensor([float(word in said) for words in WORDS.values() for word in words])


def scenes(side: int, split: str, count: int) -> tuple[Tensor, Tensor]:
    """Drawn pictures (n, 3, side, side) uint8 and what is in them (n, 17). No pair of colour and shape is kept out."""
    source = Scenes({**OPTIONS, "size": [side, side], "holdout": 0.0}, seed=SEED, split=split, length=count)
    drawn, labels = [], []
    for i in range(count):
        sample = source[i]
        drawn.append(images.decode(sample["images"][0]))
        labels.append(named(" ".join(f"{thing['colour']} {thing['shape']}" for thing in sample["fields"]["objects"])))
    return torch.stack(drawn), torch.stack(labels)


def network() -> nn.Module:
    """Three convolutions with a pooling after each, two more, and the largest response of each feature anywhere: 0.3 M parameters."""
    layers: list[nn.Module] = []
    for wide_in, wide, pooled in ((3, 32, True), (32, 64, True), (64, 96, False), (96, 96, True), (96, 128, False)):
        layers += [nn.Conv2d(wide_in, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pooled else []
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(128, sum(map(len, WORDS.values()))))


def train_network(drawn: Tensor, labels: Tensor) -> nn.Module:
    """With mirrored pictures and a little noise; one-cycle learning rate."""
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=EPOCHS * (len(drawn) // BATCH))
    for _ in range(EPOCHS):
        for some in torch.randperm(len(drawn))[: len(drawn) // BATCH * BATCH].split(BATCH):
            batch = images.to_unit(drawn[some])
            batch = torch.where((torch.rand(BATCH) < 0.5)[:, None, None, None], batch, batch.flip(-1))
            batch = batch + NOISE * torch.rand(BATCH, 1, 1, 1) * torch.randn_like(batch)
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(model(batch), labels[some]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def found(model: nn.Module, drawn: Tensor) -> Tensor:
    """What the network finds in pictures (n, 3, h, w) uint8: (n, 17) bool."""
    return torch.cat([model(images.to_unit(part)) > 0 for part in drawn.split(256)])


def wilson(right: int, count: int) -> list[float]:
    """Wilson's interval of a share, 95 %."""
    z, share = 1.96, right / count
    middle, half = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return [round((middle + way * half) / (1 + z * z / count), 4) for way in (-1, 1)]


def score(seen: Tensor, asked: Tensor) -> dict[str, Any]:
    """Shares of pictures right in colour and in shape, with intervals and the level of guessing."""
    report, start = {}, 0
    for name, words in WORDS.items():
        has, wants = seen[:, start : start + len(words)], asked[:, start : start + len(words)].bool()
        start += len(words)
        right = (has | ~wants).all(1)
        crossed = (has[:, None] | ~wants[None]).all(2)  # (picture, caption)
        others = (crossed.sum() - right.sum()) / (len(seen) * (len(seen) - 1))
        report[name] = {
            "right": round(float(right.float().mean()), 4),
            "interval": wilson(int(right.sum()), len(right)),
            "guessing": round(float(others), 4),
            "exactly": round(float((has == wants).all(1).float().mean()), 4),
        }
    return report


def held_out(run: Path, count: int) -> tuple[list[str], float]:
    """Captions of the run's held-out samples, `count` at equal distances, and the share of them that training has word for word."""
    config = saved.locate(run).config
    held, trained = (
        [caption(source[i]) for entry in entries for source in [open_source(entry, seed=0, split=split)] for i in range(len(source))]
        for entries, split in ((config.data.validation, "validation"), (config.data.train, "train"))
    )
    chosen = [held[i * len(held) // count] for i in range(count)]
    return chosen, len([text for text in chosen if text in set(trained)]) / count


def draw(run: Path, captions: Sequence[str], out: Path) -> Tensor:
    """The run's pictures of the captions, (n, 3, h, w) uint8, by what `plait generate` calls, with the run's own sampling."""
    located = saved.locate(run)
    bundle = saved.open_checkpoint(located, Ranks(0, 1, torch.device("cpu")))
    checkpoint, config = located.checkpoint, located.config
    inputs, drawn = bundle.inputs(config, train=False), []
    for start in range(0, len(captions), PER_SEED):
        part, folder = captions[start : start + PER_SEED], out / f"seed-{start // PER_SEED}"
        options = GenerateOptions(prompt=list(part), seed=start // PER_SEED)
        generate(bundle.model, inputs, options, folder, f"step-{checkpoint.step}")
        by_prompt = {}
        for file in sorted(folder.glob("*-seed-*.png")):
            with Image.open(file) as picture:
                settings = json.loads(picture.text["plait"])
                by_prompt[settings["prompt"]] = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        drawn += [by_prompt[text] for text in part]
    return torch.stack(drawn)


def kept_network(folder: Path, side: int) -> tuple[nn.Module, dict[str, Any]]:
    """The network for pictures of this side, with its score on drawn scenes that it has not seen; both are made once and kept."""
    file, scored = folder / f"network-{side}.pt", folder / f"network-{side}.json"
    model = network()
    if not file.exists():
        model = train_network(*scenes(side, "train", DRAWN))
        folder.mkdir(parents=True, exist_ok=True)
        scored.write_text(json.dumps(score_of(model, *scenes(side, "test", HELD_OUT))))
        torch.save(model.state_dict(), file)
    model.load_state_dict(torch.load(file))
    return model.eval(), json.loads(scored.read_text())


def score_of(model: nn.Module, drawn: Tensor, asked: Tensor) -> dict[str, Any]:
    """The score of pictures by what the network finds in them."""
    return score(found(model, drawn), asked)


def main(run: Path, count: int) -> None:
    """Draw, score, print and write."""
    captions, known = held_out(run, count)
    out = run / "scenes"
    number = len(list(out.glob("drawn-*")))
    drawn = draw(run, captions, out / f"drawn-{number}")
    model, itself = kept_network(out, drawn.shape[-1])
    asked = torch.stack([named(text) for text in captions])
    objects = (asked[:, : len(COLOURS)].sum(1) + asked[:, len(COLOURS) :].sum(1)) > 2
    report = {
        "pictures": f"{drawn.shape[-1]}x{drawn.shape[-2]}",
        "captions": count,
        "captions that training has word for word": round(known, 4),
        "network on drawn scenes": itself,
        "generated": score_of(model, drawn, asked),
        "of one kind of object": {"captions": int((~objects).sum()), **score_of(model, drawn[~objects], asked[~objects])},
        "of two": {"captions": int(objects.sum()), **score_of(model, drawn[objects], asked[objects])},
        "seconds of this benchmark's processor": round(resource.getrusage(resource.RUSAGE_SELF).ru_utime),
    }
    print(json.dumps(report, indent=2))
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    sheet = pictures.tile(list(drawn[:64].permute(0, 2, 3, 1).numpy()))
    Image.fromarray(sheet).resize((sheet.shape[1] * 2, sheet.shape[0] * 2), 0).save(out / "sheet.png")
    (out / "sheet.txt").write_text("\n".join(captions[:64]) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--captions", type=int, default=256)
    given = parser.parse_args()
    main(given.run, given.captions)
