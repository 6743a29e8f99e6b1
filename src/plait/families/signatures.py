"""The types of what family.py of a family holds: its inputs, and the functions that make inputs and model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn

Sample = dict[str, Any]
"""One raw item of data: `id`, `images` (encoded files), `messages` ([{"role", "content"}]), `fields` (a dict), for clips `frames`."""


class Inputs(Protocol):
    """Turns samples into batches of tensors; runs in data workers, without the model."""

    def encode(self, sample: Sample, key: int) -> Any:
        """Return the example of a sample. All randomness comes from `key`, a 64-bit seed. Raises BadSample if it cannot be used."""

    def collate(self, examples: Sequence[Any]) -> dict[str, Any]:
        """Return a batch of examples as tensors by name; optionally `cut` (B,): how many tokens of each example's text were cut off."""


class MakeInputs(Protocol):
    """Type of a family's `Inputs(config, assets, *, max_tokens, pad, train)`. `config`: the `model:` section; the others as in a call."""

    def __call__(self, config: Any, assets: Path, *, max_tokens: int | None, pad: str, train: bool) -> Inputs:
        """Return inputs. `train`: augment; False for held-out data. `max_tokens`: of a sample, None: any. `pad`: a word of `data.pad`."""


class Build(Protocol):
    """Type of a family's `build(config, assets, *, seed)`: from the `model:` section and the folder of assets to the new model."""

    def __call__(self, config: Any, assets: Path, *, seed: int) -> nn.Module:
        """Return the model on the CPU, or under a meta device. `seed` alone draws. Raises PlaitError for weights that cannot be loaded."""


class BuildOver(Protocol):
    """Type of `build_over(config, assets, *, seed, parts)`: `build`, not reading the weights of `parts`, named as in "language.x"."""

    def __call__(self, config: Any, assets: Path, *, seed: int, parts: frozenset[str]) -> nn.Module:
        """Return what `build` does, but any values as the weights of `parts`, names of `base`: the caller overwrites them all."""
