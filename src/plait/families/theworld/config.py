"""The `model:` section of family theworld: Gemma 3, the world encoder (a video VAE) and its projector. Does not import torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator, model_validator

from plait.config.schema import ModelSection
from plait.families.theworld.pretrained import held
from plait.families.theworld.pretrained.published import COSMOS
from plait.families.theworld.tiny_sizes import TINY_ENCODERS, Tiny

TINY = "tiny"
SMALLEST_CELL = 8
"""Pixels of a side of the smallest latent cell of any encoder; towers.py holds `image_size` to the encoder's own."""

Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Base of the sections inside `model:`: unknown keys are errors, and values cannot be changed after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class WorldEncoderConfig(Section):
    """`model.world`: the world encoder and its projector into the language model; `false` or `off` leaves plain Gemma 3."""

    source: str = Field(
        default=COSMOS,
        description="Hub name or local directory of a Wan or Cosmos VAE (of a pipeline its `vae` folder), DINOv3 or V-JEPA 2; or `tiny`",
    )
    revision: str | None = Field(default=None, description="commit or tag of a Hub source")
    tokens: Literal["pooled", "patches", "spatial", "channel"] = Field(
        default="pooled",
        description="pooled: the mean of a square group of latent cells; patches: the group itself; spatial: a cell; channel: a channel",
    )
    projector: Literal["mlp", "linear"] = Field(default="mlp", description="mlp: two layers with a GELU between")
    max_tokens: Positive = Field(
        default=256, description="tokens per latent frame; `pooled`, `patches` take the smallest group that keeps to it; others ignore it"
    )
    image_size: Annotated[int, Field(ge=SMALLEST_CELL, multiple_of=SMALLEST_CELL)] = Field(default=512, description="pixels of a side")
    steps: Annotated[int, Field(ge=0)] = Field(
        default=0, description="latent frames after the first, each of so many frames as the encoder folds: of Wan 4"
    )
    max_steps: Positive = Field(default=16, description="rows of the temporal position embedding, less one; there is none while steps is 0")

    @property
    def tiny(self) -> str | None:
        """Return NAME of the random encoder that `source` means: of `tiny` "wan", of `tiny:dinov3` "dinov3"; None of any other source."""
        word, _, name = self.source.partition(":")
        return (name or "wan") if word == TINY else None

    @field_validator("source")
    @classmethod
    def _check_tiny(cls, value: str) -> str:
        word, colon, name = value.partition(":")
        if word == TINY and colon and name not in TINY_ENCODERS:
            raise ValueError(f"there is no {value}; known: {TINY}, {', '.join(f'{TINY}:{each}' for each in TINY_ENCODERS)}")
        return value

    @model_validator(mode="after")
    def _check_steps(self) -> "WorldEncoderConfig":
        if self.steps > self.max_steps:
            raise ValueError(f"world.steps is {self.steps}, more than world.max_steps, {self.max_steps}: raise max_steps")
        return self


class Augment(Section):
    """`model.augment`: random changes to training images, drawn from the sample's seed.

    They are the same for both encoders; held-out images are never changed.
    """

    flip: bool = Field(
        default=False, description="mirror left and right in half of the samples; wrong wherever the text says left or right"
    )
    shift: Annotated[float, Field(ge=0.0, lt=0.5)] = Field(
        default=0.0, description="largest shift, as a share of the side; the edge is repeated"
    )

    @property
    def on(self) -> bool:
        """Return whether any of them is asked for."""
        return self.flip or self.shift > 0


class Config(ModelSection):
    """The `model:` section of family theworld: Gemma 3 with a world encoder. `layouts`: {what `plait export --to` takes: what loads it}."""

    layouts: ClassVar[Mapping[str, str]] = {
        "hf": "transformers; Gemma 3 without its world",
        "theworld": "plait.theworld, and transformers after `import plait.hf`: the whole model, its frozen world encoder by name and hash",
        "theworld-with-encoder": "the same with the world encoder's weights",
    }
    without: ClassVar[Mapping[str, str]] = {"hf": "world", "peft": "world"}
    whole: ClassVar[str | None] = "theworld"

    renames: ClassVar[Mapping[str, str]] = {  # how older releases of transformers named the parts of Gemma 3
        r"^gemma\.language_model\.model\.": "gemma.model.language_model.",
        r"^gemma\.(vision_tower|multi_modal_projector)\.": r"gemma.model.\1.",
        r"\.vision_tower\.vision_model\.": ".vision_tower.",
    }

    base: str = Field("google/gemma-3-4b-it", description="Hub name or local directory of a Gemma3ForConditionalGeneration, or `tiny`")
    base_revision: str | None = Field(default=None, description="commit or tag of a Hub base")
    world: WorldEncoderConfig | None = Field(default=WorldEncoderConfig(), description="false or off: plain Gemma 3")
    system: str | None = Field(default=None, description="system text, put before the first user turn of every conversation that has none")
    augment: Augment = Augment()
    tiny: Tiny = Tiny()

    def absent(self) -> Mapping[str, str]:
        """Return {component: reason} of components that this model lacks.

        Without `world`: projector, world, world_decoder, world_time. With `world.steps` above 0: world_time, which is part of world then.
        """
        if self.world is None:
            return dict.fromkeys(("projector", "world", "world_decoder", "world_time"), "model.world is off")
        return {"world_time": "model.world.steps is not 0, and it is a part of world"} if self.world.steps else {}

    def drawn(self) -> tuple[str, ...]:
        """Return the language model where it is tiny."""
        return ("language",) if self.base == TINY else ()

    def within(self, folder: Path) -> "Config":
        """Return this section with the parts that the folder of an export holds, Gemma and the world encoder, named by it."""
        return Config.model_validate(held.within(self.model_dump(), folder))

    @field_validator("world", mode="before")
    @classmethod
    def _parse_world(cls, value: object) -> object:
        """Turn the switches of YAML and of the command line into a section: `on` means the defaults, `off` None.

        None rather than False inside, so that an error names one path of the section and not two.
        """
        if value is True or (isinstance(value, str) and value.lower() in ("on", "true")):
            return {}
        if isinstance(value, str) and value.lower() in ("off", "false"):
            return None
        return None if value is False else value

    @field_serializer("world")
    def _write_world(self, value: WorldEncoderConfig | None) -> WorldEncoderConfig | Literal[False]:
        return False if value is None else value

    @model_validator(mode="before")
    @classmethod
    def _default_tiny_world(cls, values: object) -> object:
        """Give a tiny base a tiny world encoder of the same image size, unless the section says otherwise."""
        if not isinstance(values, dict) or values.get("base") != TINY:
            return values
        world = cls._parse_world(values.get("world", {}))
        if not isinstance(world, dict):
            return values
        size = (values.get("tiny") or {}).get("image_size", Tiny.model_fields["image_size"].default)
        world_size = -(-int(size) // SMALLEST_CELL) * SMALLEST_CELL
        return {**values, "world": {"source": TINY, "image_size": world_size, **world}}
