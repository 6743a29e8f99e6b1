"""Prompts and reference images as conditions: by the words that the model learned, or by the encoders that its shards were made with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.data import images
from plait.errors import PlaitError
from plait.families.nanodit.inputs import Conditions, Inputs
from plait.nn import encoders


def conditions(inputs: Inputs, prompts: Sequence[str], image: Path | None, device: torch.device, shape: Sequence[int]) -> list[Conditions]:
    """One per prompt, all with the same reference image, which is cropped to the picture's `shape` (C, H, W). An empty prompt is none."""
    vector = _image(inputs, image, device, shape)
    if inputs.config.text == "words":
        return [Conditions(inputs.words(prompt), vector) for prompt in prompts]
    said = [prompt for prompt in prompts if prompt]
    states = iter(_opened(inputs, "texts", device).encode(said) if said else [])
    return [Conditions(torch.tensor(next(states)[0]) if prompt else None, vector) for prompt in prompts]


def _image(inputs: Inputs, image: Path | None, device: torch.device, shape: Sequence[int]) -> Tensor | None:
    if image is None:
        return None
    if not image.is_file():
        raise PlaitError(f"generate: --image: no file {image}")
    if not inputs.config.image_dim:
        raise PlaitError("generate: --image: this model was trained without reference images (model.image_dim is 0)")
    high, wide = (side * inputs.downsample for side in shape[1:])
    pixels = images.cover(images.decode(image.read_bytes(), at_least=(high, wide)), high, wide)
    return _opened(inputs, "images", device).encode(pixels[None])[0]


def _opened(inputs: Inputs, kind: str, device: torch.device) -> Any:
    """The encoder of this kind that the shards were made with."""
    pin = inputs.encoder(kind)
    if pin is None:
        raise PlaitError("generate: the run does not know its encoders: set model.metadata to the shards' folder when training")
    return encoders.reopen(kind, pin, pin.get("max_tokens"), str(device))
