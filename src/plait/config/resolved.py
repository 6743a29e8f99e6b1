"""A configuration after all layers: what the engine runs, without how it was read (config.py does that)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.config.nodes import dotted, leaves
from plait.config.schema import RunConfig

ABSENT = "(absent)"


@dataclass(frozen=True)
class StageView:
    """The effective configuration of one stage."""

    index: int  # from 1
    name: str
    config: RunConfig


@dataclass(frozen=True)
class Resolved:
    """A validated run. `origins` has an entry for every leaf; `translation` is (their key, their value, our path or None, note).

    `yaml` is the whole configuration, defaults included; `config.load` reads it back to the same thing.
    """

    config: RunConfig
    stages: tuple[StageView, ...]
    origins: dict[str, str]
    translation: list[tuple[str, Any, str | None, str]]
    warnings: list[str]
    yaml: str
    asked: frozenset[str] = frozenset()
    """What a dialect's flags ask of the command: `restart`, `fresh`."""


def folder(text: str | None) -> Path | None:
    """A folder as a file names it, `~` opened."""
    return None if text is None else Path(text).expanduser()


def dump(config: RunConfig) -> dict[str, Any]:
    """Plain data under the names that a file uses."""
    return config.model_dump(mode="json", by_alias=True)


def difference(a: RunConfig | Resolved, b: RunConfig | Resolved) -> list[tuple[str, Any, Any]]:
    """The leaves in which two configurations differ: (path, value in a, value in b), ABSENT where one has none."""
    left, right = (dict(leaves(dump(one.config if isinstance(one, Resolved) else one))) for one in (a, b))
    every = dict.fromkeys([*left, *right])
    pairs = ((path, left.get(path, ABSENT), right.get(path, ABSENT)) for path in every)
    return [(dotted(path), mine, theirs) for path, mine, theirs in pairs if mine != theirs or type(mine) is not type(theirs)]
