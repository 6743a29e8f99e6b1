"""Encoders of transformers that take pixels: normalised by the published mean and standard deviation of each colour."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils.hub import cached_file

from plait.errors import PlaitError
from plait.families.theworld.pretrained.encoder import Grid, WorldEncoder

log = logging.getLogger(__name__)

_FILES = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
IMAGENET = {"image_mean": list(IMAGENET_DEFAULT_MEAN), "image_std": list(IMAGENET_DEFAULT_STD)}
"""Those of ImageNet, which DINOv3 (web) and V-JEPA 2 are trained with."""


def published(source: str, where: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return {"image_mean", "image_std"} (red, green, blue; of pixels 0..1) from the preprocessor's file beside the weights.

    `where`: subfolder and revision. Where there is no such file: ImageNet's, with a warning. Raises PlaitError for other preprocessing.
    """
    for name in _FILES:
        path = cached_file(source, name, **where, _raise_exceptions_for_missing_entries=False)
        if path is not None:
            break
    else:
        log.warning(f"model.world.source: {source} has no {_FILES[0]}: pixels are normalised with ImageNet's mean and standard deviation")
        return IMAGENET
    found = json.loads(Path(path).read_text(encoding="utf-8"))
    found = next((found[part] for part in ("video_processor", "image_processor") if isinstance(found.get(part), dict)), found)
    if not found.get("do_normalize", True):
        return {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    if not found.get("do_rescale", True) or abs(found.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise PlaitError(f"model.world.source: {path} does not scale pixels by 1 / 255, which is the only way that is known here")
    return {name: [float(value) for value in found.get(name) or IMAGENET[name]] for name in IMAGENET}


class PixelEncoder(WorldEncoder):
    """Run a model of transformers on normalised pixels. It stays in evaluation mode: in training it would draw other positions."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, grid: Grid, settings: Mapping[str, Any]) -> None:
        super().__init__(grid, {**IMAGENET, **settings})
        self.model: Any = model.train(False)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.empty(3, 1, 1, dtype=torch.float32, device="cpu"), persistent=False)
        self.fill()

    def fill(self) -> None:
        """Set the mean and standard deviation of the pixels."""
        for name, value in (("mean", self.mean), ("std", self.std)):
            value.copy_(torch.tensor(self.settings[f"image_{name}"], device="cpu").view_as(value))

    def train(self, mode: bool = True) -> "PixelEncoder":
        """Set the mode of this module alone; its model's features are those of evaluation, also while it trains."""
        super().train(mode)
        self.model.eval()
        return self

    def normalised(self, frames: Tensor) -> Tensor:
        """Return frames, uint8 (..., 3, S, S), as the model takes them: computed in float32, in the dtype of the weights."""
        return ((frames.float() / 255 - self.mean) / self.std).to(self.dtype)
