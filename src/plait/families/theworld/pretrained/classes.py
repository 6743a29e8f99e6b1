"""The classes of world encoders, of diffusers and transformers. Each has a file in this folder, which is imported when it is named.

A file has `grid(settings, image_size)`, `make` and `read`, which return the library's own model, and `Encoder`, which wraps one. `settings`
is a model's configuration as its library saves it, with its class, `_class_name`, and of transformers with image_mean and image_std.
"""

import importlib
from collections.abc import Mapping
from typing import Any

from plait.errors import PlaitError
from plait.families.theworld.pretrained import wan
from plait.families.theworld.pretrained.encoder import Grid, WorldEncoder

CLASS = "_class_name"
FILES = {
    "AutoencoderKLWan": "wan",
    "AutoencoderKLCosmos": "cosmos1",
    "DINOv3ViTModel": "dinov3",
    "DINOv3ConvNextModel": "dinov3",
    "VJEPA2Model": "vjepa2",
}
"""Classes of encoders, and the file of each in this folder."""


def file_of(settings: Mapping[str, Any]) -> Any:
    """Return the module of an encoder's class."""
    name = FILES[settings[CLASS]]
    return wan if name == "wan" else importlib.import_module(f"plait.families.theworld.pretrained.{name}")


def grid(settings: Mapping[str, Any], image_size: int, steps: int) -> Grid:
    """Return an encoder's grid of latents of pictures of `image_size` pixels. Raises PlaitError where sizes or `steps` do not fit."""
    found: Grid = file_of(settings).grid(settings, image_size)
    if found.most is not None and steps >= found.most:
        most = found.most - 1
        raise PlaitError(
            f"model.world.steps is {steps}, and {found.name} has statistics of {found.most} latent frames: set it to at most {most}"
        )
    return found


def wrapped(model: Any, settings: Mapping[str, Any], image_size: int) -> WorldEncoder:
    """Return the encoder around a library's own model."""
    encoder: WorldEncoder = file_of(settings).Encoder(model, settings, image_size)
    return encoder
