"""What a family's model can take in: how long a sequence, how large an image, and which input each of its components learns from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from plait.errors import BadSample, PlaitError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Limits:
    """The limits of a model, known from its `model:` section without its weights."""

    positions: int | None = None
    """The longest sequence, in tokens, that the language model has positions for; None: no limit is known."""
    image_side: int | None = None
    """Pixels of a side at which the model sees an image: a smaller one is enlarged. None: it has no size of its own."""
    needs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """{component, or setting as "model.world.steps": keys of a sample, of which one must hold something for it to learn or be used}."""
    idle: Mapping[str, str] = field(default_factory=dict)
    """{setting in `needs`: its value where it asks for nothing, as "0"}."""


def no_limits(config: Any) -> Limits:
    """Return no limits, for a family that names none."""
    return Limits()


def language_positions(language: "PreTrainedConfig") -> int | None:
    """Return how many positions a language model has: its max_position_embeddings, or what its scaled rotary embedding extends them to.

    None for a model without a limit (ALiBi, recurrent models).
    """
    sizes = language.get_text_config().to_dict()
    rope = sizes.get("rope_parameters") or {}
    scaled = int((rope.get("factor") or 1) * (rope.get("original_max_position_embeddings") or 0))  # YaRN, arXiv 2309.00071
    names = ("max_position_embeddings", language.get_text_config().attribute_map.get("max_position_embeddings", ""))
    own = next((sizes[name] for name in names if sizes.get(name)), None)
    return own if own is None else max(int(own), scaled)


def check_length(positions: int, available: int | None) -> None:
    """Raise BadSample for a sequence that takes more `positions` than are `available` (None: no limit)."""
    if available is not None and positions > available:
        raise BadSample(f"{positions} tokens, and the model has {available} positions: data.max_tokens {available} would cut its end")


def check_max_tokens(max_tokens: int | None, limits: Limits) -> None:
    """Raise PlaitError where the setting `data.max_tokens` is more than the model has positions for."""
    positions = limits.positions
    if max_tokens is not None and positions is not None and max_tokens > positions:
        raise PlaitError(f"data.max_tokens is {max_tokens}, but the model has {positions} positions: set it to {positions} or less")
