"""Load the pretrained parts, Gemma 3 and the Wan VAE (the world encoder): configuration, weights and tokenizer.

Each comes from a Hub name, a local `save_pretrained` directory, or is `tiny`: small and random, for tests. Every loader raises PlaitError,
in one line that names the setting, for a part that cannot be loaded.
"""

import contextlib
import logging
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, GenerationConfig
from transformers.initialization import no_init_weights

from plait.config import hub_errors
from plait.errors import PlaitError
from plait.families.theworld import published, tiny
from plait.families.theworld.config import TINY, Config, WorldEncoderConfig
from plait.keys import key
from plait.nn import trust
from plait.nn.connectors import seeded
from plait.nn.pretrained import weights_hash
from plait.nn.tokenizer import open_tokenizer

log = logging.getLogger(__name__)

MAIN = "main"
"""The Hub's name of an unpinned revision."""
TOKENIZER = "tokenizer"
"""Folder of a tokenizer trained on the spot, inside the run's directory."""


def gemma_config(config: Config) -> Gemma3Config:
    """Return the configuration of Gemma (`model.base`), without loading weights; nothing is downloaded for published and tiny ones.

    Raises PlaitError, which names the setting and the reason, if it cannot be loaded.
    """
    if config.base == TINY:
        return Gemma3Config(**tiny.gemma_sizes(config.tiny))
    if config.base in published.GEMMA:
        return Gemma3Config(**published.GEMMA[config.base])
    with _loading("model.base", config.base):
        return Gemma3Config.from_pretrained(config.base, revision=config.base_revision or MAIN, **trust.CONFIG)


def image_sizes(config: Config) -> tuple[int, int]:
    """Return (image side of the vision tower in pixels, tokens per image), from Gemma's configuration."""
    sizes = gemma_config(config).to_dict()
    return sizes["vision_config"]["image_size"], sizes["mm_tokens_per_image"]


def wan_config(config: Config, world: WorldEncoderConfig) -> dict[str, Any]:
    """Return {name: value}, the configuration of the VAE at `world.source`, without loading weights; of a tiny one by `config.tiny`.

    Raises PlaitError, which names the setting and the reason, if it cannot be loaded.
    """
    if world.source == TINY:
        return tiny.wan_sizes(config.tiny)
    if world.source in published.WAN:
        return published.WAN[world.source]
    with _loading("model.world.source", world.source):
        return dict(AutoencoderKLWan.load_config(world.source, subfolder=subfolder(world), revision=world.revision, **trust.DIFFUSERS))


def load_gemma(config: Config, seed: int) -> Gemma3ForConditionalGeneration:
    """Load Gemma in the dtype it was saved in; on the meta device, build it without weights. One named `tiny` is drawn from `seed`.

    Raises PlaitError, which names the setting and the reason, if it cannot be loaded.
    """
    if _on_meta():
        return Gemma3ForConditionalGeneration(gemma_config(config))
    if config.base == TINY:
        gemma = seeded(key(seed, "theworld", "gemma") >> 1, lambda: Gemma3ForConditionalGeneration(gemma_config(config)))
        seeded(key(seed, "theworld", "image matrix") >> 1, lambda: tiny.init_image_projection(gemma))
        return gemma
    with _loading("model.base", config.base):
        return Gemma3ForConditionalGeneration.from_pretrained(
            config.base, revision=config.base_revision or MAIN, dtype="auto", **trust.WEIGHTS
        )


def empty_gemma(config: Config, seed: int) -> Gemma3ForConditionalGeneration:
    """Build Gemma with weights of any value, for a start that overwrites them, in the dtype that its configuration names.

    Reads the configurations of model and generation alone, or the weights too where no dtype is named: only they can tell it then.
    """
    settings = gemma_config(config)
    if not isinstance(settings.dtype, torch.dtype):
        return load_gemma(config, seed)
    with no_init_weights():
        gemma: Gemma3ForConditionalGeneration = Gemma3ForConditionalGeneration._from_config(settings, dtype=settings.dtype)
    try:
        gemma.generation_config = GenerationConfig.from_pretrained(config.base, revision=config.base_revision or MAIN)
    except OSError as error:
        if not Path(config.base).is_dir():  # a folder need not have one
            reason = next(iter(str(error).splitlines()), "")
            log.warning(f"{config.base}: its generation_config.json cannot be read ({reason}): an export has transformers' settings")
    gemma.tie_weights()
    gemma.get_input_embeddings().get_parameter("weight").data[: 1 << 16] = 1.0  # a new projector, overwritten too, is drawn at their scale
    return gemma


def load_wan(config: Config, world: WorldEncoderConfig, seed: int) -> AutoencoderKLWan:
    """Load the Wan VAE, whose decoder is never used; on the meta device, build it without weights. A `tiny` one is drawn from `seed`.

    Raises PlaitError, which names the setting and the reason, if it cannot be loaded.
    """
    if _on_meta():
        meta: AutoencoderKLWan = AutoencoderKLWan(**_public(wan_config(config, world)))
        return meta
    if world.source == TINY:
        vae: AutoencoderKLWan = seeded(key(seed, "theworld", "world encoder") >> 1, lambda: AutoencoderKLWan(**tiny.wan_sizes(config.tiny)))
        seeded(key(seed, "theworld", "latents") >> 1, lambda: tiny.measure_latent_statistics(vae))
        return vae
    with _loading("model.world.source", world.source):
        where = {"subfolder": subfolder(world), "revision": world.revision}
        loaded: AutoencoderKLWan = AutoencoderKLWan.from_pretrained(world.source, **where, **trust.DIFFUSERS)
        return loaded


def load_tokenizer(config: Config, assets: Path) -> Tokenizer:
    """Load Gemma's fast tokenizer, or a tiny model's from `assets`, the folder of the model's files. Raises PlaitError if there is none."""
    if config.base == TINY:
        path = assets / TOKENIZER / "tokenizer.json"
        if not path.is_file():
            raise PlaitError(f"no tokenizer at {path}: a tiny model's tokenizer is trained when its run starts; give that run's directory")
        return open_tokenizer(path, "copy it back from a fork or a backup of the run; a new one would number the tokens otherwise")
    with _loading("model.base", config.base):
        folder = Path(config.base)
        if folder.is_dir():
            path = folder / "tokenizer.json"
        else:
            path = Path(hf_hub_download(config.base, "tokenizer.json", revision=config.base_revision or MAIN))
        if not path.is_file():
            raise PlaitError(f"model.base: {config.base} holds no tokenizer.json; save the tokenizer there with save_pretrained")
        return open_tokenizer(path, "save or download it again")


def _on_meta() -> bool:
    return torch.get_default_device().type == "meta"


def _public(sizes: dict[str, Any]) -> dict[str, Any]:
    """Drop the private entries of a diffusers configuration."""
    return {name: value for name, value in sizes.items() if not name.startswith("_")}


def subfolder(world: WorldEncoderConfig) -> str | None:
    """Return "vae", the folder of a pipeline with its VAE. None if `world.source` is a local directory of a VAE alone."""
    return None if (Path(world.source) / "config.json").is_file() else "vae"


@lru_cache(maxsize=8)
def pin(world: WorldEncoderConfig) -> dict[str, Any]:
    """Return what identifies an encoder and its input: {"source", "revision", "image_size", "xxh3" of a local folder's weights or None}."""
    folder = Path(world.source) / (subfolder(world) or "")
    names = {"source": world.source, "revision": world.revision, "image_size": world.image_size}
    return {**names, "xxh3": weights_hash(folder) if folder.is_dir() else None}


@contextlib.contextmanager
def _loading(setting: str, value: str) -> Iterator[None]:
    """Turn the long errors of the Hub libraries into one line that names the setting."""
    try:
        yield
    except (OSError, HFValidationError, SafetensorError) as error:  # absent, gated, torn; or no name at all
        reason = hub_errors.reason(error, value)
        raise PlaitError(f"{setting}: cannot load {value!r} as a Hub name or a local directory: {reason}") from error
