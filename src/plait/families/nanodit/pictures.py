"""Drawn samples as pictures: decoded, written as PNG with the settings that made them, and laid out in grids."""

import io
import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from plait.data import images
from plait.families.nanodit.inputs import Inputs
from plait.files import write_whole
from plait.nn import encoders

Decoder = Callable[[Tensor], list[np.ndarray]]
"""Samples (B, C, H, W) to pictures, uint8 H x W x 3."""

_GAP_PX = 2
_SHOWN_CHANNELS = 3
_SPREAD = 3.0  # standard deviations of a latent channel from black to white, each way


def decoder(inputs: Inputs, device: torch.device) -> Decoder:
    """Pixels as they are; latents through the decoder that the shards' metadata names, else their first channels as colours."""
    if inputs.config.space == "pixels":
        return as_pixels
    pin = inputs.encoder("latents")
    if pin is None:
        return as_colours
    assert inputs.metadata is not None
    latents, codec = inputs.metadata["latents"], encoders.reopen("latents", pin, device=str(device))
    mean, std = (torch.tensor(latents[name])[:, None, None] for name in ("mean", "std"))

    def decode(samples: Tensor) -> list[np.ndarray]:
        return list(codec.decode(samples.cpu() * std + mean).cpu().permute(0, 2, 3, 1).numpy())

    return decode


def as_pixels(samples: Tensor) -> list[np.ndarray]:
    """[-1, 1] to uint8."""
    return [images.from_unit(one.cpu()).permute(1, 2, 0).numpy() for one in samples]


def as_colours(samples: Tensor) -> list[np.ndarray]:
    """The first three channels as red, green and blue: normalised latents without a decoder."""
    shown = samples[:, :_SHOWN_CHANNELS] / _SPREAD
    return as_pixels(shown.expand(-1, 3, -1, -1) if shown.shape[1] == 1 else torch.cat([shown, shown[:, -1:]], 1)[:, :3])


def png(picture: np.ndarray, settings: Mapping[str, Any]) -> bytes:
    """A PNG that carries `settings` as JSON in its text chunk `plait`."""
    buffer, text = io.BytesIO(), PngImagePlugin.PngInfo()
    text.add_itxt("plait", json.dumps(settings, ensure_ascii=False, sort_keys=True))
    Image.fromarray(picture).save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


def write(path: Path, picture: np.ndarray, settings: Mapping[str, Any]) -> None:
    """`png` as a file, whole or not at all."""
    write_whole(path, png(picture, settings))


def tile(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of one size in a grid, about as wide as high, in reading order; the rest stays white."""
    columns = int(np.ceil(np.sqrt(len(pictures))))
    high, wide = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (high + _GAP_PX) - _GAP_PX, columns * (wide + _GAP_PX) - _GAP_PX, 3), 255, np.uint8)
    for place, picture in enumerate(pictures):
        top, left = place // columns * (high + _GAP_PX), place % columns * (wide + _GAP_PX)
        sheet[top : top + high, left : left + wide] = picture
    return sheet


def grids(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """One grid per size of the pictures that bench `grid` wrote."""
    sizes: dict[str, list[np.ndarray]] = defaultdict(list)
    for row in rows:
        with Image.open(row["picture"]) as picture:
            sizes[row["size"]].append(np.array(picture.convert("RGB")))
    return {size: tile(found) for size, found in sizes.items()}


def file_name(identity: str) -> str:
    """An id as a file name."""
    return re.sub(r"[^\w.-]+", "_", identity)
