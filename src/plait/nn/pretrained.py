"""Real encoders from a folder or the Hub: VAEs of diffusers, T5 and DINO of transformers. In float32, evaluating, without gradients.

Sources: Esser et al. 2024 (a VAE's shift and scale), Raffel et al. 2020 (T5), Siméoni et al. 2025 (DINOv3).
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xxhash
from diffusers import AutoencoderKL, AutoencoderKLWan
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, T5EncoderModel

from plait import files
from plait.errors import PlaitError

_WANTED = ("*.json", "*.safetensors", "*.model", "*.txt")
_VAES = {"AutoencoderKL": AutoencoderKL, "AutoencoderKLWan": AutoencoderKLWan}
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def locate(name: str) -> tuple[Path, dict[str, Any]]:
    """The folder of `name` on disk (downloaded when it is a Hub repository), and its pin."""
    place, _, revision = (name, "", "") if Path(name).is_dir() else name.partition("@")
    folder, commit = Path(place), None
    if not folder.is_dir():
        repository, inner = "/".join(place.split("/")[:2]), "/".join(place.split("/")[2:])
        try:
            root = Path(snapshot_download(repository, revision=revision or None, allow_patterns=[str(Path(inner, p)) for p in _WANTED]))
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise PlaitError(f"encoder {name!r} is neither a folder nor a repository that can be fetched: {reason}") from error
        folder, commit = root / inner, root.name
    weights = sorted(folder.glob("*.safetensors"))
    if not weights or not (folder / "config.json").is_file():
        raise PlaitError(f"encoder {name!r}: {folder} needs config.json and *.safetensors; for a pipeline, name its part (.../vae)")
    digest = xxhash.xxh3_64_hexdigest("".join(f"{file.name}={files.xxh3(file)}\n" for file in weights).encode())
    return folder, {"name": place, "revision": commit, "xxh3": digest}


def _config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


class Vae:
    """The mode of a VAE's posterior. A picture is a clip of one frame to a video VAE."""

    def __init__(self, name: str, device: str) -> None:
        folder, self.pin = locate(name)
        kind = _config(folder).get("_class_name")
        if kind not in _VAES:
            raise PlaitError(f"encoder {name!r} is a {kind}; known: {', '.join(_VAES)}")
        self._model = _VAES[kind].from_pretrained(str(folder), torch_dtype=torch.float32).eval().requires_grad_(False).to(device)
        self.published: tuple[list[float], list[float]] | None
        self._device, self._clip = device, kind == "AutoencoderKLWan"
        config = self._model.config
        if self._clip:
            self.channels, self.downsample = config.z_dim, config.scale_factor_spatial
            self.published = (list(config.latents_mean), list(config.latents_std))
        else:
            self.channels, self.downsample = config.latent_channels, 2 ** (len(config.block_out_channels) - 1)
            self.published = _shift_and_scale(config)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) to float32 (B, C, H / downsample, W / downsample)."""
        pixels = images.to(self._device).float() / 127.5 - 1
        found = self._model.encode(pixels[:, :, None] if self._clip else pixels).latent_dist.mode()
        return (found[:, :, 0] if self._clip else found).float().cpu()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """float32 (B, C, h, w) to uint8 (B, 3, H, W)."""
        inputs = latents.to(self._device).float()
        found = self._model.decode(inputs[:, :, None] if self._clip else inputs).sample
        pixels = found[:, :, 0] if self._clip else found
        return ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()


def _shift_and_scale(config: Any) -> tuple[list[float], list[float]] | None:
    """Normalised latents are (z - shift) * scale."""
    if config.latents_mean is not None and config.latents_std is not None:
        return list(config.latents_mean), list(config.latents_std)
    if not config.scaling_factor:
        return None
    return [config.shift_factor or 0.0] * config.latent_channels, [1 / config.scaling_factor] * config.latent_channels


class T5:
    """The last states of a T5 encoder, of the valid tokens only."""

    def __init__(self, name: str, max_tokens: int, device: str) -> None:
        folder, self.pin = locate(name)
        if "d_model" not in (config := _config(folder)):
            raise PlaitError(f"encoder {name!r} is a {config.get('model_type')}; captions need a T5 encoder")
        self._tokenizer = AutoTokenizer.from_pretrained(str(folder))
        self._model = T5EncoderModel.from_pretrained(str(folder), dtype=torch.float32).eval().requires_grad_(False).to(device)
        self.width, self.max_tokens, self._device = int(config["d_model"]), max_tokens, device

    @torch.no_grad()
    def encode(self, captions: list[str]) -> list[tuple[np.ndarray, int]]:
        """(states (L, width) float32, tokens of the whole caption) for each."""
        whole = [len(ids) for ids in self._tokenizer(captions, verbose=False)["input_ids"]]
        tokens = self._tokenizer(captions, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt").to(self._device)
        states = self._model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state.float().cpu()
        kept = tokens["attention_mask"].bool().cpu()
        return [(state[mask].numpy(), total) for state, mask, total in zip(states, kept, whole, strict=True)]


class Dino:
    """The class token of a DINO vision transformer, of the picture at about the size the model was trained at.

    Token 0 of the last states, after the final norm; registers and patches follow it and are not used.
    """

    def __init__(self, name: str, device: str) -> None:
        folder, self.pin = locate(name)
        config = _config(folder)
        if "patch_size" not in config or "dino" not in str(config.get("model_type")):
            raise PlaitError(f"encoder {name!r} is a {config.get('model_type')}; image vectors need a DINOv3 or DINOv2")
        self._model = AutoModel.from_pretrained(str(folder), dtype=torch.float32).eval().requires_grad_(False).to(device)
        self.width, self._patch, self._side, self._device = config["hidden_size"], config["patch_size"], config["image_size"], device

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) to float32 (B, width). The aspect ratio is kept to within a patch, the area is the model's own."""
        h, w = images.shape[-2:]
        scale = self._side / math.sqrt(h * w) / self._patch
        size = [max(1, round(side * scale)) * self._patch for side in (h, w)]
        pixels = F.interpolate(images.to(self._device), size=size, mode="bicubic", antialias=True).float() / 255
        mean, std = (torch.tensor(row, device=self._device).view(1, 3, 1, 1) for row in (_IMAGENET_MEAN, _IMAGENET_STD))
        return self._model((pixels - mean) / std).last_hidden_state[:, 0].float().cpu()
