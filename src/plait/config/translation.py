"""What translating a foreign configuration yields: a tree in plait's names, and a row for each of the author's keys."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plait.config.nodes import Node
from plait.config.reading import Override


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
    """Another trainer's configuration format, translated into plait's names.

    `recognise(tree, own top-level keys)` is true for a file in this dialect; it raises PlaitError on one that mixes it with ours.
    `translate(tree, overrides, path of the file, own top-level keys)` raises PlaitError on a key that is neither theirs nor, on the command
    line, ours. `scripts` are names given in place of a file; `open_script(name, words)` makes the tree of one.
    """

    name: str
    recognise: Callable[[Node, Sequence[str]], bool]
    translate: Callable[[Node, Sequence[Override], Path, Sequence[str]], Translation]
    scripts: Collection[str] = ()
    open_script: Callable[[str, Sequence[str]], Node] | None = None
