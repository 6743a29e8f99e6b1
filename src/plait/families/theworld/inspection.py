"""What the model sees of a sample, for `plait data inspect`: its pictures, its text with what is supervised, and counts.

Also how many tokens its row will have, from its text and the number of its pictures and frames.
"""

import functools
from itertools import pairwise
from typing import Any

import torch
import xxhash
from torch import Tensor

from plait.data.rollouts import stored
from plait.errors import BadSample
from plait.families.lengths import TokenLengths
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


def token_lengths(inputs: Inputs) -> TokenLengths:
    """Return the lengths of the rows that `inputs` makes."""
    decides = f"{inputs.config.model_dump_json()} {inputs.chat.tokenizer.to_str()}"
    return TokenLengths(xxhash.xxh3_64_hexdigest(decides.encode()), functools.partial(_length, inputs), functools.partial(_pixels, inputs))


def _length(inputs: Inputs, sample: Sample) -> int:
    spans = inputs.chat.spans(sample["messages"], len(sample["images"]))
    latent_frames = _latent_frames(inputs, sample)
    world = latent_frames * inputs.tokens_per_frame + 2 if latent_frames else 0
    return sum(len(span.ids) for span in spans) + world


def _pixels(inputs: Inputs, sample: Sample) -> int:
    """Return the pixels of a sample's pictures for the vision tower, and of its frames for the world encoder."""
    count = len(sample["images"]) * inputs.image_size**2
    if inputs.config.world is None or inputs.grid is None or stored.FIELD in sample:
        return count
    clip = sample.get("frames") or []
    frames = inputs.grid.kept(len(clip), inputs.config.world.steps) if clip or sample["images"] else 0
    return count + frames * inputs.config.world.image_size**2


def _latent_frames(inputs: Inputs, sample: Sample) -> int:
    """Return how many latent frames the world block of a sample has; 0 without one."""
    world, grid = inputs.config.world, inputs.grid
    if world is None or grid is None:
        return 0
    if stored.FIELD in sample:
        return 1 + world.steps
    clip = sample.get("frames") or []
    if not clip and not sample["images"]:
        return 0
    kept = grid.kept(len(clip), world.steps)
    if kept == 1 and world.steps:
        raise BadSample("it has too few frames")  # encode says which
    return grid.latent_frames(kept)
