"""What pretrained encoders are given and what is kept of their output: a VAE's pictures, T5's states, DINO's vectors.

pretrained.py opens them. An export holds a copy of this code, as it has to give them the same.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def vae_pictures(vae: Any, latents: Tensor) -> Tensor:
    """Decode latents (B, C, h, w), not normalised, to images (B, 3, H, W) uint8 on the CPU.

    `vae`: of diffusers. A video VAE, whose latents are (B, C, frames, h, w), gets an image as a clip of one frame.
    """
    clip = "z_dim" in vae.config
    decoded: Tensor = vae.decode(latents.float()[:, :, None] if clip else latents.float()).sample
    pixels = decoded[:, :, 0] if clip else decoded
    return ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()


def t5_states(model: Any, tokenizer: Any, captions: list[str], max_tokens: int, device: Any) -> list[Tensor]:
    """Return for each caption the states (L, width) of T5's last layer, without padding, float32 on the CPU."""
    tokens = tokenizer(captions, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt").to(device)
    states = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state.float().cpu()
    valid = tokens["attention_mask"].bool().cpu()
    return [state[mask] for state, mask in zip(states, valid, strict=True)]


def dino_vectors(model: Any, images: Tensor) -> Tensor:
    """Return features (B, width), float32 on the CPU, of images (B, 3, H, W) uint8.

    They are the class token of a DINOv2 or DINOv3. Images are resized to the area that it was trained at, their aspect ratio kept to within
    a patch.
    """
    h, w = images.shape[-2:]
    side, patch = model.config.image_size, model.config.patch_size
    scale = side / math.sqrt(h * w) / patch
    size = [max(1, round(length * scale)) * patch for length in (h, w)]
    pixels = F.interpolate(images, size=size, mode="bicubic", antialias=True).float() / 255
    mean, std = (torch.tensor(row, device=images.device).view(1, 3, 1, 1) for row in (_IMAGENET_MEAN, _IMAGENET_STD))
    states: Tensor = model((pixels - mean) / std).last_hidden_state
    return states[:, 0].float().cpu()
