"""The sizes of tiny models, for tests and trials: `model.tiny`, and the names of the random world encoders. Does not import torch."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

POOLED = "wan-pooled"
"""A random Wan VAE whose latents tell places and motion (pretrained/pooled.py)."""
TINY_ENCODERS = {
    "wan": "AutoencoderKLWan",
    POOLED: "AutoencoderKLWan",
    "wan2.2": "AutoencoderKLWan",
    "cosmos1": "AutoencoderKLCosmos",
    "dinov3": "DINOv3ViTModel",
    "dinov3-convnext": "DINOv3ConvNextModel",
    "vjepa2": "VJEPA2Model",
}
"""Random world encoders by NAME, as in `world.source: tiny:NAME`, and their classes."""

Positive = Annotated[int, Field(ge=1)]


class Tiny(BaseModel):
    """`model.tiny`: sizes of the random model that `base: tiny` and `world.source: tiny` build; by default 1.1 M parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hidden: Positive = Field(default=128, description="features of a token")
    layers: Positive = Field(default=4, description="of the language model")
    heads: Positive = Field(default=4, description="query heads")
    kv_heads: Positive = Field(default=2, description="key and value heads, each for some of the query heads")
    head_dim: Positive = Field(default=32, description="features of a head")
    mlp: Positive = Field(default=256, description="width of the feed-forward layer")
    window: Positive = Field(default=64, description="tokens that a local layer sees")
    global_every: Positive = Field(default=2, description="every n-th layer is global")
    vocabulary: Annotated[int, Field(ge=300)] = Field(default=512, description="rows: 256 bytes, special tokens, merges")
    positions: Positive = Field(default=2048, description="longest sequence, tokens")
    image_size: Positive = Field(default=32, description="pixels of a side, as the vision tower sees it")
    patch: Positive = Field(default=4, description="pixels of a side")
    image_tokens: Positive = Field(default=16, description="soft tokens per image, a square number")
    vision_hidden: Positive = Field(default=128, description="features of a patch in the vision tower")
    vision_layers: Positive = Field(default=2, description="of the vision tower")
    vision_heads: Positive = Field(default=4, description="of the vision tower")
    vision_mlp: Positive = Field(default=256, description="width of the vision tower's feed-forward layer")
    initializer_range: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        default=0.02,
        description="standard deviation of Gemma's first weights. Its blocks put out rms 1, its embeddings this times sqrt(hidden): "
        "hidden ** -0.5 makes them equal, and a model from nothing learn to look several times faster",
    )
    world_base: Positive = Field(default=8, description="channels of the world encoder's first layer")
    world_channels: Positive = Field(default=4, description="latent channels")

    @model_validator(mode="after")
    def _check_pooling(self) -> "Tiny":
        side = round(self.image_tokens**0.5)
        if side * side != self.image_tokens or self.image_size % self.patch or (self.image_size // self.patch) % side:
            raise ValueError(
                f"tiny: {self.image_size} px in patches of {self.patch} px cannot be pooled to {self.image_tokens} image tokens: "
                "image_size must be a multiple of patch x the square root of image_tokens"
            )
        return self
