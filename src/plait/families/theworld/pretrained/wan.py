"""The encoder half of the Wan VAE, diffusers' AutoencoderKLWan: Wan 2.1, which Cosmos-Predict2 and 2.5 use, and Wan 2.2.

Its latents are (mode of the posterior - latents_mean) / latents_std. Wan 2.2 puts squares of `patch_size` pixels into channels first.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, WanCausalConv3d, patchify
from torch import Tensor

from plait.errors import PlaitError
from plait.families.theworld.pretrained.encoder import Grid, WorldEncoder, cells, keep_on_host, unit_range
from plait.nn import trust

_CHUNK = 4  # frames that AutoencoderKLWan.encode encodes at a time


def with_defaults(kind: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a class of diffusers: `settings`, and its own defaults for what they leave out."""
    arguments = inspect.signature(kind).parameters
    defaults = {name: argument.default for name, argument in arguments.items() if argument.default is not inspect.Parameter.empty}
    return defaults | {name: value for name, value in settings.items() if name in arguments}


def grid(settings: Mapping[str, Any], image_size: int) -> Grid:
    """Return the grid of latents of pictures of `image_size` pixels. Raises PlaitError for a size, or strides, that do not fit."""
    sizes, name = with_defaults(AutoencoderKLWan, settings), AutoencoderKLWan.__name__
    later = 2 ** sum(sizes["temperal_downsample"])
    if later != _CHUNK:
        raise PlaitError(f"model.world.source: an {name} with {later} frames to a latent frame, and diffusers encodes {_CHUNK} at a time")
    stride = 2 ** (len(sizes["dim_mult"]) - 1) * (sizes["patch_size"] or 1)
    return Grid(name, sizes["z_dim"], cells(name, image_size, stride), later=later)


def make(settings: Mapping[str, Any], image_size: int) -> AutoencoderKLWan:
    """Return the VAE with random weights, or none on the meta device."""
    vae: AutoencoderKLWan = AutoencoderKLWan(**with_defaults(AutoencoderKLWan, settings))
    return vae


def read(source: str, where: Mapping[str, Any], settings: Mapping[str, Any], image_size: int) -> AutoencoderKLWan:
    """Return the VAE with the weights of `source`. `where`: subfolder and revision. Raises what diffusers raises."""
    vae: AutoencoderKLWan = AutoencoderKLWan.from_pretrained(source, **where, **trust.DIFFUSERS)
    return vae


class FoldedConv(WanCausalConv3d):
    """Diffusers' causal convolution in time, with the same result, but a single first frame is computed as a 2-D convolution.

    Causal padding puts zero frames before the first frame, so only the last slice in time of a kernel (k, kh, kw) contributes.
    """

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        """Convolve (B, C, F, H, W) causally in time; `cache_x`: last frames of the chunk before, None for the first."""
        left, _, top, _, before, _ = self._padding
        if x.shape[2] != 1 or cache_x is not None or before != self.kernel_size[0] - 1:
            output: Tensor = super().forward(x, cache_x)
            return output
        y = F.conv2d(x.squeeze(2), self.weight[:, :, -1], self.bias, (self.stride[1], self.stride[2]), (int(top), int(left)))
        return y.unsqueeze(2)


def fold(vae: AutoencoderKLWan) -> None:
    """Make the encoder's convolutions FoldedConv, in place, so that single images are encoded faster; parameters keep their names."""
    for parent in (vae.encoder, vae.quant_conv):
        for module in parent.modules():
            if type(module) is WanCausalConv3d:
                module.__class__ = FoldedConv


class Encoder(WorldEncoder):
    """Pictures and clips to the latents of a Wan VAE. `vae` is changed in place; its decoder stays on the host, unused."""

    mean: Tensor
    std: Tensor

    def __init__(self, vae: AutoencoderKLWan, settings: Mapping[str, Any], image_size: int) -> None:
        super().__init__(
            grid(settings, image_size), {"_class_name": AutoencoderKLWan.__name__, **with_defaults(AutoencoderKLWan, settings)}
        )
        fold(vae)
        keep_on_host(vae.decoder, vae.post_quant_conv)
        self.vae = vae
        for name in ("mean", "std"):
            self.register_buffer(name, torch.empty(self.grid.channels, 1, 1, 1, dtype=torch.float32, device="cpu"), persistent=False)
        self.fill()

    def fill(self) -> None:
        """Set the statistics of its latents."""
        for name, value in (("mean", self.mean), ("std", self.std)):
            value.copy_(torch.tensor(self.vae.config[f"latents_{name}"], device="cpu").view_as(value))

    def encode(self, frames_BFCSS: Tensor) -> Tensor:
        """Encode uint8 frames (B, F, 3, S, S) to latents (B, C, T, h, h). Pixels are mapped to -1..+1 first."""
        pictures = unit_range(frames_BFCSS, self.dtype).transpose(1, 2)
        if pictures.shape[2] == 1:  # nothing to carry from frame to frame, so none of the stock loop's copies
            patches = patchify(pictures, self.vae.config["patch_size"] or 1)
            latents = self.vae.quant_conv(self.vae.encoder(patches)).chunk(2, dim=1)[0]
        else:
            latents = self.vae.encode(pictures).latent_dist.mode()
        normalised: Tensor = (latents - self.mean.to(latents)) / self.std.to(latents)
        return normalised
