"""Make pictures of samples: decode latents, write PNG files with their settings, tile grids; and show examples (`plait data inspect`)."""

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

from plait.data.sources.metadata import read_metadata
from plait.errors import PlaitError
from plait.families.nanodit.config import Config
from plait.families.nanodit.inputs import Example, Inputs, Sample
from plait.files import expanded, write_whole
from plait.nn import encoders

Decoder = Callable[[Tensor], list[np.ndarray]]
"""A function from samples (B, C, H, W) to B pictures (H, W, 3) uint8."""

_DECODED_PIXELS = 2 * 1024 * 1024
"""Number of pixels that a VAE decodes at once: its activations take about 2 KB for each."""
_GAP_PX = 2
_SHOWN_CHANNELS = 3
_SPREAD = 3.0  # standard deviations of a latent channel from black to white, each way


def decoder(inputs: Inputs, device: torch.device) -> Decoder:
    """Return a function from generated samples (B, C, H, W), latents or pixels, to B pictures as uint8 arrays (H, W, 3).

    Pixels in [-1, 1] are mapped to 0..255. Latents are decoded on `device`, a few pictures at a time, by the VAE that the run's metadata
    names; if it names none, they become false colours. Raises PlaitError if that VAE cannot be opened or its weights have changed.
    """
    if inputs.config.space == "pixels":
        return as_pixels
    if inputs.metadata is None or inputs.encoder("latents") is None:
        return as_colours
    decode, side = encoders.decoder(inputs.metadata, str(device)), inputs.downsample

    def show(samples: Tensor) -> list[np.ndarray]:
        at_once = max(1, _DECODED_PIXELS // (samples.shape[-1] * samples.shape[-2] * side**2))
        return [picture for part in samples.split(at_once) for picture in decode(part).permute(0, 2, 3, 1).numpy()]

    return show


def decoder_name(config: Config) -> list[str]:
    """Return [NAME or NAME@REVISION] of the VAE that made the training latents, and that decodes generated ones to pictures.

    It is read from the shards' metadata.json (entry `encoders.latents`), which the setting `model.metadata` names. [] in pixel space,
    without that setting, and if the file records no encoder of latents (latents are then shown as false colours). Raises PlaitError if the
    file is missing or damaged.
    """
    if config.space == "pixels" or config.metadata is None:
        return []
    pin = read_metadata(expanded(config.metadata)).get("encoders", {}).get("latents")
    return [] if pin is None else [str(pin["name"]) + (f"@{pin['revision']}" if pin.get("revision") else "")]


def as_pixels(samples: Tensor) -> list[np.ndarray]:
    """Convert samples (B, 3, H, W) in [-1, 1] to pictures (H, W, 3) uint8."""
    return [from_unit(sample.cpu()).permute(1, 2, 0).numpy() for sample in samples]


def from_unit(image: Tensor) -> Tensor:
    """Convert floats in [-1, 1] back to uint8: the inverse of `images.to_unit`, rounded and clamped."""
    return image.to(torch.float32).add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def as_colours(samples: Tensor) -> list[np.ndarray]:
    """Return false-colour pictures (H, W, 3) uint8 of normalised latents (B, C, H, W). The first three channels are red, green, blue."""
    shown = samples[:, :_SHOWN_CHANNELS] / _SPREAD
    return as_pixels(shown.expand(-1, 3, -1, -1) if shown.shape[1] == 1 else torch.cat([shown, shown[:, -1:]], 1)[:, :3])


def png(picture: np.ndarray, settings: Mapping[str, Any]) -> bytes:
    """Encode a picture (H, W, 3) uint8 as PNG bytes, with `settings` as JSON in its text chunk `plait`."""
    buffer, text = io.BytesIO(), PngImagePlugin.PngInfo()
    text.add_itxt("plait", json.dumps(settings, ensure_ascii=False, sort_keys=True))
    Image.fromarray(picture).save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


def write(path: Path, picture: np.ndarray, settings: Mapping[str, Any]) -> None:
    """Write a picture (H, W, 3) uint8 as a PNG file, atomically, with `settings` as JSON in its text chunk `plait`."""
    write_whole(path, png(picture, settings))


def tile(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Tile pictures of one size into a nearly square grid, in reading order; unused cells are white."""
    columns = int(np.ceil(np.sqrt(len(pictures))))
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    grid = np.full((rows * (height + _GAP_PX) - _GAP_PX, columns * (width + _GAP_PX) - _GAP_PX, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * (height + _GAP_PX), index % columns * (width + _GAP_PX)
        grid[top : top + height, left : left + width] = picture
    return grid


def grids(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Tile the pictures that the bench (evaluation) `grid` wrote, per size; return {"512x512": array (H, W, 3) uint8}.

    Each is also written as grid-SIZE.png to the pictures' folder. `rows`: of the bench, with `picture` (path), `size` and `caption`.
    """
    by_size: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        by_size[row["size"]].append(row)
    tiled = {}
    for size, group in by_size.items():
        tiled[size] = tile([read(Path(row["picture"])) for row in group])
        path = Path(group[0]["picture"]).with_name(f"grid-{size}.png")
        write(path, tiled[size], {"size": size, "captions": [row["caption"] for row in group]})
    return tiled


def read(path: Path) -> np.ndarray:
    """Read a picture file as an array (H, W, 3) uint8, in RGB."""
    with Image.open(path) as picture:
        return np.array(picture.convert("RGB"))


def file_name(sample_id: str) -> str:
    """Return a sample's id as a file name: "coco/17" -> "coco_17". Each run of characters other than letters, digits and _.- becomes _.

    Two ids may so share a name.
    """
    return re.sub(r"[^\w.-]+", "_", sample_id)


def inspect(inputs: Inputs, sample: Sample, example: Example) -> dict[str, Any]:
    """Return what `plait data inspect` shows of an example: `images` ([(H, W, 3) uint8]), `labels`, `text` ([(caption, False)]), `notes`.

    `notes`: {name: value}, such as t. If the latents cannot be decoded, the picture has false colours, and note `picture` says why.
    """
    show, reason = _decoder_or_colours(inputs)
    conditions, (picture,) = example.conditions, show(example.x0[None])
    kind = "three channels of latents" if show is as_colours else "pixels" if inputs.config.space == "pixels" else "decoded latents"
    notes = {
        "size": "x".join(str(side) for side in reversed(example.x0.shape[-2:])),
        "t": round(example.t, 3),
        "text tokens": 0 if conditions.text is None else len(conditions.text),
        "cut": conditions.cut,
        "caption": "not given" if conditions.text is None else "given",
        "image": "not given" if conditions.image is None else "given",
        "mirrored": example.mirrored,
        **({"picture": reason} if reason else {}),
    }
    labels = [f"{kind}, {picture.shape[1]}x{picture.shape[0]} px"]
    return {"images": [picture], "labels": labels, "text": [(example.caption, False)], "notes": notes}


@functools.lru_cache(maxsize=2)
def _decoder_or_colours(inputs: Inputs) -> tuple[Decoder, str]:
    """Return the decoder of these inputs, or false colours with the reason why there is none."""
    try:
        show = decoder(inputs, torch.device("cpu"))
    except PlaitError as error:
        return as_colours, f"three latent channels: {error}"
    return show, "three latent channels: model.metadata names no decoder" if show is as_colours else ""
