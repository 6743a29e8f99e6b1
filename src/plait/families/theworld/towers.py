"""Where the parts come from: Hub name, local `save_pretrained` directory or `tiny`; their configurations, weights and tokenizer."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError
from tokenizers import Tokenizer
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from plait.errors import PlaitError
from plait.families.theworld import published, tiny
from plait.families.theworld.config import TINY, Config, World
from plait.keys import key
from plait.nn.connectors import seeded

MAIN = "main"  # the Hub's name of an unpinned revision
TOKENIZER = "tokenizer"  # folder of a tokenizer trained on the spot, inside the run's directory


def gemma_config(config: Config) -> Gemma3Config:
    """Sizes of the base, without its weights."""
    if config.base == TINY:
        return Gemma3Config(**tiny.gemma_sizes(config.tiny))
    if config.base in published.GEMMA:
        return Gemma3Config(**published.GEMMA[config.base])
    with _named("model.base", config.base):
        return Gemma3Config.from_pretrained(config.base, revision=config.base_revision or MAIN)


def image_sizes(config: Config) -> tuple[int, int]:
    """(pixels of an image's side as the vision tower sees it, soft tokens per image)."""
    sizes = gemma_config(config).to_dict()
    return sizes["vision_config"]["image_size"], sizes["mm_tokens_per_image"]


def wan_config(config: Config, world: World) -> dict[str, Any]:
    """Sizes of the world encoder, without its weights."""
    if world.source == TINY:
        return tiny.wan_sizes(config.tiny)
    if world.source in published.WAN:
        return published.WAN[world.source]
    with _named("model.world.source", world.source):
        return dict(AutoencoderKLWan.load_config(world.source, subfolder=_folder(world), revision=world.revision))


def load_gemma(config: Config, seed: int) -> Gemma3ForConditionalGeneration:
    """The base with its weights in the type they were saved in; without weights on the meta device."""
    if _on_meta():
        return Gemma3ForConditionalGeneration(gemma_config(config))
    if config.base == TINY:
        gemma = seeded(key(seed, "theworld", "gemma") >> 1, lambda: Gemma3ForConditionalGeneration(gemma_config(config)))
        seeded(key(seed, "theworld", "image matrix") >> 1, lambda: tiny.settle_gemma(gemma))
        return gemma
    with _named("model.base", config.base):
        return Gemma3ForConditionalGeneration.from_pretrained(config.base, revision=config.base_revision or MAIN, dtype="auto")


def load_wan(config: Config, world: World, seed: int) -> AutoencoderKLWan:
    """The world encoder (and its decoder, which is never used or trained) with its weights; without them on the meta device."""
    if _on_meta():
        return AutoencoderKLWan(**_known(wan_config(config, world)))
    if world.source == TINY:
        vae = seeded(key(seed, "theworld", "world encoder") >> 1, lambda: AutoencoderKLWan(**tiny.wan_sizes(config.tiny)))
        seeded(key(seed, "theworld", "latents") >> 1, lambda: tiny.settle_wan(vae))
        return vae
    with _named("model.world.source", world.source):
        return AutoencoderKLWan.from_pretrained(world.source, subfolder=_folder(world), revision=world.revision)


def load_tokenizer(config: Config, directory: Path) -> Tokenizer:
    """The fast tokenizer of the base, or the one trained on the spot in `directory`."""
    if config.base == TINY:
        path = directory / TOKENIZER / "tokenizer.json"
        if not path.is_file():
            raise PlaitError(f"no tokenizer at {path}: a tiny model's tokenizer is trained when its run starts; give that run's directory")
        return Tokenizer.from_file(str(path))
    with _named("model.base", config.base):
        local = Path(config.base) / "tokenizer.json"
        found = (
            str(local)
            if Path(config.base).is_dir()
            else hf_hub_download(config.base, "tokenizer.json", revision=config.base_revision or MAIN)
        )
        if not Path(found).is_file():
            raise PlaitError(f"model.base: {config.base} holds no tokenizer.json; save the tokenizer there with save_pretrained")
        return Tokenizer.from_file(found)


def _on_meta() -> bool:
    return torch.get_default_device().type == "meta"


def _known(sizes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sizes.items() if not name.startswith("_")}


def _folder(world: World) -> str | None:
    """A directory may be the encoder's own; a pipeline, on the Hub or not, keeps it in `vae`."""
    return None if (Path(world.source) / "config.json").is_file() else "vae"


@contextlib.contextmanager
def _named(setting: str, value: str) -> Iterator[None]:
    """One line that names the setting, in place of the Hub libraries' paragraphs."""
    try:
        yield
    except (OSError, HFValidationError) as error:  # absent, gated, no network, no such file; or no name at all
        reason = str(error).strip().splitlines()[0]
        raise PlaitError(f"{setting}: cannot load {value!r} as a Hub name or a local directory: {reason}") from error
