"""The encoder half of the VAE of Cosmos 1, diffusers' AutoencoderKLCosmos (the tokenizer CV8x8x8 of Cosmos-1.0).

Its latents are (latent - latents_mean) / latents_std, with statistics of each channel in each latent frame (NVIDIA et al. 2025,
arXiv:2501.03575). The diffusion models of Cosmos 1 scale them by sigma_data besides, which is theirs and not the encoder's.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_cosmos import AutoencoderKLCosmos, CosmosPatchEmbed3d
from torch import Tensor

from plait.families.theworld.pretrained.encoder import Grid, WorldEncoder, cells, keep_on_host, unit_range
from plait.families.theworld.pretrained.wan import with_defaults
from plait.nn import trust


def grid(settings: Mapping[str, Any], image_size: int) -> Grid:
    """Return the grid of latents of pictures of `image_size` pixels. Raises PlaitError for a size that does not fit."""
    sizes, name = with_defaults(AutoencoderKLCosmos, settings), AutoencoderKLCosmos.__name__
    channels = sizes["latent_channels"]
    frames = len(sizes["latents_mean"]) // channels if sizes["latents_mean"] else 1
    side = cells(name, image_size, sizes["spatial_compression_ratio"])
    return Grid(name, channels, side, later=sizes["temporal_compression_ratio"], most=frames if frames > 1 else None)


def make(settings: Mapping[str, Any], image_size: int) -> AutoencoderKLCosmos:
    """Return the VAE with random weights, or none on the meta device."""
    vae: AutoencoderKLCosmos = AutoencoderKLCosmos(**with_defaults(AutoencoderKLCosmos, settings))
    return vae


def read(source: str, where: Mapping[str, Any], settings: Mapping[str, Any], image_size: int) -> AutoencoderKLCosmos:
    """Return the VAE with the weights of `source`. `where`: subfolder and revision. Raises what diffusers raises."""
    vae: AutoencoderKLCosmos = AutoencoderKLCosmos.from_pretrained(source, **where, **trust.DIFFUSERS)
    return vae


class Encoder(WorldEncoder):
    """Pictures and clips to the latents of a Cosmos 1 VAE. Its decoder stays on the host, unused."""

    mean: Tensor
    std: Tensor

    def __init__(self, vae: AutoencoderKLCosmos, settings: Mapping[str, Any], image_size: int) -> None:
        super().__init__(
            grid(settings, image_size), {"_class_name": AutoencoderKLCosmos.__name__, **with_defaults(AutoencoderKLCosmos, settings)}
        )
        keep_on_host(vae.decoder, vae.post_quant_conv)
        self.vae = vae
        shape = (self.grid.channels, self.grid.most or 1, 1, 1)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.empty(shape, dtype=torch.float32, device="cpu"), persistent=False)
        self.fill()

    def fill(self) -> None:
        """Set the statistics of its latents, without which they are what they are, and the wavelets."""
        for name, value, neutral in (("mean", self.mean, 0.0), ("std", self.std, 1.0)):
            values = self.vae.config[f"latents_{name}"] or [neutral] * len(value)
            value.copy_(torch.tensor(values, device="cpu").view_as(value))
        embed = self.vae.encoder.patch_embed
        constants = CosmosPatchEmbed3d(embed.patch_size, embed.patch_method)
        for name, constant in constants.named_buffers():
            embed.get_buffer(name).copy_(constant)

    def encode(self, frames_BFCSS: Tensor) -> Tensor:
        """Encode uint8 frames (B, F, 3, S, S) to latents (B, C, T, h, h). Pixels are mapped to -1..+1 first."""
        latents = self.vae.encode(unit_range(frames_BFCSS, self.dtype).transpose(1, 2)).latent_dist.mode()
        frames = latents.shape[2]
        normalised: Tensor = (latents - self.mean[:, :frames].to(latents)) / self.std[:, :frames].to(latents)
        return normalised
