"""What `plait data inspect` shows of an encoded sample: its crops as pictures, its text by what is supervised, and counts."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from plait.families.molmo.hf.sizes import PATCH
from plait.families.molmo.hf.tiling import TiledImage
from plait.families.molmo.inputs import Example, Inputs, Sample, TextTokenizer
from plait.families.molmo.packing.sequence import Row

_ENCODERS = {"clip": "CLIP", "siglip": "SigLIP", "dino": "DINOv2"}


def inspect(inputs: Inputs, sample: Sample, example: Example) -> dict[str, Any]:
    """Return {"images": [(H, W, 3) uint8], "labels": a name per image, "text": [(text, supervised)], "notes": {name: number}} to show."""
    row = example.row
    notes = {
        "tokens": len(row),
        "supervised": int((row.loss_weights > 0).sum()),
        "image tokens": int((row.ids >= inputs.tokenizer.image_start).sum()),
        "crops": sum(len(tiled.crops) for tiled in example.tiles),
        "annotations": int(row.annotations.max()),
        "cut": row.cut,
    }
    crops = [crop.permute(1, 2, 0).numpy() for tiled in example.tiles for crop in tiled.crops]
    labels = _labels(f"{_ENCODERS[inputs.config.tower.kind]}, {inputs.config.tower.image} px", example.tiles)
    return {"images": crops, "labels": labels, "text": _text_runs(inputs.tokenizer, row), "notes": notes}


def _labels(tower: str, tiles: Sequence[TiledImage]) -> list[str]:
    """Return what each crop of each image is: ["CLIP, 336 px, whole picture", "CLIP, 336 px, crop 1 of 4", ...]."""
    labels = []
    for number, tiled in enumerate(tiles, 1):
        which = f"{tower}, picture {number}" if len(tiles) > 1 else tower
        count = len(tiled.crops) - 1  # the first shows the whole picture
        labels += [f"{which}, whole picture", *(f"{which}, crop {crop} of {count}" for crop in range(1, count + 1))]
    return labels


def _text_runs(tokenizer: TextTokenizer, row: Row) -> list[tuple[str, bool]]:
    """Return (text, supervised) of each run of text or image positions; images are shortened to the number of their patches."""
    image = row.ids >= tokenizer.image_start
    supervised = torch.zeros(len(row), dtype=torch.bool)
    supervised[1:] = row.loss_weights[:-1] > 0  # the weight of a position is that of the token after it
    starts_run = torch.ones(len(row), dtype=torch.bool)
    starts_run[1:] = (image[1:] != image[:-1]) | (supervised[1:] != supervised[:-1])
    runs: list[tuple[str, bool]] = []
    for start, stop in pairwise([*starts_run.nonzero()[:, 0].tolist(), len(row)]):
        ids = row.ids[start:stop].tolist()
        patches = sum(i == tokenizer.image_start + PATCH for i in ids)
        runs.append((f"[image x {patches}]" if image[start] else tokenizer.decode(ids, special=True), bool(supervised[start])))
    return runs
