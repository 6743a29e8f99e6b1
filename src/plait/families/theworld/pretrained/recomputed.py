"""The blocks of a world encoder, which activation checkpointing computes again where the encoder trains.

They are no units of sharding: micro-batches without a clip do not run them, and ranks would wait for each other. Diffusers' blocks of a
Wan VAE write the frames that a convolution needs of the chunk before into a list as they go, so that a second forward pass would read what
later chunks left there: here what is carried is given to a block, and returned.
"""

import re
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl_wan import (
    AutoencoderKLWan,
    WanAttentionBlock,
    WanCausalConv3d,
    WanResample,
    WanResidualBlock,
)
from torch import Tensor, nn

from plait.families.theworld.pretrained import held, wan
from plait.families.theworld.pretrained.encoder import WorldEncoder

Carried = list[Any]
"""Of each convolution over time, the last frames of the chunk before; None before the first chunk."""


class _Carrying(nn.Module):
    """The seam: a call is as diffusers makes it, and `forward` takes and returns what is carried, and changes nothing else."""

    def __call__(self, x: Tensor, feat_cache: Carried | None = None, feat_idx: list[int] | None = None) -> Tensor:
        """Compute the block, with its part of the list `feat_cache`, from `feat_idx[0]` on, which moves on."""
        if feat_cache is None or feat_idx is None:
            alone: Tensor = super().__call__(x)
            return alone
        first = feat_idx[0]
        part = slice(first, first + self._count())
        output: Tensor
        output, feat_cache[part] = super().__call__(x, feat_cache[part])
        feat_idx[0] = part.stop
        return output

    def forward(self, x: Tensor, carried: Carried | None = None) -> Any:
        """Return diffusers' output of one chunk, or (output, what the next one is given)."""
        if carried is None:
            return super().forward(x)
        after = [*carried]
        return super().forward(x, after, [0]), after

    def _count(self) -> int:
        """Return how many convolutions carry frames."""
        raise NotImplementedError


class ResidualBlock(_Carrying, WanResidualBlock):  # type: ignore[misc]  # diffusers' `forward` takes the list itself
    """Diffusers' residual block."""

    def _count(self) -> int:
        return 2


class Resample(_Carrying, WanResample):  # type: ignore[misc]  # diffusers' `forward` takes the list itself
    """Diffusers' downsampling, in the plane or also over time."""

    def _count(self) -> int:
        return sum(isinstance(part, WanCausalConv3d) for part in self.children())


_PURE = {"CosmosResnetBlock3d", "CosmosDownsample3d", "VJEPA2Layer", "DINOv3ViTLayer", "DINOv3ConvNextLayer"}
"""Classes of other encoders' blocks, by name so that none is imported for it, whose forward pass changes nothing."""
_CLASSES: dict[type[nn.Module], type[nn.Module]] = {WanResidualBlock: ResidualBlock, WanResample: Resample}


def recomputable(vae: AutoencoderKLWan) -> list[nn.Module]:
    """Make the encoder's blocks ones that may be computed twice, in place; parameters keep their names. Returns them in order."""
    found = list[nn.Module]()
    for module in vae.encoder.modules():
        module.__class__ = _CLASSES.get(type(module), type(module))
        if isinstance(module, ResidualBlock | Resample | WanAttentionBlock):
            found.append(module)
    return found


def recomputed(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of the model's world encoder, first ones first; [] without one. Those of a Wan VAE are made computable twice."""
    encoder = next((module for module in model.modules() if isinstance(module, WorldEncoder)), None)
    if encoder is None:
        return []
    if isinstance(encoder, wan.Encoder):
        return recomputable(encoder.vae)
    parts = encoder.named_modules(prefix="world")
    return [module for name, module in parts if type(module).__name__ in _PURE and not re.match(held.UNUSED, name)]
