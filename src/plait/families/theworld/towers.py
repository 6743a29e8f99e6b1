"""Load the pretrained parts, Gemma 3 and the world encoder: configuration, weights and tokenizer.

Each comes from a Hub name or a local `save_pretrained` directory (pretrained/), or is `tiny`: small and random, for tests. Every loader
raises PlaitError, in one line that names the setting, for a part that cannot be loaded.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from plait.errors import PlaitError
from plait.families.theworld import tiny
from plait.families.theworld.config import TINY, Config, WorldEncoderConfig
from plait.families.theworld.pretrained import classes, gemma, hub
from plait.families.theworld.pretrained.encoder import Grid, WorldEncoder
from plait.nn.tokenizer import open_tokenizer

TOKENIZER = "tokenizer"
"""Folder of a tokenizer trained on the spot, inside the run's directory."""


def gemma_config(config: Config) -> Gemma3Config:
    """Return the configuration of Gemma (`model.base`), without loading weights; nothing is downloaded for published and tiny ones.

    Raises PlaitError, which names the setting and the reason, if it cannot be loaded.
    """
    if config.base == TINY:
        return Gemma3Config(**tiny.gemma_sizes(config.tiny))
    return gemma.config(config.base, config.base_revision)


def image_sizes(config: Gemma3Config) -> tuple[int, int]:
    """Return (image side of the vision tower in pixels, tokens per image), from Gemma's configuration."""
    sizes = config.to_dict()
    return sizes["vision_config"]["image_size"], sizes["mm_tokens_per_image"]


def load_gemma(config: Config, seed: int) -> Gemma3ForConditionalGeneration:
    """Load Gemma in the dtype it was saved in; on the meta device, build it without weights. One named `tiny` is drawn from `seed`.

    Raises PlaitError, which names the setting and the reason, if it cannot be loaded.
    """
    if _on_meta():
        return Gemma3ForConditionalGeneration(gemma_config(config))
    if config.base == TINY:
        return tiny.gemma(gemma_config(config), seed)
    return gemma.load(config.base, config.base_revision)


def encoder_settings(config: Config, world: WorldEncoderConfig) -> dict[str, Any]:
    """Return the configuration of the encoder at `world.source`, as pretrained/classes.py says, without loading weights.

    That of a tiny one is made by `config.tiny`. Raises PlaitError, which names the setting and the reason, if it cannot be loaded.
    """
    if world.tiny is not None:
        return tiny.encoder_settings(config.tiny, world.tiny)
    return hub.settings(world.source, world.revision)


def encoder_grid(config: Config, world: WorldEncoderConfig) -> Grid:
    """Return the grid of latents of `world`. Raises PlaitError for an encoder that cannot be loaded, and sizes that do not fit it."""
    return classes.grid(encoder_settings(config, world), world.image_size, world.steps)


def load_encoder(config: Config, world: WorldEncoderConfig, seed: int) -> WorldEncoder:
    """Load the world encoder; on the meta device, build it without weights. A tiny one is drawn from `seed`.

    Raises PlaitError, which names the setting and the reason, if it cannot be loaded, and for sizes that do not fit it.
    """
    encoder_grid(config, world)
    settings = encoder_settings(config, world)
    if _on_meta():
        return hub.random(settings, world.image_size)
    if world.tiny is None:
        return hub.load(world.source, world.revision, world.image_size)
    return tiny.encoder(settings, world.tiny, world.image_size, seed)


def load_tokenizer(config: Config, assets: Path) -> Tokenizer:
    """Load Gemma's fast tokenizer, or a tiny model's from `assets`, the folder of the model's files. Raises PlaitError if there is none."""
    if config.base == TINY:
        path = assets / TOKENIZER / "tokenizer.json"
        if not path.is_file():
            raise PlaitError(f"no tokenizer at {path}: a tiny model's tokenizer is trained when its run starts; give that run's directory")
        return open_tokenizer(path, "copy it back from a fork or a backup of the run; a new one would number the tokens otherwise")
    return gemma.tokenizer(config.base, config.base_revision)


def _on_meta() -> bool:
    return torch.get_default_device().type == "meta"
