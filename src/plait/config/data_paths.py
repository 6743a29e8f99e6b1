"""Make the paths in a configuration absolute. Those of data are relative to the file that each is written in; a leading ~ is the home.

On the command line, in a configuration of another trainer and in a run's own saved one they are relative to the working directory, as
`from` is everywhere. A tree consists of nodes, values that know their file and line; `kinds` are the rules of every kind of data source,
by name.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from plait.config import secrets
from plait.config.nodes import COMMAND_LINE, Node
from plait.config.sections.places import is_there, with_two_slashes
from plait.config.source_rules import SourceRules
from plait.errors import PlaitError

_FOLDERS: tuple[tuple[str, ...], ...] = (("data", "root"), ("data", "cache"))
_LISTS: tuple[tuple[str, ...], ...] = (("data", "train"), ("data", "validation"), ("evaluate", "*", "data"))
_MIXTURES = (".yaml", ".yml", ".json")
_BEGINS_WITH_VARIABLE = re.compile(r"\$(?:\w+|\{\w+\})(?:/|$)")
_CLASS_IN_FILE = re.compile(r"(.+\.py)(:\w+)")


def expand(tree: Node) -> Node:
    """Return a configuration's tree with a leading ~ and `$NAME`s filled in, in `run`, `from` and `model`.

    Of `model` these are the strings that begin so. Paths of data are expanded where they are opened, so that a run's saved configuration
    fits another machine. Raises PlaitError for a variable that is not set.
    """

    def filled(node: Node) -> Node:
        if isinstance(node.value, dict):
            return replace(node, value={key: filled(child) for key, child in node.value.items()})
        begins = isinstance(node.value, str) and (node.value.startswith("~/") or _BEGINS_WITH_VARIABLE.match(node.value))
        return _filled_in(node) if begins else node

    def anywhere(node: Node) -> Node:
        if isinstance(node.value, str) and node.path.endswith("from") and (meant := with_two_slashes(node.value)):
            raise PlaitError(
                f"{node.location}: {node.path} is {node.value!r}, an address with one slash, meant as {meant}: no address is read"
            )
        return _filled_in(node) if isinstance(node.value, str) and ("$" in node.value or node.value.startswith("~/")) else node

    for above in ((), ("stages", "*")):
        for keys, change in ((("run",), anywhere), (("from",), anywhere), (("model",), filled)):
            tree = _change(tree, (*above, *keys), change)
    return tree


def resolve_start(tree: Node) -> Node:
    """Return a configuration's tree with its `from` absolute where that names something on this disk; its @MARK stays.

    It is relative to the working directory, which is another one when the run is started again or read by another command. A name of the
    Hub, and what is not there, stay as they are.
    """
    return _change(tree, ("from",), _absolute_start)


def _absolute_start(node: Node) -> Node:
    text = node.value
    if not isinstance(text, str) or not text or text.startswith(("/", "~")) or "://" in text:
        return node
    named = [Path(text), *([Path(text.rpartition("@")[0])] if "@" in text else [])]
    is_path = text.startswith(".") or text.count("/") > 1
    known = any(path.exists() or (path.parent / "config.yaml").is_file() or (is_path and path.parent.is_dir()) for path in named)
    return replace(node, value=_join(Path.cwd(), text)) if known else node


def _filled_in(node: Node) -> Node:
    """Return a path with ~ and variables filled in. Raises PlaitError, with file and line, for a variable that is not set."""
    try:
        return replace(node, value=str(secrets.filled_in(node.value)))
    except PlaitError as error:
        raise PlaitError(f"{node.location}: {node.path}: {error}") from None


def resolve(tree: Node, kinds: Mapping[str, SourceRules], base: Path | None = None) -> Node:
    """Return a configuration's tree with all paths of its data absolute, those of its stages included.

    `kinds`: the rules of every kind of data source, by name. `base`: the folder that paths are relative to; None: the folder of the file
    that each is written in. Raises PlaitError for a path that exists relative to the working directory only.
    """

    def entry(node: Node) -> Node:
        return resolve_entry(node, kinds, base)

    def path(node: Node) -> Node:
        return _absolute(node, base)

    def mixture(node: Node) -> Node:
        return path(node) if str(node.value).endswith(_MIXTURES) else node

    changes = [*((keys, path) for keys in _FOLDERS), *(((*keys, "*"), entry) for keys in _LISTS), (("data", "mixture"), mixture)]
    for above in ((), ("stages", "*")):
        for keys, change in changes:
            tree = _change(tree, (*above, *keys), change)
    return tree


def resolve_entry(node: Node, kinds: Mapping[str, SourceRules], base: Path | None = None) -> Node:
    """Return an item of `data.train` or of a mixture with its paths absolute: `path`, file.py:Class in `name`, options that are paths.

    `kinds`, `base`: as in `resolve`: the rules of every kind of source, and the folder that paths are relative to; None: that of the file
    that each is written in. Raises PlaitError for a path that exists relative to the working directory only.
    """
    for keys in (("path",), ("rollout",), ("filter", "dedup")):
        node = _change(node, keys, lambda child: _absolute(child, base))
    node = _change(node, ("name",), lambda child: _class_in_file(child, base))
    kind = node.value.get("source") if isinstance(node.value, dict) else None
    rules = kinds.get(kind.value) if kind is not None and isinstance(kind.value, str) else None
    for option in rules.paths if rules is not None else ():
        node = _change(node, ("options", option), lambda child: _absolute(child, base))
    return node


def resolve_rows(tree: Node, kinds: Mapping[str, SourceRules]) -> Node:
    """Return the tree of a mixture's file with the paths of its rows (data sets) absolute; they are relative to that file.

    `kinds`: the rules of every kind of source, by name, which say which options are paths. Raises PlaitError for a path that exists
    relative to the working directory only.
    """
    groups = tree.value["groups"].value if "groups" in tree.value else {}
    lists = [("datasets", "*"), *(("groups", name, "datasets", "*") for name in (groups if isinstance(groups, dict) else ()))]
    for keys in lists:
        tree = _change(tree, keys, lambda node: resolve_entry(node, kinds))
    return tree


def _change(node: Node, keys: tuple[str, ...], change: Callable[[Node], Node]) -> Node:
    """Return `node` with what is at `keys` changed, where there is such a thing; `*` stands for every item of a list."""
    if not keys:
        return change(node)
    first, *rest = keys
    if first == "*" and isinstance(node.value, list):
        return replace(node, value=[_change(child, tuple(rest), change) for child in node.value])
    if isinstance(node.value, dict) and first in node.value:
        return replace(node, value={**node.value, first: _change(node.value[first], tuple(rest), change)})
    return node


def _class_in_file(node: Node, base: Path | None) -> Node:
    """Return a name such as `file.py:Cats` with the path of its file absolute; any other name as it is."""
    match = _CLASS_IN_FILE.fullmatch(node.value) if isinstance(node.value, str) else None
    return replace(node, value=f"{_absolute(replace(node, value=match[1]), base).value}{match[2]}") if match else node


def _absolute(node: Node, base: Path | None) -> Node:
    """Return a path, or pattern of paths, as an absolute one; addresses, and paths that begin with ~ or a variable, stay."""
    text = node.value
    if not isinstance(text, str) or not text or text.startswith(("/", "~", "$")) or "://" in text:
        return node
    if meant := with_two_slashes(text):
        raise PlaitError(f"{node.location}: {node.path} is {text!r}, an address with one slash: write {meant}")
    here = Path.cwd()
    folder = here if node.file == COMMAND_LINE else base or Path(node.file).absolute().parent
    if not is_there(folder, text) and is_there(here, text):
        spelling = os.path.relpath(_join(here, text), os.path.realpath(folder))
        raise PlaitError(
            f"{node.location}: {node.path} is {text!r}, which is not in {folder}: a path of data is relative to the file that it is "
            f"written in; for the one in the working directory write {spelling!r}"
        )
    return replace(node, value=_join(folder, text))


def _join(folder: Path, text: str) -> str:
    """Join and normalise; `..` leaves the folder that links lead to, as it does for the system."""
    return os.path.normpath((folder.resolve() if text.startswith("..") else folder) / text)
