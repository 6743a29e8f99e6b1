"""The encoders of theworld whose outputs can be kept while they are frozen: world latents, and the image features of SigLIP.

Kept outputs, also those of predicted futures, are held to the encoder that made them by its pin.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from plait.data.rollouts import stored
from plait.errors import PlaitError
from plait.families.frozen import FrozenEncoder
from plait.families.theworld import towers
from plait.families.theworld.config import Config, WorldEncoderConfig
from plait.families.theworld.model import IMAGE_FEATURES, WORLD_LATENTS, TheWorld
from plait.families.theworld.pretrained import hub
from plait.families.theworld.tiny_sizes import TINY_ENCODERS


def frozen_features(config: Config) -> list[FrozenEncoder]:
    """Return the world encoder, if there is one, and the vision tower with Gemma's image projection."""
    changes = "model.augment" if config.augment.on else None
    sizes = towers.gemma_config(config).to_dict()
    vision = {"vision": sizes["vision_config"], "tokens": sizes["mm_tokens_per_image"]}
    encoders = [FrozenEncoder(IMAGE_FEATURES, _images, _vision, _encode_images, vision, changes)]
    if config.world is not None:
        settings = {"encoder": towers.encoder_settings(config, config.world), "pin": pin(config, config.world)}
        encoders.insert(0, FrozenEncoder(WORLD_LATENTS, _clips, _world, _encode_clips, settings, changes))
    return encoders


def pin(config: Config, world: WorldEncoderConfig) -> dict[str, Any]:
    """Return what identifies an encoder and its input: {"source", "revision", "class", "xxh3", "image_size"}, as of `hub.pin`.

    Of a tiny one also its "sizes", those of `config.tiny` that it is made by: it has no weights elsewhere that a hash could be of.
    Raises PlaitError for an encoder that cannot be loaded.
    """
    if world.tiny is not None:
        sizes = {"world_base": config.tiny.world_base, "world_channels": config.tiny.world_channels}
        named = {"source": world.source, "revision": world.revision, "class": TINY_ENCODERS[world.tiny], "xxh3": None, "sizes": sizes}
    else:
        named = hub.pin(world.source, world.revision)
    return {**named, "image_size": world.image_size}


def stored_future(rollout: stored.Rollout, config: Config, *, train: bool) -> Tensor:
    """Return a sample's predicted future, (T, C, h, h).

    Raises PlaitError where it is of another encoder or the model has no world steps, BadSample where the sample has none.
    """
    assert config.world is not None
    if train and config.augment.on:
        raise PlaitError("model.augment changes pictures, and stored futures (`rollout`) are of unchanged ones: leave one of them out")
    if not config.world.steps:
        raise PlaitError("rollout changes nothing: model.world.steps is 0, so that no future is seen: leave it out, or set the steps")
    return stored.read(rollout, pin(config, config.world), config.world.steps)


def _images(batch: Mapping[str, Any]) -> Sequence[Tensor]:
    return list(batch["pixels"])


def _clips(batch: Mapping[str, Any]) -> Sequence[Tensor]:
    clips = torch.split(batch["frames"], batch["frame_counts"]) if len(batch["frames"]) else ()
    return [clip for clip in clips if len(clip)]  # a row with a stored future has none


def _vision(model: nn.Module) -> Sequence[nn.Module]:
    assert isinstance(model, TheWorld)
    return [model.gemma.model.vision_tower, model.gemma.model.multi_modal_projector]


def _world(model: nn.Module) -> Sequence[nn.Module]:
    assert isinstance(model, TheWorld)
    return [model.world] if model.world is not None else []


def _encode_images(model: nn.Module, pixels: Tensor) -> Tensor:
    assert isinstance(model, TheWorld)
    return model.image_features(pixels).contiguous()


def _encode_clips(model: nn.Module, frames_BFCSS: Tensor) -> Tensor:
    assert isinstance(model, TheWorld)
    return model.latents(frames_BFCSS)
