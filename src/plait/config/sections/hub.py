"""The settings of pushing a run to the Hub."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from plait.config.sections.base import Section

_REPOSITORY = re.compile(r"(?:\b[\w.-]{1,96}\b/)?\b[\w.-]{1,96}\b", re.ASCII)
_NEVER = re.compile(r"--|\.\.|\.git$")


def repository(text: str) -> str:
    """Return the name of a repository of the Hub unchanged. Raises ValueError for what its client would not take."""
    if not _REPOSITORY.fullmatch(text):
        form = "1 to 96 of a-z, A-Z, 0-9, -, _ and . each, no - or . at an end"
        raise ValueError(f"is {text!r}, which is no repository of the Hub: write owner/name, or name alone for your own ({form})")
    if _NEVER.search(text):
        raise ValueError(f"is {text!r}, which is no repository of the Hub: no name has -- or .. in it, or .git at its end")
    return text


class Hub(Section):
    """Settings of pushes to the Hub, whose token comes from HF_TOKEN or `hf auth login`."""

    repo: Annotated[str, AfterValidator(repository)] = Field(description="owner/name, or name alone for the token's own; made if need be")
    push: Literal["every_save", "best", "end"] = Field(
        default="end", description="which checkpoints: all; those that are the best so far (checkpoint.best); the last of each stage"
    )
    private: bool = Field(default=True, description="whether a repository that is made is private; one that is public is then refused")
