"""Settings that choose among a source's samples, and among the captions and templates of one sample."""

from typing import Annotated, Self

from pydantic import AfterValidator, Field, Strict, model_validator

from plait.config.sections import expression
from plait.config.sections.base import Natural, Rate, Section


def _condition(text: str) -> str:
    """Return a condition unchanged. Raises ValueError, with the place in it, for what is none."""
    return expression.parse(text).text


def _rising(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"is [{bounds[0]:g}, {bounds[1]:g}]: the least comes first")
    return bounds


def _named(columns: dict[str, float]) -> dict[str, float]:
    if not columns:
        raise ValueError("names no column: write {caption: 0.7, alt_text: 0.3}")
    return columns


class Captions(Section):
    """The columns that hold captions of a sample, of which one is its caption."""

    columns: Annotated[dict[str, Rate], AfterValidator(_named)] = Field(
        description="column: how often its text is drawn; of a list of texts, one of them"
    )


class Filter(Section):
    """Which samples of a source are read. The others are left out, each counted by the first of these that it fails."""

    dedup: str | None = Field(default=None, description="file of `plait data dedup`, whose copies are left out")
    expr: Annotated[str, AfterValidator(_condition)] | None = Field(
        default=None, description="a condition on columns: clip_score > 0.28 and lang == 'en'"
    )
    caption_tokens: Annotated[tuple[Natural, Natural], Strict(False), AfterValidator(_rising)] | None = Field(
        default=None, description="least and most words and marks of all captions and answers of a sample; of `captions`, of the likeliest"
    )
    min_side: Natural | None = Field(default=None, description="least pixels of the shorter side of each picture")
    aspect: Annotated[tuple[Rate, Rate], Strict(False), AfterValidator(_rising)] | None = Field(
        default=None, description="least and greatest width / height of each picture"
    )

    @model_validator(mode="after")
    def _filters(self) -> Self:
        if not self.model_fields_set or all(getattr(self, name) is None for name in type(self).model_fields):
            raise ValueError(f"filter is empty: it takes {', '.join(type(self).model_fields)}")
        return self
