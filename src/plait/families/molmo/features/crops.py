"""The features of molmo's crops, which can be kept while the vision tower is frozen."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from plait.families.frozen import FrozenEncoder

CROP_FEATURES = "crop_features"
"""Entry of a batch with what the frozen tower made of its `crops` (n patches, F), if that was kept."""


def frozen_features(config: Any) -> list[FrozenEncoder]:
    """Return the vision tower, whose features of a crop depend on that crop alone. `config`: the `model:` section."""
    return [FrozenEncoder(CROP_FEATURES, _crops, _tower, _encode, asdict(config.tower))]


def _crops(batch: Mapping[str, Any]) -> list[Tensor]:
    return list(batch["crops"])


def _tower(model: nn.Module) -> list[nn.Module]:
    return [model.get_submodule("vision")]


def _encode(model: nn.Module, crops: Tensor) -> Tensor:
    features: Tensor = model.get_submodule("vision")(crops)
    return features.contiguous()
