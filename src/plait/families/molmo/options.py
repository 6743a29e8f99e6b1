"""The options of `plait generate` for family molmo. No torch: help lists them."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator


class GenerateOptions(BaseModel):
    """Options of `plait generate` for family molmo, checked from the command line."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str = Field(default="", description="the user's text; images come first, or at <|image|> marks")
    image: list[Path] = Field(default=[], description="image files")
    style: str | None = Field(default=None, description="what the prompt begins with, such as vqa2; None: the model's default_style")
    max_new_tokens: Annotated[int, Field(ge=1)] = Field(default=256, description="longest answer")
    temperature: Annotated[float, Field(ge=0.0)] = Field(default=0.0, description="0: always the likeliest token")
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=1.0, description="draw among the likeliest tokens of this total probability"
    )
    seed: int = Field(default=0, description="of the draw, where temperature is above 0")

    @field_validator("image", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | Path) else value
