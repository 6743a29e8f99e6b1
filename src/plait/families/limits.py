"""Limits of the input of a family's (kind of) model: longest sequence, image size, and which input each component (part) learns from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from plait.errors import BadSample, PlaitError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Limits:
    """The input that a model can take, known from its `model:` section without weights: settings and data are checked against it."""

    positions: int | None = None
    """The longest sequence, in tokens, that the language model has positions for; None: no limit is known."""
    image_side: int | None = None
    """Side in pixels to which images are resized, a smaller one enlarged; None: there is no fixed size."""
    needs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """{component, or setting such as "model.world.steps": keys of a sample}; without data under any of the keys it has no effect."""
    idle: Mapping[str, str] = field(default_factory=dict)
    """{setting in `needs`: the value, such as "0", at which it is off and needs nothing}."""


def no_limits(config: Any) -> Limits:
    """Return Limits without any limit, for families that define no `limits`. `config`: the `model:` section, not used."""
    return Limits()


def language_positions(language: "PreTrainedConfig") -> int | None:
    """Return a language model's longest sequence in tokens, from its configuration, RoPE scaling included. None: no limit (ALiBi, ...)."""
    sizes = language.get_text_config().to_dict()
    rope = sizes.get("rope_parameters") or {}
    scaled = int((rope.get("factor") or 1) * (rope.get("original_max_position_embeddings") or 0))  # YaRN, arXiv 2309.00071
    names = ("max_position_embeddings", language.get_text_config().attribute_map.get("max_position_embeddings", ""))
    own = next((sizes[name] for name in names if sizes.get(name)), None)
    return own if own is None else max(int(own), scaled)


def check_length(positions: int, available: int | None) -> None:
    """Raise BadSample if a sequence takes more `positions` than the model has `available` (None: no limit)."""
    if available is not None and positions > available:
        raise BadSample(f"{positions} tokens, and the model has {available} positions: data.max_tokens {available} would cut its end")


def check_max_tokens(max_tokens: int | None, limits: Limits) -> None:
    """Raise PlaitError if the setting `data.max_tokens` (None: not set) exceeds the model's longest sequence, `limits.positions`."""
    positions = limits.positions
    if max_tokens is not None and positions is not None and max_tokens > positions:
        raise PlaitError(f"data.max_tokens is {max_tokens}, but the model has {positions} positions: set it to {positions} or less")
