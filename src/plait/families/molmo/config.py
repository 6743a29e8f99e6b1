"""The `model:` section of family molmo: language model, vision tower, tiling of images, framing of text. Does not import torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from plait.config.schema import ModelSection
from plait.families.molmo.hf.sizes import POOL, Tiling, Tower
from plait.families.molmo.pretrained import held

DEBUG = "debug"

Positive = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]


_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# fmt: off
TOWERS: dict[str, Tower] = {
    "openai": Tower(kind="clip", source="openai/clip-vit-large-patch14-336", hidden=1024, layers=23, heads=16, mlp=4096,
                    image=336, patch=14, features=(-2, -9), positions=24, letterbox=True, mean=_CLIP_MEAN, std=_CLIP_STD,
                    act="quick_gelu", eps=1e-5),
    "siglip": Tower(kind="siglip", source="google/siglip-so400m-patch14-384", hidden=1152, layers=27, heads=16, mlp=4304,
                    image=378, patch=14, features=(-3, -9), positions=27, letterbox=False, mean=_HALF, std=_HALF,
                    act="gelu_pytorch_tanh"),
    "dino":   Tower(kind="dino", source="facebook/dinov2-large", hidden=1024, layers=24, heads=16, mlp=4096,
                    image=336, patch=14, features=(-3, -9), positions=37, letterbox=False, mean=_IMAGENET_MEAN, std=_IMAGENET_STD),
    DEBUG:    Tower(kind="clip", source=DEBUG, hidden=96, layers=3, heads=4, mlp=256,
                    image=48, patch=6, features=(-1, -2), positions=8, letterbox=True, mean=_CLIP_MEAN, std=_CLIP_STD,
                    act="quick_gelu", eps=1e-5),
}

# The language models: keyword arguments of transformers' own configuration classes.
_SIZES = "model_type hidden_size num_hidden_layers num_attention_heads num_key_value_heads intermediate_size vocab_size rms_norm_eps"
_SHORT = {"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "tie_word_embeddings": False}
_QWEN2 = {**_SHORT, "max_position_embeddings": 131072, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
          "bos_token_id": 151643, "eos_token_id": 151643}
LANGUAGES: dict[str, dict[str, Any]] = {
    "qwen2_7b":  {**_QWEN2, **dict(zip(_SIZES.split(), ("qwen2", 3584, 28, 28, 4, 18944, 152064, 1e-6), strict=True))},
    "qwen2_72b": {**_QWEN2, **dict(zip(_SIZES.split(), ("qwen2", 8192, 80, 64, 8, 29568, 152064, 1e-5), strict=True))},
    "olmo_1024_preview": {**_SHORT, **dict(zip(_SIZES.split(), ("olmo2", 4096, 32, 32, 32, 11008, 100352, 1e-6), strict=True)),
                          "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "eos_token_id": 100257, "pad_token_id": 100277},
    "olmoe": {**_SHORT, **dict(zip(_SIZES.split(), ("olmoe", 2048, 16, 16, 16, 1024, 50304, 1e-5), strict=True)),
              "num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False, "eos_token_id": 50279, "pad_token_id": 1},
    DEBUG: {**_SHORT, **dict(zip(_SIZES.split(), ("qwen2", 128, 4, 4, 2, 256, 768, 1e-6), strict=True)), "bos_token_id": 0,
            "eos_token_id": 0, "initializer_range": 0.088},  # hidden ** -0.5: a layer's output then has the scale of its input
}
SOURCES = {"qwen2_7b": "Qwen/Qwen2-7B", "qwen2_72b": "Qwen/Qwen2-72B", "olmo_1024_preview": "allenai/OLMo-7B-1024-preview",
           "olmoe": "allenai/OLMoE-1B-7B-0924"}
# fmt: on


class Config(ModelSection):
    """The `model:` section of family molmo. `variants`: {flag of `plait eval`: meaning}; `layouts`: {of `plait export`: what loads it}."""

    variants: ClassVar[Mapping[str, str]] = {"high-res": "36 crops and 4096 tokens"}
    layouts: ClassVar[Mapping[str, str]] = {"hf": "transformers, with its own code", "molmo": "the published Molmo layout"}
    without: ClassVar[Mapping[str, str]] = {"peft": "image"}  # adapters of the language model, which peft loads alone

    language: str = Field("qwen2_7b", description=f"{', '.join(LANGUAGES)}, or Hub name or directory of any causal language model")
    language_revision: str | None = Field(default=None, description="commit or tag of a Hub language model")
    vision_backbone: Literal["openai", "siglip", "dino", "debug"] = Field(default="openai", description="vision tower; debug: tiny, random")
    vision_source: str | None = Field(default=None, description="Hub name or directory of the tower's weights; None: its publisher's")
    vision_revision: str | None = Field(default=None, description="commit or tag of a Hub tower")
    connector_hidden: Positive | None = Field(default=None, description="width inside the projector; None: the language model's own MLP")
    max_crops: Positive = Field(default=12, description="high-resolution crops at most; 36 for high resolution")
    overlap: Annotated[int, Field(ge=0)] = Field(default=4, description="patches of margin that a crop shares with each neighbour")
    preprocessing: Literal["corrected", "published"] = Field(
        default="corrected",
        description="published: padding is marked one crop on, and thin pictures are one crop, as for published weights",
    )
    format: Literal["role", "none"] = Field(default="role", description="role: ` User: {q} Assistant:`; none: the prompt alone")
    style: Literal["none", "style", "demo_or_style", "style_and_length"] = Field(
        default="demo_or_style",
        description="a prompt's start; style: its name; demo_or_style: 90 % of demo styles without; style_and_length: name and length",
    )
    wordings: bool = Field(default=True, description="drawn wordings for captions, points and counts of named datasets; false: labels")
    default_style: str | None = Field(default=None, description="if a sample names none; None: user_qa for a question, else long_caption")
    caption_length: int | None = Field(default=65, description="length, in 15 letters, asked of captions outside training; None: no number")
    weighting: Literal["none", "root_subsegments", "root_subsegments_root_tokens"] = Field(
        default="none", description="loss weight of each of n annotations of an image: 1, sqrt(1/n), or 2/sqrt(its tokens)/sqrt(n)"
    )
    residual_dropout: Probability = Field(default=0.0, description="after attention and MLP of each layer, at positions of the prompt")
    response_residual_dropout: Probability = Field(default=0.0, description="the same at positions that predict the answer")
    z_loss: Annotated[float, Field(ge=0.0)] = Field(default=1e-4, description="coefficient of the squared log-normaliser")

    def drawn(self) -> tuple[str, ...]:
        """Return the language model where it is that for tests."""
        return ("language",) if self.language == DEBUG else ()

    def within(self, folder: Path) -> "Config":
        """Return this section with an export in place of the language model's source, where it has its configuration and tokenizer."""
        if self.language == DEBUG or held.language(folder) is None:
            return self
        return self.model_copy(update={"language": str(folder), "language_revision": None})

    def variant(self, name: str) -> tuple["Config", int]:
        """Return (this section with up to 36 crops, the data.max_tokens that these need). `name`: "high-res", the only one."""
        assert name in self.variants
        return self.model_copy(update={"max_crops": 36}), 4096

    @property
    def tower(self) -> Tower:
        """Return the sizes of the vision tower that `vision_backbone` names."""
        return TOWERS[self.vision_backbone]

    @property
    def tiling(self) -> Tiling:
        """Return how images are cut into crops for the tower."""
        return Tiling(self.tower, self.max_crops, self.overlap, self.preprocessing)

    @model_validator(mode="before")
    @classmethod
    def _default_debug_parts(cls, values: object) -> object:
        """Give the debug language model the debug tower, small overlap and few crops, unless the section says otherwise."""
        if not isinstance(values, dict) or values.get("language") != DEBUG:
            return values
        debug: dict[str, object] = {"vision_backbone": DEBUG, "max_crops": 4} if "vision_backbone" not in values else {}
        if values.get("vision_backbone", DEBUG) == DEBUG:
            debug["overlap"] = 2
        return {**debug, **values}

    @model_validator(mode="after")
    def _check_overlap(self) -> "Config":
        if self.overlap % POOL or self.tiling.window < 1:
            raise ValueError(
                f"overlap is {self.overlap} patches of a crop's {self.tower.side}: it must be a multiple of {POOL}, "
                f"and twice it less than {self.tower.side}"
            )
        return self
