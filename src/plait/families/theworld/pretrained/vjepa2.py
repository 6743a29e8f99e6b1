"""V-JEPA 2 of transformers in place of a world model's encoder: a video encoder that predicts features, and never pixels.

A control for the question whether a world model helps. A cell is the final state of one tubelet, `tubelet_size` frames of a patch
(Assran et al. 2025, arXiv:2506.09985). Its predictor stays on the host, unused.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import VJEPA2Config, VJEPA2Model

from plait.errors import PlaitError
from plait.families.theworld.pretrained import pixels
from plait.families.theworld.pretrained.encoder import Grid, cells, keep_on_host
from plait.nn import trust


def _config(settings: Mapping[str, Any], image_size: int) -> VJEPA2Config:
    """Return the configuration for pictures of this size: `crop_size` is what the positions of patches are counted by."""
    own = {name: value for name, value in settings.items() if name not in ("_class_name", *pixels.IMAGENET)}
    config: VJEPA2Config = VJEPA2Config(**{**own, "crop_size": image_size})
    return config


def grid(settings: Mapping[str, Any], image_size: int) -> Grid:
    """Return the grid of features of pictures of `image_size` pixels. Raises PlaitError for a size that does not fit."""
    config, name = _config(settings, image_size), VJEPA2Model.__name__
    if not isinstance(config.patch_size, int):
        raise PlaitError(f"model.world.source: a {name} with patches of {config.patch_size}, and patches are squares here")
    side = cells(name, image_size, config.patch_size)
    return Grid(name, config.hidden_size, side, first=config.tubelet_size, later=config.tubelet_size)


def make(settings: Mapping[str, Any], image_size: int) -> VJEPA2Model:
    """Return the model with random weights, or none on the meta device."""
    return VJEPA2Model(_config(settings, image_size))


def read(source: str, where: Mapping[str, Any], settings: Mapping[str, Any], image_size: int) -> VJEPA2Model:
    """Return the model with the weights of `source`. `where`: subfolder and revision. Raises what transformers raises."""
    model: VJEPA2Model = VJEPA2Model.from_pretrained(source, **where, crop_size=image_size, dtype="auto", **trust.WEIGHTS)
    return model


class Encoder(pixels.PixelEncoder):
    """Pictures and clips to a grid of features; a picture is repeated to fill one tubelet."""

    def __init__(self, model: VJEPA2Model, settings: Mapping[str, Any], image_size: int) -> None:
        super().__init__(model, grid(settings, image_size), settings)
        keep_on_host(model.predictor)

    def encode(self, frames_BFCSS: Tensor) -> Tensor:
        """Encode uint8 frames (B, F, 3, S, S) to features (B, C, T, h, h). Pixels are normalised as published."""
        states: Tensor = self.model.get_vision_features(self.normalised(frames_BFCSS))
        side = self.grid.side
        return states.view(len(states), -1, side, side, states.shape[-1]).permute(0, 4, 1, 2, 3)
