"""The contract of a dialect (another trainer's format of configurations): how a file is recognised, and what its translation consists of.

Both sides are trees of nodes: values that know their file and line.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from plait.config.nodes import Node
from plait.config.reading import Override


class TranslatedKey(NamedTuple):
    """One key of a foreign configuration: its value there, plait's path for it (None: it has no meaning here), and a note."""

    key: str
    value: Any
    path: str | None
    note: str


@dataclass(frozen=True)
class Translation:
    """A foreign configuration in plait's names: the tree, and for each of the author's keys a row of what became of it.

    `overrides`: settings of the command line in plait's own names, still to be applied. `train_options`: options of `plait train` that the
    author's flags stand for: `restart`, `fresh`.
    """

    tree: Node
    overrides: Sequence[Override]
    rows: list[TranslatedKey] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    train_options: frozenset[str] = frozenset()
    dialect: str | None = None
    """Name of the dialect, in whose files paths are relative to the working directory; None: plait's own."""


@dataclass(frozen=True)
class Dialect:
    """Another trainer's configuration format, translated into plait's names.

    `recognise(tree, plait's top-level keys)` is true for a file in this dialect; it raises PlaitError for one that mixes it with plait's
    keys. `translate(tree, overrides, path of the file, plait's top-level keys)` raises PlaitError for an unknown key, which on the command
    line may also be one of plait's. `scripts`: names given in place of a file, such as `molmo/captioner`; `open_script(name, words)` makes
    the tree of one.
    """

    name: str
    recognise: Callable[[Node, Sequence[str]], bool]
    translate: Callable[[Node, Sequence[Override], Path, Sequence[str]], Translation]
    scripts: Collection[str] = ()
    open_script: Callable[[str, Sequence[str]], Node] | None = None
