"""Setting values with their origin: the tree of nodes in which files, presets and the command line are merged.

Not the typed configuration (schema.py), and not the file formats (reading.py). A dialect is the format of another trainer; a stage, a part
of the run with settings of its own (an item of `stages:`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from plait.config.schema import LENGTH, WARMUP
from plait.errors import PlaitError

COMMAND_LINE = "command line"
"""In place of a file, in nodes of the command line."""

KeyPath = tuple[str | int, ...]
"""Mapping keys and list indices from the root of the tree down to a value."""


@dataclass(frozen=True)
class Node:
    """A value with the file, line and key where it was written. It is a scalar, a mapping of nodes or a list of nodes.

    `path` is the dotted key as its author wrote it; below a dialect or a stage it differs from the position in the tree.
    `label` replaces file:line in listings (a preset's name).
    """

    value: Any
    file: str
    line: int = 0
    path: str = ""
    label: str | None = None

    @property
    def location(self) -> str:
        """The origin that an error message names: file:line, or "command line"."""
        return f"{self.file}:{self.line}" if self.line and self.file != COMMAND_LINE else self.file

    @property
    def origin(self) -> str:
        """The origin that the config listing shows: the label, else the location."""
        return self.label or self.location


def dotted(path: Sequence[str | int]) -> str:
    """Join the steps of a path with dots: ("data", "train", 0, "path") -> "data.train.0.path"."""
    return ".".join(str(step) for step in path)


def to_plain(node: Node) -> Any:
    """Return a node's value as plain data, dicts, lists and scalars, without its origins."""
    if isinstance(node.value, dict):
        return {key: to_plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [to_plain(child) for child in node.value]
    return node.value


def from_plain(value: Any, like: Node) -> Node:
    """Turn plain data (dicts, lists, scalars) into nodes with file, line and label of `like`; their paths begin with its path."""
    if isinstance(value, dict):
        return replace(like, value={str(key): from_plain(child, replace(like, path=_under(like, key))) for key, child in value.items()})
    if isinstance(value, list):
        return replace(like, value=[from_plain(child, replace(like, path=_under(like, index))) for index, child in enumerate(value)])
    return replace(like, value=value)


def nest(path: Sequence[str], leaf: Node, above: tuple[str, ...] = ()) -> Node:
    """Return a tree that holds nothing but `leaf` at `path`: ("optim", "lr") gives mappings {optim: {lr: leaf}}.

    Its mappings have the file and line of `leaf`. `above`: the path of that tree in a larger one.
    """
    if not path:
        return leaf
    return replace(leaf, value={path[0]: nest(path[1:], leaf, (*above, path[0]))}, path=dotted(above))


def deepest_node(node: Node, path: Sequence[str | int]) -> tuple[Node, int]:
    """Return the deepest existing node on the way to `path`, and how many steps of the path exist: len(path) if all do."""
    for depth, step in enumerate(path):
        children = node.value
        if isinstance(children, dict) and str(step) in children:
            node = children[str(step)]
        elif isinstance(children, list) and str(step).isdigit() and int(step) < len(children):
            node = children[int(step)]
        else:
            return node, depth
    return node, len(path)


def node_at(node: Node, path: Sequence[str | int]) -> Node | None:
    """Return the node at `path`, such as ("data", "train", 0), or None where there is none."""
    deepest, depth = deepest_node(node, path)
    return deepest if depth == len(path) else None


def merge(low: Node, high: Node, path: KeyPath = ()) -> Node:
    """Merge `high` over `low`, which lie at `path`: mappings key by key; everything else is replaced. Neither is changed.

    From the command line, the keys `0`, `1`, ... set entries of a list. One of train.steps, epochs and samples in `high` removes the others
    from `low`, and so for the keys of a warm-up. Raises PlaitError for an entry that the list does not have.
    """
    if isinstance(low.value, list) and isinstance(high.value, dict) and high.file == COMMAND_LINE:
        return _into_list(low, high, path)
    if not (isinstance(low.value, dict) and isinstance(high.value, dict)):
        return high
    merged = dict(low.value)
    rivals = _rivals(path)
    if any(name in high.value and high.value[name].value is not None for name in rivals):
        merged = {key: child for key, child in merged.items() if key not in rivals}
    for key, child in high.value.items():
        merged[key] = merge(merged[key], child, (*path, key)) if key in merged else child
    return replace(low, value=merged) if high.file == COMMAND_LINE else replace(high, value=merged)


def _rivals(path: KeyPath) -> tuple[str, ...]:
    """Return the keys of the section at `path` of which only one counts."""
    is_schedule = path == ("optim", "schedule") or (len(path) == 3 and path[:2] == ("optim", "components"))
    return LENGTH if path == ("train",) else WARMUP if is_schedule else ()


def _into_list(low: Node, high: Node, path: KeyPath) -> Node:
    items = list(low.value)
    for key, child in high.value.items():
        if not key.isdigit() or int(key) >= len(items):
            raise PlaitError(
                f"{high.location}: {low.path or dotted(path)} has no entry {key}: it has {len(items)}, counted from 0; "
                f"set the whole list with --{dotted(path)}=[...]"
            )
        items[int(key)] = merge(items[int(key)], child, (*path, int(key)))
    return replace(low, value=items)


def sets(stage: Node, path: Sequence[str]) -> bool:
    """Return whether `stage`, an item of `stages:`, sets `path` or a rival of it, as train.epochs is of train.steps.

    A setting of the command line must then replace it there, as a stage's own settings win over the run's.
    """
    node = stage
    for depth, key in enumerate(path):
        if not isinstance(node.value, dict):
            return True
        rivals = _rivals(tuple(path[:depth]))
        if key in rivals and any(name in node.value for name in rivals):
            return True
        if key not in node.value:
            return False
        node = node.value[key]
    return True


def leaves(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Yield (path, value) of every scalar and empty container in plain data, in order."""
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from leaves(child, (*path, key))
    elif isinstance(value, list) and value:
        for index, child in enumerate(value):
            yield from leaves(child, (*path, index))
    else:
        yield path, value


def _under(node: Node, key: Any) -> str:
    return f"{node.path}.{key}" if node.path else str(key)
