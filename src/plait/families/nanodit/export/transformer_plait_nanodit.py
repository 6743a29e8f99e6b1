"""The network of a nanodit model as a model of diffusers: the part `transformer` of its pipeline. Needs no plait."""

from typing import Any

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin

from plait.families.nanodit.network.shape import Shape
from plait.families.nanodit.network.transformer import NanoDiT


class PlaitNanoDiTTransformer(NanoDiT, ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers gives modules no types
    """Maps noisy samples, times and packed conditions to velocities or clean samples. `shape`: the fields of Shape.

    They are one entry of the configuration, as diffusers looks names up there before it does among a model's parts.
    """

    _no_split_modules = ["Block"]  # type: ignore[assignment]  # noqa: RUF012  diffusers' own attribute, None there

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, shape: dict[str, Any]) -> None:
        super().__init__(Shape(**shape))
