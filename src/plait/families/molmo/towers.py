"""The parts that others trained: a causal language model and a vision tower of transformers, their sizes, weights and tokenizer.

A tower is taken apart: what is never looked at (the last layer norm, heads, text halves) is not built.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.utils.hub import cached_file

from plait.errors import PlaitError
from plait.families.molmo.config import DEBUG, LANGUAGES, SOURCES, TOWERS, Config, Tower
from plait.keys import key
from plait.nn.connectors import seeded

MAIN = "main"  # the Hub's name of an unpinned revision
TOKENIZER = "tokenizer"  # folder of a tokenizer trained on the spot, inside the run's directory

_KINDS: dict[str, tuple[Any, Any]] = {
    "clip": (CLIPVisionConfig, CLIPVisionModel),
    "siglip": (SiglipVisionConfig, SiglipVisionModel),
    "dino": (Dinov2Config, Dinov2Model),
}


class VisionTower(nn.Module):
    """Patch and position embeddings and the transformer's layers, of which two are listened to."""

    def __init__(self, model: Any, tower: Tower):
        super().__init__()
        self.tower = tower
        self.embeddings: nn.Module = model.embeddings
        self.pre_norm: nn.Module | None = model.pre_layrnorm if tower.kind == "clip" else None
        stack = model.encoder.layer if tower.kind == "dino" else model.encoder.layers
        self.layers = nn.ModuleList(stack[: tower.layers])
        self.prefix = 0 if tower.kind == "siglip" else 1  # CLS stands before the patches
        self.wanted = [tower.layers + layer for layer in tower.features]

    def forward(self, crops: Tensor) -> Tensor:
        """uint8 crops (n, 3, S, S) to features (n, p * p, 2 * hidden): the outputs of two layers, without CLS."""
        unit = crops.float() / 255
        mean, std = (unit.new_tensor(values).view(3, 1, 1) for values in (self.tower.mean, self.tower.std))
        x = self.embeddings(((unit - mean) / std).to(next(self.embeddings.parameters()).dtype))
        x = x if self.pre_norm is None else self.pre_norm(x)
        found = {}
        for place, layer in enumerate(self.layers[: max(self.wanted) + 1]):
            x = layer(x, None)
            found[place] = x
        return torch.cat([found[place] for place in self.wanted], dim=-1)[:, self.prefix :]

    def unused(self) -> list[nn.Parameter]:
        """Parameters that no feature depends on: the layers above, which published checkpoints hold, and DINO's mask token."""
        idle = [p for layer in self.layers[max(self.wanted) + 1 :] for p in layer.parameters()]
        return idle + [p for name, p in self.embeddings.named_parameters() if name == "mask_token"]


def language_config(config: Config) -> PreTrainedConfig:
    """Sizes of the language model, without its weights."""
    if config.language in LANGUAGES:
        return AutoConfig.for_model(**LANGUAGES[config.language])
    with _named("model.language", config.language):
        return AutoConfig.from_pretrained(config.language, revision=config.language_revision or MAIN)


def load_language(config: Config, seed: int) -> PreTrainedModel:
    """The language model with its weights in the type they were saved in; without weights on the meta device."""
    sizes = language_config(config)
    if _on_meta():
        return AutoModelForCausalLM.from_config(sizes)
    if config.language == DEBUG:
        return seeded(key(seed, "molmo", "language") >> 1, lambda: _drawn(sizes))
    source = SOURCES.get(config.language, config.language)
    with _named("model.language", source):
        return AutoModelForCausalLM.from_pretrained(source, revision=config.language_revision or MAIN, dtype="auto")


def _drawn(sizes: PreTrainedConfig) -> PreTrainedModel:
    """A debug model. Its embeddings have unit scale, as what layers of standard deviation hidden ** -0.5 put out has."""
    model: PreTrainedModel = AutoModelForCausalLM.from_config(sizes)
    with torch.no_grad():
        model.get_input_embeddings().get_parameter("weight").mul_(sizes.hidden_size**0.5)
    return model


def vision_config(tower: Tower) -> PreTrainedConfig:
    """Sizes of a tower of the table."""
    shared: dict[str, Any] = {
        "hidden_size": tower.hidden,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "patch_size": tower.patch,
    }
    shared |= {"hidden_act": tower.act, "layer_norm_eps": tower.eps, "image_size": tower.positions * tower.patch}
    if tower.kind == "dino":
        return Dinov2Config(**shared, mlp_ratio=tower.mlp // tower.hidden)
    kind = _KINDS[tower.kind][0]
    return kind(**shared, intermediate_size=tower.mlp, **({"vision_use_head": False} if tower.kind == "siglip" else {}))


def load_vision(config: Config, seed: int) -> VisionTower:
    """The tower with its weights; without them on the meta device; drawn from the seed for debug."""
    tower = config.tower
    kind = _KINDS[tower.kind][1]
    source = config.vision_source or tower.source
    if _on_meta():
        return new_vision(config)
    if source == DEBUG:
        return seeded(key(seed, "molmo", "vision") >> 1, lambda: new_vision(config))
    with _named("model.vision_source", source):
        found = AutoConfig.from_pretrained(source, revision=config.vision_revision or MAIN)
        sizes = getattr(found, "vision_config", found)
        _check_tower(sizes, tower, source)
        return VisionTower(kind.from_pretrained(source, config=sizes, revision=config.vision_revision or MAIN, dtype="auto"), tower)


def new_vision(config: Config) -> VisionTower:
    """The tower of its row of the table, as transformers initialises it."""
    return VisionTower(_KINDS[config.tower.kind][1](vision_config(config.tower)), config.tower)


def _check_tower(sizes: PreTrainedConfig, tower: Tower, source: str) -> None:
    wanted = {"hidden_size": tower.hidden, "patch_size": tower.patch, "num_attention_heads": tower.heads}
    given = {name: getattr(sizes, name) for name in wanted}
    if given != wanted or sizes.num_hidden_layers < tower.layers:
        known = next(name for name, row in TOWERS.items() if row == tower)
        raise PlaitError(
            f"model.vision_source: {source!r} has {given} and {sizes.num_hidden_layers} layers; "
            f"vision_backbone {known} wants {wanted} and at least {tower.layers}"
        )


def load_tokenizer(config: Config, directory: Path) -> Tokenizer:
    """The fast tokenizer of the language model, or the one trained on the spot in `directory`."""
    if config.language == DEBUG:
        path = directory / TOKENIZER / "tokenizer.json"
        if not path.is_file():
            raise PlaitError(f"no tokenizer at {path}: a debug model's tokenizer is trained when its run starts; give that run's directory")
        return Tokenizer.from_file(str(path))
    source = SOURCES.get(config.language, config.language)
    with _named("model.language", source):
        found = cached_file(source, "tokenizer.json", revision=config.language_revision or MAIN)
        return Tokenizer.from_file(str(found))


def _on_meta() -> bool:
    return torch.get_default_device().type == "meta"


@contextlib.contextmanager
def _named(setting: str, value: str) -> Iterator[None]:
    """One line that names the setting, in place of the Hub libraries' paragraphs."""
    try:
        yield
    except (OSError, ValueError) as error:  # absent, gated, no network; ValueError: no configuration of a causal language model
        reason = str(error).strip().splitlines()[0]
        raise PlaitError(f"{setting}: cannot load {value!r} as a Hub name or a local directory: {reason}") from error


def embedding_rows(model: nn.Module) -> int:
    """V: rows of the language model's own embedding; the extra rows' ids begin there."""
    rows: Any = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    return rows
