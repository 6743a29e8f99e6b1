"""The `model:` section of the words family."""

from pydantic import Field

from plait.config.schema import ModelSection


class Config(ModelSection):
    """Sizes of the transformer, by the names that transformers has for them."""

    refused = {("data", "pad"): dict.fromkeys(("to_128", "to_max", "none"), "it pads to the longest of a micro-batch")}  # noqa: RUF012

    vocab_size: int = Field(default=512, ge=300, description="rows of the token table, filled by the tokenizer as far as texts go")
    hidden_size: int = Field(default=64, ge=1, description="features of a token")
    intermediate_size: int = Field(default=256, ge=1, description="features inside a feed-forward block")
    num_hidden_layers: int = Field(default=2, ge=1, description="transformer layers")
    num_attention_heads: int = Field(default=4, ge=1, description="attention heads of a layer")
    max_position_embeddings: int = Field(default=128, ge=2, description="longest sequence, tokens")
