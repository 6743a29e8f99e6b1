"""DINOv3 of transformers (vision transformer or ConvNeXt) in place of a world model's encoder: a second eye, which knows no motion.

The control for the question whether a world model helps. Every frame is encoded by itself: T = F. A cell is the final state of one patch,
after the last norm; the class token and the registers are left out (Siméoni et al. 2025, arXiv:2508.10104).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import DINOv3ConvNextConfig, DINOv3ConvNextModel, DINOv3ViTConfig, DINOv3ViTModel

from plait.errors import PlaitError
from plait.families.theworld.pretrained import pixels
from plait.families.theworld.pretrained.encoder import Grid, cells
from plait.nn import trust

_STEM = 4  # pixels of a side of the patches that the first stage of ConvNeXt begins with; each later stage halves

Model = DINOv3ViTModel | DINOv3ConvNextModel


def _config(settings: Mapping[str, Any]) -> DINOv3ViTConfig | DINOv3ConvNextConfig:
    kind = DINOv3ViTConfig if settings["_class_name"] == DINOv3ViTModel.__name__ else DINOv3ConvNextConfig
    own = {name: value for name, value in settings.items() if name not in ("_class_name", *pixels.IMAGENET)}
    config: DINOv3ViTConfig | DINOv3ConvNextConfig = kind(**own)
    return config


def grid(settings: Mapping[str, Any], image_size: int) -> Grid:
    """Return the grid of features of pictures of `image_size` pixels. Raises PlaitError for a size that does not fit."""
    config, name = _config(settings), settings["_class_name"]
    if isinstance(config, DINOv3ConvNextConfig):
        assert config.hidden_sizes is not None
        return Grid(name, config.hidden_sizes[-1], cells(name, image_size, _STEM * 2 ** (len(config.hidden_sizes) - 1)))
    if not isinstance(config.patch_size, int):
        raise PlaitError(f"model.world.source: a {name} with patches of {config.patch_size}, and patches are squares here")
    return Grid(name, config.hidden_size, cells(name, image_size, config.patch_size))


def make(settings: Mapping[str, Any], image_size: int) -> Model:
    """Return the model with random weights, or none on the meta device."""
    config = _config(settings)
    return DINOv3ViTModel(config) if isinstance(config, DINOv3ViTConfig) else DINOv3ConvNextModel(config)


def read(source: str, where: Mapping[str, Any], settings: Mapping[str, Any], image_size: int) -> Model:
    """Return the model with the weights of `source`. `where`: subfolder and revision. Raises what transformers raises."""
    kind = DINOv3ViTModel if settings["_class_name"] == DINOv3ViTModel.__name__ else DINOv3ConvNextModel
    model: Model = kind.from_pretrained(source, **where, dtype="auto", **trust.WEIGHTS)
    return model


class Encoder(pixels.PixelEncoder):
    """Frames to a grid of features, each frame by itself."""

    def __init__(self, model: Model, settings: Mapping[str, Any], image_size: int) -> None:
        super().__init__(model, grid(settings, image_size), settings)

    def encode(self, frames_BFCSS: Tensor) -> Tensor:
        """Encode uint8 frames (B, F, 3, S, S) to features (B, C, F, h, h). Pixels are normalised as published."""
        B, F = frames_BFCSS.shape[:2]
        side = self.grid.side
        states: Tensor = self.model(pixel_values=self.normalised(frames_BFCSS.flatten(0, 1))).last_hidden_state[:, -side * side :]
        return states.view(B, F, side, side, -1).permute(0, 4, 1, 2, 3)
