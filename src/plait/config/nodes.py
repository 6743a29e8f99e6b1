"""Settings that remember where they were written: the tree of nodes that files, presets and the command line are merged in.

Not the typed configuration (config.py) and not the file formats (reading.py). A node is a value, a mapping of nodes or a list of nodes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from plait.config.schema import LENGTH
from plait.errors import PlaitError

COMMAND_LINE = "command line"

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Node:
    """`value` is a scalar, dict[str, Node] or list[Node]. `path` is the key as its author wrote it, which a dialect or a stage makes
    differ from its place in the tree. `label` replaces file:line in listings (a preset's name)."""

    value: Any
    file: str
    line: int = 0
    path: str = ""
    label: str | None = None

    @property
    def place(self) -> str:
        """Where an error points: file:line, or the command line."""
        return f"{self.file}:{self.line}" if self.line else self.file

    @property
    def source(self) -> str:
        """Where a listing says that the value comes from."""
        return self.label or self.place


def dotted(path: Sequence[str | int]) -> str:
    return ".".join(str(step) for step in path)


def plain(node: Node) -> Any:
    """The value without its marks: dicts, lists and scalars."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return node.value


def wrap(value: Any, like: Node) -> Node:
    """Plain data as nodes that all carry the marks of `like`; paths grow from its path."""
    if isinstance(value, dict):
        return replace(like, value={str(key): wrap(child, replace(like, path=_under(like, key))) for key, child in value.items()})
    if isinstance(value, list):
        return replace(like, value=[wrap(child, replace(like, path=_under(like, index))) for index, child in enumerate(value)])
    return replace(like, value=value)


def nest(path: Sequence[str], leaf: Node, above: tuple[str, ...] = ()) -> Node:
    """A layer that says one thing: `leaf` at `path`."""
    if not path:
        return leaf
    return replace(leaf, value={path[0]: nest(path[1:], leaf, (*above, path[0]))}, path=dotted(above))


def find(node: Node, path: Sequence[str | int]) -> tuple[Node, int]:
    """The deepest node on the way to `path`, and how many steps of the way exist."""
    for depth, step in enumerate(path):
        inside = node.value
        if isinstance(inside, dict) and str(step) in inside:
            node = inside[str(step)]
        elif isinstance(inside, list) and str(step).isdigit() and int(step) < len(inside):
            node = inside[int(step)]
        else:
            return node, depth
    return node, len(path)


def at(node: Node, path: Sequence[str | int]) -> Node | None:
    """The node at `path`, or None."""
    found, depth = find(node, path)
    return found if depth == len(path) else None


def merge(low: Node, high: Node, path: Path = ()) -> Node:
    """`high` over `low`: mappings merge, everything else replaces. From the command line, `0`, `1`... reach into a list."""
    if isinstance(low.value, list) and isinstance(high.value, dict) and high.file == COMMAND_LINE:
        return _into_list(low, high, path)
    if not (isinstance(low.value, dict) and isinstance(high.value, dict)):
        return high
    kept = dict(low.value)
    if path == ("train",) and any(name in high.value and high.value[name].value is not None for name in LENGTH):
        kept = {key: child for key, child in kept.items() if key not in LENGTH}
    for key, child in high.value.items():
        kept[key] = merge(kept[key], child, (*path, key)) if key in kept else child
    return replace(low, value=kept) if high.file == COMMAND_LINE else replace(high, value=kept)


def _into_list(low: Node, high: Node, path: Path) -> Node:
    items = list(low.value)
    for key, child in high.value.items():
        if not key.isdigit() or int(key) >= len(items):
            raise PlaitError(
                f"{high.place}: {low.path or dotted(path)} has no entry {key}: it has {len(items)}, counted from 0; "
                f"set the whole list with --{dotted(path)}=[...]"
            )
        items[int(key)] = merge(items[int(key)], child, (*path, int(key)))
    return replace(low, value=items)


def claims(stage: Node, path: Sequence[str]) -> bool:
    """Whether `stage` itself says what an override of `path` must win over."""
    node = stage
    for depth, key in enumerate(path):
        if not isinstance(node.value, dict):
            return True
        if depth == 1 and path[0] == "train" and key in LENGTH and any(name in node.value for name in LENGTH):
            return True
        if key not in node.value:
            return False
        node = node.value[key]
    return True


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every scalar (and empty container) of plain data with its path, in order."""
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
