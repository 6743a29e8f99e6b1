"""Prompts and reference images as conditions: by the words that the model learned, or by the encoders that its shards were made with."""

from collections.abc import Sequence
from pathlib import Path

import torch

from plait.errors import PlaitError
from plait.families.nanodit.inputs import Conditions, Inputs


def conditions(inputs: Inputs, prompts: Sequence[str], image: Path | None, device: torch.device) -> list[Conditions]:
    """One per prompt, all with the same reference image. An empty prompt is none."""
    config = inputs.config
    if image is not None and not image.is_file():
        raise PlaitError(f"generate: --image: no file {image}")
    if image is not None and not config.image_dim:
        raise PlaitError("generate: --image: this model was trained without reference images (model.image_dim is 0)")
    if config.text == "words" and image is None:
        return [Conditions(inputs.words(prompt)) for prompt in prompts]
    raise PlaitError("generate: encoders")
