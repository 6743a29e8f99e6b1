"""The options of `plait generate` for family theworld. No torch: help lists them."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator


class GenerateOptions(BaseModel):
    """Options of `plait generate` for family theworld: Gemma 3, to which a world encoder (a frozen video model) gives more image tokens.

    They come from the command line. Raises pydantic's ValidationError for unknown names and values out of range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str = Field(default="", description="the user's text; <image> marks the place of the next image, else images come first")
    image: list[Path] = Field(default=[], description="image files; the world encoder sees the first")
    frames: list[Path] = Field(default=[], description="a clip for the world encoder: its pictures in order, a folder of them, or a video")
    max_new_tokens: Annotated[int, Field(ge=1)] = Field(default=128, description="longest answer")
    temperature: Annotated[float, Field(ge=0.0)] = Field(default=0.0, description="0: always the likeliest token")
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=1.0, description="draw among the likeliest tokens of this total probability"
    )
    seed: int = Field(default=0, description="of the draw, where temperature is above 0")
    world: bool = Field(default=True, description="off: leave out the world encoder's tokens; this model's Gemma answers without them")

    @field_validator("image", "frames", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | Path) else value
