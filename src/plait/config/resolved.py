"""A validated configuration after all layers are merged, with one view per stage. How it is read is in load.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.config.nodes import dotted, leaves
from plait.config.schema import RunConfig
from plait.config.translation import TranslatedKey

ABSENT = "(absent)"


@dataclass(frozen=True)
class StageView:
    """The effective configuration of one stage."""

    index: int  # from 1
    name: str
    config: RunConfig


@dataclass(frozen=True)
class Resolved:
    """A validated run: its configuration, the view of each stage, and the origin of every leaf.

    `translation` has a row for each key of a file in a dialect. `yaml` is the whole configuration, defaults included; `load_config`
    reads it back to an equal one. `train_options`: options of `plait train` that a dialect's flags stand for: `restart`, `fresh`.
    """

    config: RunConfig
    stages: tuple[StageView, ...]
    origins: dict[str, str]
    translation: list[TranslatedKey]
    warnings: list[str]
    yaml: str
    train_options: frozenset[str] = frozenset()


def folder(text: str | None) -> Path | None:
    """Return the path of a folder setting with `~` expanded; None for None."""
    return None if text is None else Path(text).expanduser()


def dump(config: RunConfig) -> dict[str, Any]:
    """Return the configuration as plain data, under the key names that a file uses."""
    return config.model_dump(mode="json", by_alias=True)


def difference(a: RunConfig | Resolved, b: RunConfig | Resolved) -> list[tuple[str, Any, Any]]:
    """Return the leaves in which two configurations differ: (path, value in a, value in b), ABSENT where one has none."""
    in_a, in_b = (dict(leaves(dump(each.config if isinstance(each, Resolved) else each))) for each in (a, b))
    values = ((path, in_a.get(path, ABSENT), in_b.get(path, ABSENT)) for path in dict.fromkeys([*in_a, *in_b]))
    return [(dotted(path), old, new) for path, old, new in values if old != new or type(old) is not type(new)]
