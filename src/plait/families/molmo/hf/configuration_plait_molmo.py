"""The configuration of an exported model, config.json, as transformers reads it."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig


class PlaitMolmoConfig(PreTrainedConfig):
    """Sizes of an exported model: of the language model (`text_config`), the tower (`vision_config`, `tower`) and the connector.

    `tower`: the fields of Tower, in sizes.py. `connector_hidden`: width inside the projector. `image_token_id`: that of `<im_patch>`; the
    first image token is two before it, and has the first id beyond the language model's embedding.
    """

    model_type = "plait_molmo"
    sub_configs = {"text_config": AutoConfig, "vision_config": AutoConfig}  # noqa: RUF012  transformers' own attribute

    def __init__(
        self,
        *,
        text_config: dict[str, Any] | PreTrainedConfig | None = None,
        vision_config: dict[str, Any] | PreTrainedConfig | None = None,
        tower: dict[str, Any] | None = None,
        connector_hidden: int = 0,
        image_token_id: int = 0,
        **kwargs: Any,
    ):
        """Read the parts from their dicts; all are given but where transformers constructs the class for its defaults."""
        self.text_config = _opened(text_config or {"model_type": "qwen2"})
        self.vision_config = _opened(vision_config or {"model_type": "clip_vision_model"})
        self.tower, self.connector_hidden, self.image_token_id = tower or {}, connector_hidden, image_token_id
        super().__init__(**kwargs)


def _opened(config: dict[str, Any] | PreTrainedConfig) -> PreTrainedConfig:
    opened: PreTrainedConfig = AutoConfig.for_model(**config) if isinstance(config, dict) else config
    return opened
