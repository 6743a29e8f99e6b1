"""Load the pretrained parts: a causal language model and a vision tower of transformers, their configurations and the tokenizer.

A part named `debug` is small and random, for tests. Of a tower, only what its features depend on is built: no last layer norm, no heads, no
text half. Every loader raises PlaitError, in one line that names the setting, for a part that cannot be loaded.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils.hub import cached_file

from plait.errors import PlaitError
from plait.families.molmo.config import DEBUG, LANGUAGES, SOURCES, Config
from plait.families.molmo.hf.vision_tower import KINDS, VisionTower, vision_config
from plait.families.molmo.pretrained import held
from plait.families.molmo.pretrained.checks import check_tower, loading
from plait.keys import key
from plait.nn import trust
from plait.nn.connectors import seeded
from plait.nn.tokenizer import open_tokenizer

MAIN = "main"  # the Hub's name of an unpinned revision
TOKENIZER = "tokenizer"  # folder of a tokenizer trained on the spot, inside the run's directory


def language_config(config: Config) -> PreTrainedConfig:
    """Return the language model's configuration; for those in LANGUAGES nothing is downloaded. Raises PlaitError if it cannot be loaded."""
    if (sizes := LANGUAGES.get(config.language) or held.language(config.language)) is not None:
        known: PreTrainedConfig = AutoConfig.for_model(**sizes)
        return known
    with loading("model.language", config.language):
        loaded: PreTrainedConfig = AutoConfig.from_pretrained(config.language, revision=config.language_revision or MAIN, **trust.CONFIG)
        return loaded


def load_language(config: Config, seed: int) -> PreTrainedModel:
    """Load the language model (on the meta device without weights; `debug`: drawn from `seed`). Raises PlaitError if that fails."""
    sizes = language_config(config)
    if _on_meta():
        meta: PreTrainedModel = AutoModelForCausalLM.from_config(sizes)
        return meta
    if config.language == DEBUG:
        return seeded(key(seed, "molmo", "language") >> 1, lambda: _random_language_model(sizes))
    held.refuse(config.language)
    source = SOURCES.get(config.language, config.language)
    with loading("model.language", source):
        loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            source, revision=config.language_revision or MAIN, dtype="auto", **trust.WEIGHTS
        )
        return loaded


def _random_language_model(sizes: PreTrainedConfig) -> PreTrainedModel:
    """Draw a debug model whose embeddings have unit scale, that of the outputs of layers with std hidden ** -0.5."""
    model: PreTrainedModel = AutoModelForCausalLM.from_config(sizes)
    with torch.no_grad():
        model.get_input_embeddings().get_parameter("weight").mul_(sizes.hidden_size**0.5)
    return model


def load_vision(config: Config, seed: int) -> VisionTower:
    """Load the vision tower (on the meta device without weights; `debug`: drawn from `seed`). Raises PlaitError if it cannot be loaded."""
    tower = config.tower
    model_class = KINDS[tower.kind][1]
    source = config.vision_source or tower.source
    if _on_meta():
        return new_vision(config)
    if source == DEBUG:
        return seeded(key(seed, "molmo", "vision") >> 1, lambda: new_vision(config))
    with loading("model.vision_source", source):
        published = AutoConfig.from_pretrained(source, revision=config.vision_revision or MAIN, **trust.CONFIG)
        sizes: PreTrainedConfig = published.vision_config if "vision_config" in published.sub_configs else published
        check_tower(sizes, tower, config.vision_backbone, source)
        model = model_class.from_pretrained(source, config=sizes, revision=config.vision_revision or MAIN, dtype="auto", **trust.WEIGHTS)
        return VisionTower(model, tower)


def new_vision(config: Config) -> VisionTower:
    """Build the configured tower with random weights, for debug models, or to load the weights of an export into it."""
    return VisionTower(KINDS[config.tower.kind][1](vision_config(config.tower)), config.tower)


def load_tokenizer(config: Config, assets: Path) -> Tokenizer:
    """Load the language model's fast tokenizer, or a debug model's from `assets`, the folder of the model's files.

    Raises PlaitError if there is none or it cannot be loaded.
    """
    if config.language == DEBUG:
        path = assets / TOKENIZER / "tokenizer.json"
        if not path.is_file():
            raise PlaitError(f"no tokenizer at {path}: a debug model's tokenizer is trained when its run starts; give that run's directory")
        return open_tokenizer(path, "copy it back from a fork or a backup of the run; a new one would number the tokens otherwise")
    source = SOURCES.get(config.language, config.language)
    with loading("model.language", source):
        cached = held.tokenizer(source) or cached_file(source, "tokenizer.json", revision=config.language_revision or MAIN)
        return open_tokenizer(Path(str(cached)), "save or download it again")


def _on_meta() -> bool:
    return torch.get_default_device().type == "meta"


def embedding_rows(model: PreTrainedModel) -> int:
    """Return V, the rows of the language model's embedding, which is also the id of the first image token."""
    return model.get_input_embeddings().get_parameter("weight").shape[0]
