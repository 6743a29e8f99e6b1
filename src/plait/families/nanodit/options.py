"""The options of `plait generate` for family nanodit. No torch: help lists them."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

_SIZE = r"^[1-9]\d*x[1-9]\d*$"


class GenerateOptions(BaseModel):
    """Options of `plait generate` for this family; in place of None, the run's setting in `model.sampling` is used."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: list[str] = Field(default=[""], description="what to draw; repeat it for several pictures")
    image: Path | None = Field(default=None, description="reference image")
    size: str | None = Field(default=None, pattern=_SIZE, description="WIDTHxHEIGHT in pixels; by default that of most training pictures")
    count: Annotated[int, Field(ge=1)] = Field(default=1, description="pictures per prompt, of consecutive seeds")
    seed: int = Field(default=0, description="of the first picture's noise")
    steps: Annotated[int, Field(ge=1)] | None = Field(default=None, description="steps of the solver")
    solver: str | None = Field(default=None, description="euler or heun")
    text_scale: float | None = Field(default=None, description="guidance by the prompt; 1: none")
    image_scale: float | None = Field(default=None, description="guidance by the reference image; 1: none")
    guidance: str | None = Field(default=None, description="two_scale or joint")
    interval: str | None = Field(default=None, description="LOW,HIGH: the t between which there is guidance")
    grid: str | None = Field(default=None, description="uniform or quadratic")
    shift: float | None = Field(default=None, description="of the times; 1: none")

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value
