"""The settings of pushing a run to the Hub."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from plait.config.sections.base import Section

_REPOSITORY = re.compile(r"(?:[\w.-]+/)?[\w.-]+")


def repository(text: str) -> str:
    """Return the name of a repository of the Hub unchanged. Raises ValueError for what cannot be one."""
    if not _REPOSITORY.fullmatch(text):
        raise ValueError(f"is {text!r}, which is no repository of the Hub: write owner/name, or name alone for your own")
    return text


class Hub(Section):
    """Settings of pushes to the Hub, whose token comes from HF_TOKEN or `hf auth login`."""

    repo: Annotated[str, AfterValidator(repository)] = Field(description="owner/name, or name alone for the token's own; made if need be")
    push: Literal["every_save", "best", "end"] = Field(
        default="end", description="which checkpoints: all; those that are the best so far (checkpoint.best); the last of each stage"
    )
    private: bool = Field(default=True, description="whether a repository that is made is private; one that is public is then refused")
