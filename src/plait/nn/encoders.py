"""Open encoders by name, for latent sets (data encoded once, before training): images to latents, captions to states, images to vectors.

A name is `tiny` (offline, no weights: tiny_encoders.py), a folder on disk, or a Hub repository, optionally with a subfolder and a revision
(`black-forest-labs/FLUX.1-dev/vae@0ef5fff`; pretrained.py). Each encoder has a `pin` (name, revision, xxh3 of the weights) that is recorded
in the shards made with it. `device`: where it computes, such as "cuda:0". The libraries behind pretrained encoders are imported when one is
opened.
"""

import importlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, overload

import torch
from safetensors import SafetensorError
from torch import Tensor

from plait.config import hub_errors
from plait.errors import PlaitError
from plait.nn.tiny_encoders import TinyImages, TinyLatents, TinyTexts

if TYPE_CHECKING:  # the libraries behind it take seconds to import
    from plait.nn.pretrained import T5, Dino

Kind = Literal["latents", "texts", "images"]
"""What an encoder makes: latents of images, states of captions, or vectors of images."""

_PLACES = "PLAIT_ENCODERS"


class LatentCodec(Protocol):
    """Encodes images to latents and back. `pin`: {"name", "revision", "xxh3"}, which identify its weights.

    `channels`: C of the latents; `downsample`: pixels per latent, along a side. `published`: (mean, std) of each channel of the latents, by
    which they are normalised, from the configuration that comes with the weights; None: it names none.
    """

    pin: dict[str, Any]
    downsample: int
    channels: int
    published: tuple[list[float], list[float]] | None

    def encode(self, images: Tensor, /) -> Tensor:
        """Return latents (B, C, H / downsample, W / downsample) float32, not normalised, of images (B, 3, H, W) uint8."""

    def decode(self, latents: Tensor, /) -> Tensor:
        """Return images (B, 3, H, W) uint8 of latents (B, C, h, w), not normalised."""


def open_latents(name: str, device: str = "cpu") -> LatentCodec:
    """Open a codec of images to latents: `tiny`, `tiny:DOWNSAMPLExCHANNELS`, or a folder or Hub repository with a diffusers VAE.

    That is an AutoencoderKL or AutoencoderKLWan. `tiny` has no weights: patches of 4 pixels a side in 48 functions of a fixed cosine basis,
    or of DOWNSAMPLE pixels in CHANNELS. Raises PlaitError for any other name.
    """
    if name.partition(":")[0] == "tiny":
        match = re.fullmatch(r"tiny(?::(\d+)x(\d+))?", name)
        if match is None:
            raise PlaitError(f"encoder {name!r}: write tiny, or tiny:4x48 for patches of 4 pixels in 48 channels")
        if not match[1]:
            return TinyLatents()
        if (reason := TinyLatents.unfit(int(match[1]), int(match[2]))) is not None:
            raise PlaitError(reason)
        return TinyLatents(int(match[1]), int(match[2]))
    codec: LatentCodec = _pretrained("Vae", name, device)
    return codec


def open_texts(name: str, max_tokens: int | None = None, device: str = "cpu") -> "TinyTexts | T5":
    """Open an encoder of captions to token states.

    `name`: a folder or Hub repository with a T5 encoder; or `tiny` or `tiny:WIDTH`, fixed random vectors, for work without a network.
    `max_tokens`: per caption; None: 512, or 64 for `tiny`. Raises PlaitError for any other name.
    """
    if name.partition(":")[0] == "tiny":
        match = re.fullmatch(r"tiny(?::(\d+))?", name)
        if match is None or (match[1] and int(match[1]) < 2):
            raise PlaitError(f"encoder {name!r}: write tiny, or tiny:64 for states of width 64")
        return TinyTexts(int(match[1] or 64), max_tokens or 64)
    encoder: T5 = _pretrained("T5", name, max_tokens or 512, device)
    return encoder


def open_images(name: str, device: str = "cpu") -> "TinyImages | Dino":
    """Open an encoder of images to vectors: `tiny`, or a folder or Hub repository with a DINOv2 or DINOv3 model (transformers format).

    `tiny` has no weights: it gives 64 numbers on an image's colours and shape. Raises PlaitError for any other name.
    """
    if name == "tiny":
        return TinyImages()
    encoder: Dino = _pretrained("Dino", name, device)
    return encoder


def _pretrained(kind: str, name: str, *arguments: Any) -> Any:
    """Open an encoder of pretrained.py. Raises PlaitError for one whose files are damaged, or not what its config.json says."""
    opened: Callable[..., Any] = getattr(importlib.import_module("plait.nn.pretrained"), kind)
    try:
        return opened(name, *arguments)
    except (OSError, ValueError, SafetensorError) as error:
        raise PlaitError(f"encoder {name!r} cannot be read: {hub_errors.reason(error, name)}") from error


@overload
def reopen(kind: Literal["latents"], pin: Mapping[str, Any], max_tokens: int | None = None, device: str = "cpu") -> LatentCodec: ...
@overload
def reopen(kind: Literal["texts"], pin: Mapping[str, Any], max_tokens: int | None = None, device: str = "cpu") -> "TinyTexts | T5": ...
@overload
def reopen(kind: Literal["images"], pin: Mapping[str, Any], max_tokens: int | None = None, device: str = "cpu") -> "TinyImages | Dino": ...
def reopen(
    kind: Kind, pin: Mapping[str, Any], max_tokens: int | None = None, device: str = "cpu"
) -> "LatentCodec | TinyTexts | T5 | TinyImages | Dino":
    """Open the encoder that data was made with.

    It is the one `pin` names, or one with the same weights hash below a folder of $PLAIT_ENCODERS. `kind`: whether it makes "latents" of
    images, states of captions ("texts") or vectors of images ("images"). `pin`: {"name", "revision", "xxh3"}, from the data's
    metadata.json. `max_tokens`: per caption. Raises PlaitError if no hash matches.
    """
    base = str(pin["name"])
    name = base if base.startswith("tiny") or not pin.get("revision") else f"{base}@{pin['revision']}"
    openers: dict[str, Callable[[str], LatentCodec | TinyTexts | T5 | TinyImages | Dino]] = {
        "latents": lambda name: open_latents(name, device),
        "texts": lambda name: open_texts(name, max_tokens, device),
        "images": lambda name: open_images(name, device),
    }
    found = None if base.startswith("tiny") else _same_weights(base, str(pin["xxh3"]))  # before the Hub is asked
    cure = "" if base.startswith("tiny") else f"; if it lies elsewhere, set {_PLACES} to a folder above it: it is known by its weights"
    try:
        encoder = openers[kind](str(found or name))
    except PlaitError as error:
        raise PlaitError(f"{error}{cure}") from error
    if encoder.pin["xxh3"] != pin["xxh3"]:
        raise PlaitError(f"{kind} encoder {name} has weights {encoder.pin['xxh3']}, but the set was made with {pin['xxh3']}{cure}")
    return encoder


def _same_weights(name: str, xxh3: str) -> Path | None:
    """Return the folder `name`, or the first in or below those of $PLAIT_ENCODERS, whose weights have this hash; None without one."""
    places = [Path(place) for place in os.environ.get(_PLACES, "").split(os.pathsep) if place]
    if not places:
        return None
    folders = [Path(name)] if Path(name).is_dir() else []
    folders += sorted({path.parent for place in places for path in place.rglob("config.json") if any(path.parent.glob("*.safetensors"))})
    weights_hash = importlib.import_module("plait.nn.pretrained").weights_hash
    return next((folder for folder in folders if weights_hash(folder) == xxh3), None)


def decoder(metadata: Mapping[str, Any], device: str = "cpu") -> Callable[[Tensor], Tensor]:
    """Return a function that decodes a latent set's normalised latents to images. It maps (B, C, h, w) to (B, 3, H, W) uint8 on the CPU.

    `metadata`: the set's metadata.json, with `encoders` (their pins) and `latents` (mean, std).
    Raises PlaitError if the encoder of the latents is missing or has changed.
    """
    if "encoders" not in metadata:
        raise PlaitError("the set's metadata names no encoder (it was made elsewhere), so its latents cannot be shown as pictures")
    codec = reopen("latents", metadata["encoders"]["latents"], device=device)
    mean, std = (torch.tensor(metadata["latents"][name], dtype=torch.float32).view(-1, 1, 1) for name in ("mean", "std"))
    return lambda latents: codec.decode(latents.float().cpu() * std + mean).cpu()
