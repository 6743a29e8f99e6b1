"""What translating a foreign configuration yields: a tree in plait's names, and a row for each of the author's keys."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plait.provenance import Node
from plait.reading import Override


@dataclass(frozen=True)
class Translation:
    """`overrides` are those left in plait's own names. A row is (their key, their value, our path or None, note)."""

    tree: Node
    overrides: Sequence[Override]
    rows: list[tuple[str, Any, str | None, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    asked: frozenset[str] = frozenset()
    """What was asked of the command rather than of the configuration: `restart`, `fresh`."""


@dataclass(frozen=True)
class Dialect:
    """`recognise(tree, own top-level keys)` is true for a file in this dialect, and raises on one that mixes it with plait's own.
    `translate(tree, overrides, path of the file, own top-level keys)` raises on a key that is not theirs, nor ours on the command line."""

    name: str
    recognise: Callable[[Node, Sequence[str]], bool]
    translate: Callable[[Node, Sequence[Override], Path, Sequence[str]], Translation]
