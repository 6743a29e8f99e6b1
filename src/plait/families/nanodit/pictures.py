"""Drawn samples as pictures: decoded, written as PNG with the settings that made them, and laid out in grids."""

import functools
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
from plait.errors import PlaitError
from plait.families.nanodit.inputs import Example, Inputs, Sample
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
    """One grid per size of the pictures that a bench wrote, kept beside them as grid-SIZE.png with their captions."""
    sizes: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        sizes[row["size"]].append(row)
    found = {}
    for size, some in sizes.items():
        found[size] = tile([read(Path(row["picture"])) for row in some])
        write(
            Path(some[0]["picture"]).with_name(f"grid-{size}.png"),
            found[size],
            {"size": size, "captions": [row["caption"] for row in some]},
        )
    return found


def read(path: Path) -> np.ndarray:
    """A picture as uint8, H x W x 3."""
    with Image.open(path) as picture:
        return np.array(picture.convert("RGB"))


def file_name(identity: str) -> str:
    """An id as a file name."""
    return re.sub(r"[^\w.-]+", "_", identity)


def inspect(inputs: Inputs, sample: Sample, example: Example) -> dict[str, Any]:
    """What the model sees of one example: its picture, its caption, and the draws. Where latents cannot be decoded it says why."""
    show, unseen = _shown(inputs)
    kept = example.conditions
    notes = {
        "size": "x".join(str(side) for side in reversed(example.x0.shape[-2:])),
        "t": round(example.t, 3),
        "text tokens": 0 if kept.text is None else len(kept.text),
        "caption": "none" if kept.text is None else "shown",
        "image": "none" if kept.image is None else "shown",
        "mirrored": example.mirrored,
        **({"picture": unseen} if unseen else {}),
    }
    return {"images": show(example.x0[None]), "text": [(example.caption, False)], "notes": notes}


@functools.lru_cache(maxsize=2)
def _shown(inputs: Inputs) -> tuple[Decoder, str]:
    """The decoder of these inputs; without one, the first channels as colours, and the reason."""
    try:
        found = decoder(inputs, torch.device("cpu"))
    except PlaitError as error:
        return as_colours, f"three latent channels: {error}"
    return found, "three latent channels: model.metadata names no decoder" if found is as_colours else ""
