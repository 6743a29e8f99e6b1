"""The three encoders of a latent set by name: pictures to latents and back, captions to token states, pictures to one vector.

A name is `tiny` (offline, no weights: tiny_encoders.py), a folder on disk, or a Hub repository, optionally with a subfolder and a revision
(`black-forest-labs/FLUX.1-dev/vae@0ef5fff`). Each encoder has a `pin` (name, revision, xxh3 of the weights) that is recorded in the shards
made with it; `same` says whether another one may go on with them. The libraries behind real encoders are imported when one is opened.
"""

import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from plait.errors import PlaitError
from plait.nn.tiny_encoders import TinyImages, TinyLatents, TinyTexts


class LatentCodec(Protocol):
    """Pictures to latents and back. `published`: (mean, std) per channel that come with the weights, else None."""

    pin: dict[str, Any]
    downsample: int
    channels: int
    published: tuple[list[float], list[float]] | None

    def encode(self, images: Tensor, /) -> Tensor: ...  # uint8 (B, 3, H, W) -> float32 (B, C, h, w), not normalised
    def decode(self, latents: Tensor, /) -> Tensor: ...  # the inverse


class TextEncoder(Protocol):
    """Captions to token states."""

    pin: dict[str, Any]
    width: int
    max_tokens: int

    def encode(self, captions: list[str], /) -> list[tuple[np.ndarray, int]]: ...  # float32 (L, width), tokens before truncation


class ImageEncoder(Protocol):
    """Pictures to one vector each."""

    pin: dict[str, Any]
    width: int

    def encode(self, images: Tensor, /) -> Tensor: ...  # uint8 (B, 3, H, W) -> float32 (B, width)


def open_latents(name: str, device: str = "cpu") -> LatentCodec:
    """`tiny`, `tiny:DOWNSAMPLExCHANNELS`, or a VAE of diffusers (AutoencoderKL, AutoencoderKLWan)."""
    if name.partition(":")[0] == "tiny":
        found = re.fullmatch(r"tiny(?::(\d+)x(\d+))?", name)
        if found is None:
            raise PlaitError(f"encoder {name!r}: write tiny, or tiny:4x48 for patches of 4 pixels in 48 channels")
        return TinyLatents(int(found[1]), int(found[2])) if found[1] else TinyLatents()
    return importlib.import_module("plait.nn.pretrained").Vae(name, device)


def open_texts(name: str, max_tokens: int | None = None, device: str = "cpu") -> TextEncoder:
    """`tiny`, `tiny:WIDTH` (64 tokens at most unless told), or a T5 encoder of transformers (512)."""
    if name.partition(":")[0] == "tiny":
        found = re.fullmatch(r"tiny(?::(\d+))?", name)
        if found is None or (found[1] and int(found[1]) < 2):
            raise PlaitError(f"encoder {name!r}: write tiny, or tiny:64 for states of width 64")
        return TinyTexts(int(found[1] or 64), max_tokens or 64)
    return importlib.import_module("plait.nn.pretrained").T5(name, max_tokens or 512, device)


def open_images(name: str, device: str = "cpu") -> ImageEncoder:
    """`tiny`, or a DINOv3 (or v2) of transformers."""
    if name == "tiny":
        return TinyImages()
    return importlib.import_module("plait.nn.pretrained").Dino(name, device)


def reopen(kind: str, pin: Mapping[str, Any], max_tokens: int | None = None, device: str = "cpu") -> Any:
    """The encoder (`kind` latents, texts or images) that a set's metadata pins. Raises PlaitError when its weights are not the same."""
    name = str(pin["name"])
    spelled = name if name.startswith("tiny") or not pin.get("revision") else f"{name}@{pin['revision']}"
    makers: dict[str, Callable[[], Any]] = {
        "latents": lambda: open_latents(spelled, device),
        "texts": lambda: open_texts(spelled, max_tokens, device),
        "images": lambda: open_images(spelled, device),
    }
    found = makers[kind]()
    if found.pin["xxh3"] != pin["xxh3"]:
        raise PlaitError(f"{kind} encoder {spelled} has weights {found.pin['xxh3']}, but the set was made with {pin['xxh3']}")
    return found


def decoder(metadata: Mapping[str, Any], device: str = "cpu") -> Callable[[Tensor], Tensor]:
    """From a set's metadata: normalised latents (B, C, h, w), as its source gives them, to uint8 pictures (B, 3, H, W)."""
    if "encoders" not in metadata:
        raise PlaitError("the set's metadata names no encoder (it was made elsewhere), so its latents cannot be shown as pictures")
    codec = reopen("latents", metadata["encoders"]["latents"], device=device)
    mean, std = (torch.tensor(metadata["latents"][name], dtype=torch.float32).view(-1, 1, 1) for name in ("mean", "std"))
    return lambda latents: codec.decode(latents.float().cpu() * std + mean)
