"""Pretrained encoders from a folder or the Hub: VAEs of diffusers, T5 and DINO of transformers.

All run in float32, in evaluation mode and without gradients, and return host tensors. encoders.py has their interfaces and opens them by
name: a folder, or a Hub repository, owner/name[/subfolder][@revision]. `device`: where one computes. Sources: Esser et al. 2024 (a VAE's
shift and scale), Raffel et al. 2020 (T5), Siméoni et al. 2025 (DINOv3).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from diffusers import AutoencoderKL, AutoencoderKLWan
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, T5EncoderModel

from plait import files
from plait.config import hub_errors
from plait.errors import PlaitError
from plait.nn.encoder_calls import dino_vectors, t5_states, vae_pictures
from plait.nn.trust import CONFIG, DIFFUSERS, WEIGHTS

_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.txt")
_VAES = {"AutoencoderKL": AutoencoderKL, "AutoencoderKLWan": AutoencoderKLWan}


def locate(name: str) -> tuple[Path, dict[str, Any]]:
    """Return the folder of an encoder, downloaded if `name` is a Hub repository, and its pin: {"name", "revision", "xxh3"}.

    `name`: a folder, or owner/name[/subfolder][@revision]. Raises PlaitError if it is neither, or lacks config.json or *.safetensors.
    """
    name = str(files.expanded(name))
    base, _, revision = (name, "", "") if Path(name).is_dir() else name.partition("@")
    folder, commit = Path(base), None
    if not folder.is_dir():
        repository, subfolder = "/".join(base.split("/")[:2]), "/".join(base.split("/")[2:])
        patterns = [str(Path(subfolder, pattern)) for pattern in _PATTERNS]
        try:
            root = Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
        except (OSError, ValueError) as error:
            reason = hub_errors.reason(error, f"{repository}@{revision}" if revision else repository)
            raise PlaitError(f"encoder {name!r} is neither a folder nor a repository that can be fetched: {reason}") from error
        folder, commit = root / subfolder, root.name
    if not any(folder.glob("*.safetensors")) or not (folder / "config.json").is_file():
        raise PlaitError(f"encoder {name!r}: {folder} needs config.json and *.safetensors; for a pipeline, name its part (.../vae)")
    return folder, {"name": base, "revision": commit, "xxh3": weights_hash(folder)}


def weights_hash(folder: Path) -> str:
    """Return a hash (xxh3) of the names and contents of a folder's *.safetensors files: equal for two copies of an encoder."""
    weights = sorted(folder.glob("*.safetensors"))
    return xxhash.xxh3_64_hexdigest("".join(f"{file.name}={files.xxh3(file)}\n" for file in weights).encode())


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


class Vae:
    """A VAE of diffusers; latents are the mode of its posterior. A video VAE gets an image as a clip of one frame.

    `name`: a folder or Hub repository. Raises PlaitError if it is missing, or holds neither AutoencoderKL nor AutoencoderKLWan.
    """

    def __init__(self, name: str, device: str) -> None:
        folder, self.pin = locate(name)
        kind = _config(folder).get("_class_name")
        if kind not in _VAES:
            raise PlaitError(f"encoder {name!r} is a {kind}; known: {', '.join(_VAES)}")
        self.model = (
            _VAES[kind].from_pretrained(str(folder), torch_dtype=torch.float32, **DIFFUSERS).eval().requires_grad_(False).to(device)
        )
        self.published: tuple[list[float], list[float]] | None
        self._device, self._clip = device, kind == "AutoencoderKLWan"
        config = self.model.config
        if self._clip:
            self.channels, self.downsample = config.z_dim, config.scale_factor_spatial
            self.published = (list(config.latents_mean), list(config.latents_std))
        else:
            self.channels, self.downsample = config.latent_channels, 2 ** (len(config.block_out_channels) - 1)
            self.published = _shift_and_scale(config)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return latents (B, C, H / downsample, W / downsample) float32, not normalised, of images (B, 3, H, W) uint8."""
        pixels = images.to(self._device).float() / 127.5 - 1
        mode: Tensor = self.model.encode(pixels[:, :, None] if self._clip else pixels).latent_dist.mode()
        return (mode[:, :, 0] if self._clip else mode).float().cpu()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, 3, H, W) uint8 of latents (B, C, h, w), not normalised."""
        return vae_pictures(self.model, latents.to(self._device))


def _shift_and_scale(config: Any) -> tuple[list[float], list[float]] | None:
    """Return (mean, std) per channel from a VAE's config, whose normalised latents are (z - shift) * scale."""
    if config.latents_mean is not None and config.latents_std is not None:
        return list(config.latents_mean), list(config.latents_std)
    if not config.scaling_factor:
        return None
    return [config.shift_factor or 0.0] * config.latent_channels, [1 / config.scaling_factor] * config.latent_channels


class T5:
    """A T5 encoder; its states are those of the last layer, without padding. `name`: a folder or Hub repository.

    `max_tokens`: of a caption; longer ones are truncated. Raises PlaitError if the model is missing or no T5.
    """

    def __init__(self, name: str, max_tokens: int, device: str) -> None:
        folder, self.pin = locate(name)
        if "d_model" not in (config := _config(folder)):
            raise PlaitError(f"encoder {name!r} is a {config.get('model_type')}; captions need a T5 encoder")
        self.tokenizer = AutoTokenizer.from_pretrained(str(folder), **CONFIG)
        model: nn.Module = T5EncoderModel.from_pretrained(str(folder), dtype=torch.float32, **WEIGHTS)
        self.model = model.eval().requires_grad_(False).to(device)
        self.width, self.max_tokens, self._device = int(config["d_model"]), max_tokens, device

    @torch.no_grad()
    def encode(self, captions: list[str]) -> list[tuple[np.ndarray, int]]:
        """Return for each caption its states (L, width) float32 and its number of tokens before truncation."""
        lengths = [len(ids) for ids in self.tokenizer(captions, verbose=False)["input_ids"]]
        states = t5_states(self.model, self.tokenizer, captions, self.max_tokens, self._device)
        return [(state.numpy(), total) for state, total in zip(states, lengths, strict=True)]


class Dino:
    """A DINOv2 or DINOv3 vision transformer. An image's vector is its class token: token 0 of the last states, after the final norm.

    Register and patch tokens are not used. `name`: a folder or Hub repository. Raises PlaitError if the model is missing or another one.
    """

    def __init__(self, name: str, device: str) -> None:
        folder, self.pin = locate(name)
        config = _config(folder)
        if "patch_size" not in config or "dino" not in str(config.get("model_type")):
            raise PlaitError(f"encoder {name!r} is a {config.get('model_type')}; image vectors need a DINOv3 or DINOv2")
        model: nn.Module = AutoModel.from_pretrained(str(folder), dtype=torch.float32, **WEIGHTS)
        self.model = model.eval().requires_grad_(False).to(device)
        self.width, self._device = config["hidden_size"], device

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return features (B, width) float32 of images (B, 3, H, W) uint8.

        Images are resized to the area that the model was trained at; their aspect ratio is kept to within a patch.
        """
        return dino_vectors(self.model, images.to(self._device))
