"""The configuration of a whole exported model, config.json, as transformers reads it: the sizes of its parts, and how they join."""

from typing import Any

from transformers import Gemma3Config, PreTrainedConfig

from plait.families.theworld.config import Config

CODE = "modeling_theworld.py"
"""A file of an export by which transformers finds the classes of plait, where it is told to trust the export's code."""
CODE_TEXT = '''"""The classes of this model are those of plait, which has to be installed. `import plait.hf` has the same effect."""

from plait.theworld import TheWorldConfig, TheWorldForConditionalGeneration, TheWorldProcessor

__all__ = ["TheWorldConfig", "TheWorldForConditionalGeneration", "TheWorldProcessor"]
'''
AUTO_MAP = {
    "AutoConfig": "modeling_theworld.TheWorldConfig",
    "AutoModelForImageTextToText": "modeling_theworld.TheWorldForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_theworld.TheWorldForConditionalGeneration",
    "AutoProcessor": "modeling_theworld.TheWorldProcessor",
}
"""Where transformers finds them: `auto_map` of config.json and of processor_config.json. Without it AutoProcessor is a bare tokenizer."""


class TheWorldConfig(PreTrainedConfig):
    """Sizes and settings of an exported model: of Gemma (`gemma_config`), of the world encoder (`encoder_config`) and of what joins them.

    `section`: the `model:` section of its run, which says how images become world tokens. `encoder_config`: the arguments of diffusers'
    class, None for plain Gemma 3. `encoder_pin`: {"source", "revision", "xxh3" of its weights}, where the files do not hold the encoder.
    `encoder_origin`: the pin of where it was read from, with another hash (hub.pin), where the files hold it.
    """

    model_type = "theworld"
    sub_configs = {"gemma_config": Gemma3Config}  # noqa: RUF012  transformers' own attribute

    def __init__(
        self,
        *,
        gemma_config: dict[str, Any] | Gemma3Config | None = None,
        section: dict[str, Any] | None = None,
        encoder_config: dict[str, Any] | None = None,
        encoder_pin: dict[str, Any] | None = None,
        encoder_origin: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        """Read the parts from their dicts; all are given but where transformers constructs the class for its defaults."""
        self.gemma_config = gemma_config if isinstance(gemma_config, Gemma3Config) else Gemma3Config(**(gemma_config or {}))
        self.section = section or {"base": "tiny", "world": False}
        self.encoder_config, self.encoder_pin, self.encoder_origin = encoder_config, encoder_pin, encoder_origin
        super().__init__(**{"tie_word_embeddings": self.gemma_config.tie_word_embeddings, **kwargs, "auto_map": AUTO_MAP})

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Do nothing: transformers would copy the file of this class into what it saves."""

    @property
    def plait(self) -> Config:
        """The `model:` section, typed. Raises pydantic's ValidationError for one that this version of plait does not know."""
        return Config.model_validate(self.section)

    def get_text_config(self, decoder: Any = None, encoder: Any = None) -> Any:
        """Return Gemma's configuration of the language model, which `generate` makes the cache of."""
        return self.gemma_config.get_text_config()
