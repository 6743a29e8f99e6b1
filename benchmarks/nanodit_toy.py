"""Two-colour pictures with exact labels: does the text set the position and the reference image the colour, each alone and both together?

1,200 pictures of a red or blue dot on the left or right, captioned "left dot" / "right dot", become latent shards with the tiny encoders
(mirrored in training, with their captions' twins); a small model trains on them through `plait train`; bench `toy` evaluates it on pictures
that training has not seen. Run: python benchmarks/nanodit_toy.py [folder] [--name=value of the configuration ...]
"""

import json
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from plait.assembly import saved
from plait.cli import main
from plait.data import images
from plait.engine.parallel.distributed import Ranks
from plait.families.nanodit import pictures
from plait.families.nanodit.network.conditions import Conditions
from plait.families.nanodit.sampler import Request, draw
from plait.keys import key, rng
from plait.nn import encoders

PICTURES = 1200
COLOURS = {"red": (220, 50, 40), "blue": (50, 80, 220)}
CONFIG = """
family: nanodit
model:
  {depth: 3, hidden: 96, heads: 4, channels: 12, text_dim: 64, image_dim: 64, metadata: SHARDS, flip: {probability: 0.5},
   sampling: {steps: 25, text_scale: 3.0, image_scale: 2.0}}
data:
  train: [{source: latents, path: SHARDS, options: {held_out: 0.1}}]
  validation: [{source: latents, path: SHARDS, options: {held_out: 0.1}}]
  workers: 1
train: {steps: 1500, global_batch: 32}
optim:
  {lr: 2.0e-3, weight_decay: 0.03, schedule: {name: cosine, warmup_steps: 50}, ema: {decay: 0.99, warmup_steps: 50}}
evaluate:
  - {bench: toy, every_steps: 250, samples: 64, batch: 16}
  - {bench: divergence, every_steps: 500, samples: 16}
  - {bench: edit, every_steps: 500, samples: 16}
  - {bench: swap, every_steps: 500, samples: 16}
checkpoint: {every_steps: 250}
track: {every_steps: 25, tensorboard: false}
"""


def photographs(folder: Path) -> Path:
    """The pictures and their JSON lines."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(PICTURES):
        random = rng("toy", i)
        position, colour = ("left", "right")[i % 2], list(COLOURS)[i // 2 % 2]
        x, y, r = random.uniform(8, 11), random.uniform(11, 21), random.uniform(5, 6.5)
        x = x if position == "left" else 32 - x
        big = Image.new("RGB", (128, 128), (40, 40, 44))
        ImageDraw.Draw(big).ellipse([4 * (x - r), 4 * (y - r), 4 * (x + r), 4 * (y + r)], fill=COLOURS[colour])
        big.resize((32, 32), Image.Resampling.BOX).save(folder / f"{i}.png")
        lines.append({"image": f"{i}.png", "caption": f"{position} dot", "position": position, "colour": colour})
    path = folder / "toy.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(folder: Path, overrides: list[str]) -> None:
    """Make, shard, train; print the figures of every evaluation."""
    began, shards = time.perf_counter(), folder / "shards"
    if not (shards / "metadata.json").exists():
        source = photographs(folder / "pictures")
        encoders = ["--latents=tiny:4x12", "--texts=tiny", "--images=tiny", "--buckets=32x32"]
        assert main(["data", "shard", str(source), str(shards), *encoders]) == 0
    config = folder / "toy.yaml"
    config.write_text(CONFIG.replace("SHARDS", str(shards)))
    assert main(["train", str(config), f"--run={folder / 'run'}", *overrides]) == 0
    for line in (folder / "run" / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        shown = {name: round(value, 3) for name, value in row.items() if name.startswith("eval/") and np.isscalar(value)}
        if shown:
            print(row["step"], shown)
    print(f"{time.perf_counter() - began:.0f} s")
    for guidance, (text, image) in product(("two_scale", "joint"), ((1.0, 1.0), (2.0, 1.5), (3.0, 2.0))):
        scales = {"guidance": guidance, "text_scale": text, "image_scale": image}
        print("by pixels", scales, by_pixels(folder / "run", scales))


@torch.no_grad()
def by_pixels(run: Path, scales: dict[str, Any], each: int = 50) -> dict[str, float]:
    """A stricter scorer than the bench's nearest mean picture: nine tenths of what stands out lie on the right side, in the right colour.

    "left dot" and "right dot" with a red or a blue reference, and each alone; `each` pictures of every combination.
    """
    located = saved.locate(run)
    built = saved.open_checkpoint(located, Ranks(0, 1, torch.device("cpu")))
    config = located.config
    inputs = built.inputs(config, train=False)
    sampling = inputs.config.sampling.model_copy(update=scales)
    show, texts, looks = pictures.decoder(inputs, torch.device("cpu")), encoders.open_texts("tiny"), encoders.open_images("tiny")
    said = {side: torch.tensor(texts.encode([f"{side} dot"])[0][0]) for side in ("left", "right")}
    files = {colour: run.parent / "pictures" / f"{number}.png" for number, colour in ((0, "red"), (2, "blue"))}
    seen = {colour: looks.encode(images.decode(file.read_bytes())[None])[0] for colour, file in files.items()}
    right: dict[str, list[bool]] = {"both": [], "text": [], "image": []}
    for side, colour in product(said, seen):
        for way, results in right.items():
            shown = Conditions(said[side], seen[colour]).only(text=way != "image", image=way != "text")
            asked = [Request(shown, (12, 8, 8), key("by pixels", side, colour, i)) for i in range(each)]
            for picture in show(draw(built.model, inputs, asked, sampling)):
                apart = np.abs(picture.astype(int) - np.array([40, 40, 44])).max(-1).clip(40) - 40
                share_left = apart[:, :16].sum() / max(apart.sum(), 1)
                redder = (apart * (picture[..., 0] > picture[..., 2])).sum() / max(apart.sum(), 1)
                placed = (share_left if side == "left" else 1 - share_left) >= 0.9
                coloured = (redder if colour == "red" else 1 - redder) >= 0.9
                enough = apart.sum() > 16 * 150
                results.append(bool(enough and (placed or way == "image") and (coloured or way == "text")))
    return {way: round(sum(found) / len(found), 3) for way, found in right.items()}


if __name__ == "__main__":
    paths = [part for part in sys.argv[1:] if not part.startswith("--")]
    run(Path(paths[0] if paths else "runs/nanodit-toy").resolve(), [part for part in sys.argv[1:] if part.startswith("--")])
