"""What the model sees of a sample, for `plait data inspect`: its pictures, its text with what is supervised, and counts."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from plait.families.theworld.chat import Chat
from plait.families.theworld.inputs import Example, Inputs, Sample
from plait.families.theworld.sequence import Kind, Row
from plait.nn.losses import IGNORED


def inspect(inputs: Inputs, sample: Sample, example: Example) -> dict[str, Any]:
    """Return {"images": [(H, W, 3) uint8], "labels": a name per image, "text": [(text, supervised)], "notes": {name: number}} to show."""
    images_shown = [image.permute(1, 2, 0).numpy() for image in (*example.pixels, *example.frames)]
    kinds, supervised = example.row.kinds, example.row.labels != IGNORED
    notes = {
        "tokens": len(example.row),
        "supervised": int(supervised.sum()),
        "image tokens": int((kinds == Kind.IMAGE).sum()),
        "world tokens": example.world_tokens,
        "world frames": len(example.frames),
        "cut": example.row.cut,
    }
    labels = [*_labels("SigLIP", example.pixels, "picture"), *_labels("world encoder", example.frames, "frame")]
    return {"images": images_shown, "labels": labels, "text": _text_runs(inputs.chat, example.row), "notes": notes}


def _labels(encoder: str, pictures: Tensor, noun: str) -> list[str]:
    """Return what each picture (n, 3, S, S) is: ["SigLIP, 896 px"]. Where there are several: ["SigLIP, 896 px, picture 1 of 2", ...]."""
    count, label = len(pictures), f"{encoder}, {pictures.shape[-1]} px"
    return [label] if count == 1 else [f"{label}, {noun} {number} of {count}" for number in range(1, count + 1)]


def _text_runs(chat: Chat, row: Row) -> list[tuple[str, bool]]:
    """Return (text, supervised) of each run of positions of one kind; images and worlds are named with their length."""
    names = {Kind.IMAGE: "image", Kind.WORLD: "world", Kind.WORLD_START: "start of world", Kind.WORLD_END: "end of world"}
    kinds, supervised = row.kinds, row.labels != IGNORED
    starts_run = torch.ones(len(kinds), dtype=torch.bool)
    starts_run[1:] = (kinds[1:] != kinds[:-1]) | (supervised[1:] != supervised[:-1])
    runs: list[tuple[str, bool]] = []
    for start, stop in pairwise([*starts_run.nonzero()[:, 0].tolist(), len(kinds)]):
        kind = Kind(int(kinds[start]))
        if kind == Kind.TEXT:
            text = chat.decode(row.ids[start:stop].tolist(), special=True)
        else:
            text = f"[{names[kind]}{f' x {stop - start}' if kind in (Kind.IMAGE, Kind.WORLD) else ''}]"
        runs.append((text, bool(supervised[start])))
    return runs
