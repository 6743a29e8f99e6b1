"""Encode prompts and a reference image as a model's conditions: word ids, or states of the encoders of its data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.data import cropping, images
from plait.errors import PlaitError
from plait.families.nanodit.inputs import Inputs
from plait.families.nanodit.network.conditions import Conditions
from plait.nn import encoders


def conditions(inputs: Inputs, prompts: Sequence[str], image: Path | None, device: torch.device, shape: Sequence[int]) -> list[Conditions]:
    """Encode each prompt, and the one reference image for all (None: no image); return Conditions per prompt. "" gives no text.

    `device`: where encoders run. The image is cropped to the aspect ratio of the samples' `shape` (C, H, W). Raises PlaitError for an image
    that is missing or that the model cannot use, and if the run does not know its encoders.
    """
    vector = _image_features(inputs, image, device, shape)
    if inputs.config.text == "words":
        return [Conditions(inputs.words(prompt), vector) for prompt in prompts]
    texts = [prompt for prompt in prompts if prompt]
    if not texts:
        return [Conditions(None, vector) for _ in prompts]
    pin = _pin(inputs, "texts")
    states = iter(encoders.reopen("texts", pin, pin.get("max_tokens"), str(device)).encode(texts))
    return [Conditions(torch.tensor(next(states)[0]) if prompt else None, vector) for prompt in prompts]


def _image_features(inputs: Inputs, image: Path | None, device: torch.device, shape: Sequence[int]) -> Tensor | None:
    if image is None:
        return None
    if not image.is_file():
        raise PlaitError(f"generate: --image: no file {image}")
    if not inputs.config.image_dim:
        raise PlaitError("generate: --image: this model was trained without reference images (model.image_dim is 0)")
    high, wide = (side * inputs.downsample for side in shape[1:])
    pixels = cropping.cover(images.decode(image.read_bytes(), at_least=(high, wide)), high, wide)
    return encoders.reopen("images", _pin(inputs, "images"), device=str(device)).encode(pixels[None])[0]


def _pin(inputs: Inputs, kind: encoders.Kind) -> Mapping[str, Any]:
    """Return the pin of the encoder of this kind that the shards were made with. Raises PlaitError where it is not recorded."""
    pin = inputs.encoder(kind)
    if pin is None:
        raise PlaitError("generate: the run does not know its encoders: set model.metadata to the shards' folder when training")
    return pin
