"""The pixel values that the encoders of transformers take: their published mean and standard deviation of each colour."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils.hub import cached_file

from plait.errors import PlaitError

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


def normalised(pixels: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (pixels / 255 - mean) / std in `dtype`, computed in float32. `pixels`: uint8 (..., 3, S, S); `mean`, `std`: (3, 1, 1)."""
    return ((pixels.float() / 255 - mean) / std).to(dtype)
