"""The `model:` section of family nanodit (a text-conditioned diffusion transformer): size, conditions, time, sampling. No torch."""

from dataclasses import fields
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from plait.config.schema import ModelSection
from plait.families.nanodit.network.shape import Shape


class Size(NamedTuple):
    """A named model size: `depth` blocks of width `hidden`, with `heads` attention heads each.

    `parameters`: their number for 16-channel latents, patch 2, and text and image features of width 1,024.
    """

    depth: int
    hidden: int
    heads: int
    parameters: int


SIZES = {
    "12/384": Size(12, 384, 6, 45_363_648),
    "24/512": Size(24, 512, 8, 158_908_992),
    "18/768": Size(18, 768, 12, 268_008_768),
    "24/1024": Size(24, 1024, 16, 632_912_960),
    "28/1024": Size(28, 1024, 16, 737_807_424),
}
"""Sizes by name, as the setting `model.size` takes them."""
_SHAPE = ("depth", "hidden", "heads")

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """Base of the sections inside `model:`: unknown keys are errors, and values cannot be changed after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Dropout(Section):
    """Condition dropout in training: the probability that a sample keeps no condition, its text alone, or its image alone."""

    neither: Share = Field(default=0.1, description="probability of no condition at all")
    text_only: Share = Field(default=0.1, description="of the text without its reference image")
    image_only: Share = Field(default=0.1, description="of the reference image without its text")

    @model_validator(mode="after")
    def _sums(self) -> "Dropout":
        total = self.neither + self.text_only + self.image_only
        if total > 1 + 1e-9:
            raise ValueError(f"neither + text_only + image_only is {total:.6g}, more than 1: nothing is left for samples that keep both")
        return self


class Time(Section):
    """How the time t in (0, 1) of a training sample is drawn; t = 1 is noise."""

    sampling: Literal["logit_normal", "uniform"] = Field(default="logit_normal", description="of t; logit_normal: by loc, scale")
    loc: float = Field(default=0.0, description="mean of logit t")
    scale: Annotated[float, Field(gt=0.0)] = Field(default=1.0, description="standard deviation of logit t")
    shift: Annotated[float, Field(gt=0.0)] = Field(
        default=1.0, description="s in t' = s t / (1 + (s - 1) t); above 1: more noise, for large images"
    )


class Flip(Section):
    """Random horizontal mirroring of training samples: latents and caption together, or neither."""

    probability: Share = Field(default=0.5, description="with which a sample is mirrored")
    swap_caption: bool = Field(
        default=True, description="a caption that names a side is mirrored with its words swapped; off: such a sample is never mirrored"
    )


class Sampling(Section):
    """Defaults of generation, for benches (evaluations) and `plait generate`: solver, steps and guidance.

    `steps`: of the solver, from noise to data. `text_scale`, `image_scale`: guidance scales of text and reference image.
    """

    steps: Positive = Field(default=50, description="of the solver, from noise to data")
    solver: Literal["euler", "heun"] = Field(default="euler", description="heun: of second order, with two evaluations a step")
    text_scale: float = Field(default=3.0, description="guidance by the text; 1: none")
    image_scale: float = Field(default=2.0, description="guidance by the reference image; 1: none")
    guidance: Literal["two_scale", "joint"] = Field(
        default="two_scale", description="joint: the text's pull is measured in the image's presence"
    )
    interval: tuple[Share, Share] = Field(
        default=(0.0, 1.0), description="t between which there is guidance; elsewhere both conditions at scale 1"
    )
    grid: Literal["uniform", "quadratic"] = Field(default="uniform", description="quadratic: smaller steps near the data")
    shift: Annotated[float, Field(gt=0.0)] = Field(default=1.0, description="s of the step grid, as in time.shift")
    extractor: str = Field(default="tiny", description="picture features of bench `distance`: a local DINO folder, a Hub name, or tiny")
    folder: str = Field(default="validation", description="where benches write pictures; inside the run unless absolute")

    @model_validator(mode="after")
    def _interval_rises(self) -> "Sampling":
        if self.interval[0] >= self.interval[1]:
            raise ValueError(f"interval is {list(self.interval)}: its first t must be below its second")
        return self


class Config(ModelSection):
    """The `model:` section of family nanodit. `layouts`: {what `plait export --to` takes: what loads it}.

    `refused`: {setting: {value: reason}} of other settings that it cannot train with.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    layouts: ClassVar[dict[str, str]] = {"diffusers": "diffusers, with its own code: a pipeline with its encoders"}
    refused: ClassVar[dict[tuple[str, ...], dict[str, str]]] = {
        ("train", "precision"): {"fp16": "its residual stream grows beyond float16's 65,504; use bf16, which has float32's range"}
    }

    size: str | None = Field(default=None, description=f"a row of the table instead of depth, hidden and heads: {', '.join(SIZES)}")
    depth: Positive = Field(default=12, description="blocks")
    hidden: Annotated[int, Field(ge=4, multiple_of=4)] = Field(default=384, description="features of a token")
    heads: Positive = Field(default=6, description="of attention, in each block")
    mlp_ratio: Annotated[float, Field(gt=0.0)] = Field(default=4.0, description="width of the feed-forward layer, over hidden")
    patch: Positive = Field(default=2, description="cells (latents) or pixels of one side of a token")
    space: Literal["latents", "pixels"] = Field(default="latents", description="latents of a VAE, from shards, or pixels of photos")
    channels: Positive = Field(default=16, description="of the latents; 3 in pixel space")
    image_size: Positive = Field(default=32, description="pixel space: side of the square that photos are cropped to, pixels")
    text: Literal["states", "words"] = Field(
        default="states", description="states: a text encoder's, from the shards; words: learned here, from captions"
    )
    text_dim: Positive = Field(default=1024, description="features of a text token")
    words: Positive = Field(default=4096, description="rows of the table of words (text: words)")
    image_dim: Annotated[int, Field(ge=0)] = Field(default=1024, description="features of the reference image; 0: none is ever shown")
    prediction: Literal["v", "x"] = Field(default="v", description="what the network gives: velocity, or the clean sample")
    centre_positions: bool = Field(default=False, description="positions counted from the middle, so that sizes share a frame")
    dropout: Dropout = Dropout()
    time: Time = Time()
    flip: Flip = Flip()
    sampling: Sampling = Sampling()
    metadata: str | None = Field(
        default=None, description="metadata.json of the shards, or their folder: kept with the run, to encode prompts and decode latents"
    )

    @model_validator(mode="before")
    @classmethod
    def _row(cls, values: Any) -> Any:
        """Replace `size` by the depth, hidden width and heads of its row; refuse values that contradict the row."""
        if not isinstance(values, dict) or values.get("size") is None:
            return _pixels(values)
        if values["size"] not in SIZES:
            raise ValueError(f"size {values['size']!r} is not in the table: {', '.join(SIZES)}; or set depth, hidden and heads")
        row = SIZES[values["size"]]
        for name in _SHAPE:
            if values.get(name, getattr(row, name)) != getattr(row, name):
                raise ValueError(
                    f"size {values['size']} has {name} {getattr(row, name)}, but {name} is {values[name]}: set size to null, or drop {name}"
                )
        return _pixels({**values, **{name: getattr(row, name) for name in _SHAPE}})

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        if self.hidden % self.heads:
            raise ValueError(f"hidden is {self.hidden}, not a multiple of heads, {self.heads}")
        if self.space == "pixels" and self.channels != 3:
            raise ValueError(f"channels is {self.channels}, but pixels have 3")
        if self.space == "pixels" and self.image_size % self.patch:
            raise ValueError(f"image_size is {self.image_size}, not a multiple of patch, {self.patch}")
        if self.text_dim % 2 and self.text == "words":
            raise ValueError(f"text_dim is {self.text_dim}: words need an even number")
        return self

    def drawn(self) -> tuple[str, ...]:
        """Return the blocks and the head, which are zeros and noise at first."""
        return ("blocks", "final")

    @property
    def mlp(self) -> int:
        """Return the width of the feed-forward layer, `hidden` times `mlp_ratio` rounded."""
        return round(self.hidden * self.mlp_ratio)

    @property
    def shape(self) -> Shape:
        """Return what the network's layers are made from."""
        return Shape(**{field.name: getattr(self, field.name) for field in fields(Shape)})


def _pixels(values: Any) -> Any:
    """Set `channels` to 3 in pixel space where the file does not set it; another value is refused by the validator."""
    return {"channels": 3, **values} if isinstance(values, dict) and values.get("space") == "pixels" else values
