"""The contract of a dialect (another trainer's format of configurations): how a file is recognised, and what its translation consists of.

Both sides are trees of nodes: values that know their file and line. An Override is a setting of the command line, not yet applied.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from plait.config.nodes import COMMAND_LINE, KeyPath, Node, dotted, node_at
from plait.config.reading import Override
from plait.config.schema import WARMUP


class TranslatedKey(NamedTuple):
    """A `key` of another trainer's configuration: its value there, plait's dotted path for it (None: no meaning here), and a remark."""

    key: str
    value: Any
    path: str | None
    note: str


@dataclass(frozen=True)
class Translation:
    """Another trainer's configuration in plait's names: the `tree`, and in `rows` for each key of the original what it became.

    `overrides`: settings of the command line in plait's own names, still to be applied. `warnings`: lines to show at the start of a run.
    `train_options`: options of `plait train` that the author's flags stand for: `restart`, `fresh`.
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

    `recognise(tree, own)` is true for a file in this format, read as `tree`; it raises PlaitError for one that mixes the format with `own`,
    plait's top-level keys. `translate(tree, overrides, path, own)` raises PlaitError for an unknown key in the file at `path`, or among the
    settings `overrides` of the command line, which may also be in plait's names. `scripts`: names that may stand in place of a file, such
    as `captioner`, with the words that follow each; `open_script(name, words)` makes the tree that `translate` gets for one.
    `switches`: settings without a dot that may stand alone beside a script, all others taking the next word as their value; None: all.
    """

    name: str
    recognise: Callable[[Node, Sequence[str]], bool]
    translate: Callable[[Node, Sequence[Override], Path, Sequence[str]], Translation]
    scripts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    open_script: Callable[[str, Sequence[str]], Node] | None = None
    switches: frozenset[str] | None = None


CALLS = {
    "recognise": "recognise(tree, own)",
    "translate": "translate(tree, overrides, path, own)",
    "open_script": "open_script(name, words)",
}
"""How plait calls the function in each field of a Dialect. `own`: plait's top-level keys."""


def with_short_warmup(translation: Translation) -> Translation:
    """Return the translation with warm-ups that fit into the command line's `train.steps`, so that a trial of a few steps runs.

    Longer ones are cut to a tenth of it, with a warning. Unchanged if the command line sets no steps, or sets a warm-up itself.
    """
    steps = node_at(translation.tree, ("train", "steps"))
    count = steps.value if steps is not None and steps.file == COMMAND_LINE else None
    for override in translation.overrides:
        if override.path[0] == "optim" and override.path[-1] in WARMUP and "ema" not in override.path:
            return translation
        count = override.value() if override.path == ("train", "steps") else count
    if not isinstance(count, int) or count < 1:
        return translation
    cut: list[str] = []

    def shortened(node: Node, path: KeyPath) -> Node:
        if isinstance(node.value, dict):
            return replace(node, value={key: shortened(child, (*path, key)) for key, child in node.value.items()})
        if isinstance(node.value, list) and path == ("stages",):
            return replace(node, value=[shortened(child, (*path, number)) for number, child in enumerate(node.value)])
        is_warmup = path[-1] == "warmup_steps" and "ema" not in path and node.file != COMMAND_LINE
        if not is_warmup or not isinstance(node.value, int) or node.value < count:
            return node
        cut.append(f"{dotted(path)} ({node.value}, {node.location})")
        return replace(node, value=count // 10)

    tree = shortened(translation.tree, ())
    line = f"a warm-up does not fit into the {count} steps of the command line and is {count // 10} of them: {', '.join(cut)}"
    return replace(translation, tree=tree, warnings=[*translation.warnings, *([line] if cut else [])])
