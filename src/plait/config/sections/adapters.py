"""Settings of adapters: small matrices that train beside frozen weights, LoRA and its kin. What is made of them: `assembly/adapters/`."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from plait.config.sections.base import Count, Rate, Section, Share

SUFFIX = ".lora"
"""What the name of a component's adapters adds to the component's: language.lora."""
AUTO = "auto"
"""The target that stands for all linear layers of a component's blocks."""
LAYOUT, HELP = "peft", "the adapters alone, for PeftModel.from_pretrained"
"""The layout of `plait export --to` that holds adapters alone, and its help."""


def component_of(name: str) -> str:
    """Return the component that a name of adapters belongs to, "language" of "language.lora"; another name is returned as it is."""
    return name.removesuffix(SUFFIX)


def joined(path: tuple[str, ...]) -> tuple[str, ...]:
    """Return a path of a setting with the name of adapters as one key, ("optim", "components", "language.lora", "lr")."""
    at = path.index("components") + 1 if "components" in path else len(path)
    own = path[at + 1 : at + 2] == (SUFFIX[1:],)
    return (*path[:at], path[at] + SUFFIX, *path[at + 2 :]) if own else path


def _as_list(value: Any) -> Any:
    """Return one name as a list of it, and anything else unchanged. Raises ValueError for an empty list."""
    if value == []:
        raise ValueError(f"an empty list gives adapters to no layer: name linear layers, as q_proj, or {AUTO}")
    return [value] if isinstance(value, str) else value


class Adapter(Section):
    """Adapters of one component: matrices A and B per layer, whose product B A is added to its weight, at first 0."""

    kind: Literal["lora", "rslora", "dora"] = Field(
        default="lora", description="rslora: scaled by alpha / sqrt(rank); dora: the length of each row of the weight trains apart"
    )
    rank: Count = Field(default=16, description="rows of A, columns of B")
    alpha: Rate | None = Field(default=None, description="B A is scaled by alpha / rank; None: the rank, so by 1")
    dropout: Share = Field(default=0.0, description="of the adapters' input, in training")
    quantize: Literal["nf4", "fp4"] | None = Field(default=None, description="the frozen weights of these layers in 4 bits (QLoRA)")
    targets: Annotated[list[str], BeforeValidator(_as_list)] = Field(
        default=[AUTO], description="linear layers by the end of their names, as q_proj; auto: all of its blocks, or of it if it has none"
    )
