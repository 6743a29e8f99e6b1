"""The base of each family's `model:` section, which is validated by the family's own class."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict


class ModelSection(BaseModel):
    """Base of each model family's `model:` section: frozen, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    refused: ClassVar[Mapping[tuple[str, ...], Mapping[str, str]]] = {}
    """Settings that the family cannot train with: {path, as ("train", "precision"): {refused value: reason}}."""
    variants: ClassVar[Mapping[str, str]] = {}
    """Switches of `plait eval` that measure the model with changed settings: {name of the variant: help text}."""
    layouts: ClassVar[Mapping[str, str]] = {}
    """Layouts that `plait export --to` writes the model in, one for each of `exports` in the family's export.py: {name: help text}."""
    without: ClassVar[Mapping[str, str]] = {}
    """Layouts whose models do without an input that the family's have, such as frames of the world: {layout: name of the input}."""
    whole: ClassVar[str | None] = None
    """The layout that holds all of the model; None: the first of `layouts`."""
    renames: ClassVar[Mapping[str, str]] = {}
    """Names of parameters in older checkpoints: {pattern, as in re.sub: replacement}, for what a library has renamed since."""

    def absent(self) -> Mapping[str, str]:
        """Return the components that these settings leave out of the model: {name: why, as "model.world is off"}."""
        return {}

    def drawn(self) -> Collection[str]:
        """Return the components without which nothing right is put out, such as a language model, that are drawn at random."""
        return ()

    def variant(self, name: str) -> tuple[Self, int]:
        """Return (this section with the settings of the variant `name`, one of `variants`; the longest sequence it needs, in tokens).

        Raises NotImplementedError where a family lists variants and does not define this.
        """
        raise NotImplementedError(f"{type(self).__name__} lists no variant {name!r}")

    def within(self, folder: Path) -> Self:
        """Return this section with `folder`, an export, in place of the sources of the pretrained parts that it holds itself."""
        return self
