"""Redraw a random Wan VAE's encoder so that its latents tell places and motion.

It pools pixels, and mixes channels and frames at random. Latents of wholly random kernels tell neither, for what can be learned from a few
thousand clips. It is for tiny encoders that stay frozen.
"""

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, WanAttentionBlock, WanResidualBlock
from torch import Tensor, nn


@torch.no_grad()
def pool(vae: AutoencoderKLWan) -> None:
    """Redraw the convolutions of the encoder, in place, to pool pixels and mix channels; residual blocks become the identity.

    Where a side is halved, a kernel averages 2 x 2 pixels, elsewhere it takes the one in the middle; channels are mixed at random. A kernel
    over time adds random differences of frames to their mean, so that latents of a clip that stands still are those of its picture.
    """
    for module in (*vae.encoder.modules(), vae.quant_conv):
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            assert module.bias is not None
            nn.init.zeros_(module.bias)
            _redraw(module.weight, halves=module.stride[-1] == 2)
    for block in vae.encoder.modules():
        if isinstance(block, WanResidualBlock | WanAttentionBlock):
            nn.init.zeros_((block.conv2 if isinstance(block, WanResidualBlock) else block.proj).weight)


def _redraw(weight: Tensor, *, halves: bool) -> None:
    """Redraw a kernel (out, in, [frames,] rows, columns). `halves`: its stride in space is 2."""
    mixed = torch.randn(weight.shape[:2]) * weight.shape[1] ** -0.5
    if weight.shape[2:] == (3, 1, 1):
        differences = torch.randn(weight.shape) * weight[0].numel() ** -0.5
        means = torch.eye(*weight.shape[:2])[..., None, None, None] / 3
        weight.copy_(differences - differences.mean(2, keepdim=True) + means)
    elif halves:
        weight.zero_()[..., :2, :2] = mixed[..., None, None] / 4
    else:
        centre = weight.shape[-1] // 2
        last = weight.zero_() if weight.dim() == 4 else weight.zero_()[:, :, -1]
        last[..., centre, centre] = mixed


def squares() -> Tensor:
    """Return white pictures (64, 3, 32, 32), pixels in -1..+1, each with a square of a random colour anywhere.

    They are like scenes: their latents give the scale.
    """
    pictures = torch.ones(64, 3, 32, 32)
    for picture, (top, left) in zip(pictures, torch.randint(0, 25, (64, 2)).tolist(), strict=True):
        picture[:, top : top + 8, left : left + 8] = (torch.rand(3) * 2 - 1)[:, None, None]
    return pictures
