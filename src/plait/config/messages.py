"""What is wrong with a configuration, in one line: pydantic's errors with the file, the line, the nearest key and the value."""

import difflib
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ValidationError

from plait.config.nodes import COMMAND_LINE, Node, dotted, find
from plait.errors import PlaitError

_WORDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "finite_number": "a finite number",
}
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class Problem:
    """One complaint: where it points, and the whole line."""

    node: Node
    text: str

    @property
    def order(self) -> tuple[int, int]:
        """Files first, from the top; then the command line; then what nobody wrote."""
        return (0 if self.node.line else 1 if self.node.file == COMMAND_LINE else 2, self.node.line)


def report(problems: Sequence[Problem]) -> None:
    """Raise the first of the problems, with the number of the others. Does nothing when there are none."""
    lines = list(dict.fromkeys(problem.text for problem in sorted(problems, key=lambda one: one.order)))
    if lines:
        more = len(lines) - 1
        raise PlaitError(lines[0] + (f" (and {more} more {'problem' if more == 1 else 'problems'} in this configuration)" if more else ""))


def complain(tree: Node, path: Sequence[str | int], what: str) -> Problem:
    """A problem at `path`: '{file:line}: {key as written} {what}'."""
    node, depth = find(tree, path)
    return Problem(node, f"{node.place}: {_name(node, path, depth)} {what}")


def explain(
    error: ValidationError,
    tree: Node,
    root: type[BaseModel],
    above: tuple[str, ...] = (),
    choices: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[Problem]:
    """pydantic's complaints about `tree` as problems. `root` is the class of the section at `above`, whose errors are told apart.

    `choices`: by key, the words that a missing value may be, where its type does not list them.
    """
    found: dict[tuple[str | int, ...], list[Any]] = {}
    for one in error.errors(include_url=False):
        path = (*above, *_untagged(find(tree, above)[0], one["loc"], one["type"] == "missing"))
        found.setdefault(path, []).append(one)
    deepest = [path for path in found if not any(len(other) > len(path) and other[: len(path)] == path for other in found)]
    return [_problem(tree, root, above, path, found[path], choices) for path in deepest]


def _problem(
    tree: Node,
    root: type[BaseModel],
    above: tuple[str, ...],
    path: tuple[str | int, ...],
    errors: list[Any],
    choices: Mapping[str, Sequence[str]],
) -> Problem:
    one = errors[0]
    if one["type"] == "extra_forbidden":
        return unknown(tree, path, fields(root, path[len(above) : -1]), paths(root, above))
    if one["type"] == "missing":
        known = choices.get(str(path[-1])) or [word for kind in kinds(root, path[len(above) :]) for word in typing.get_args(kind)]
        return complain(tree, path, "is missing" + (f": one of {', '.join(map(str, known))}" if known else ""))
    if one["type"] in ("value_error", "assertion_error"):
        text = str(one["ctx"]["error"])
        node, depth = find(tree, path)
        return Problem(node, f"{node.place}: " + (text if text.startswith(_name(node, path, depth)) else f"{dotted(path)}: {text}"))
    if one["type"] == "list_type" and isinstance(one["input"], dict) and find(tree, path)[0].file == COMMAND_LINE:
        return complain(tree, path, f"has no entry {next(iter(one['input']), '')}: set the whole list with --{dotted(path)}=[...]")
    got = f", got {show(one['input'])}"
    if one["type"] == "literal_error":
        near = difflib.get_close_matches(
            str(one["input"]), [str(word) for kind in kinds(root, path[len(above) :]) for word in typing.get_args(kind)], 1
        )
        got += f": did you mean {near[0]!r}?" if near else ""
    wanted = dict.fromkeys(_WORDS.get(each["type"]) or _said(each["msg"]) for each in errors)
    quote = ": put it in quotes" if list(wanted) == ["text"] and isinstance(one["input"], int | float) else ""
    return complain(tree, path, f"must be {' or '.join(wanted)}{got}{quote}")


def unknown(tree: Node, path: Sequence[str | int], known: Sequence[str], elsewhere: Sequence[str] = ()) -> Problem:
    """The key at `path` does not exist: the nearest of its `known` neighbours, the same name elsewhere, or all there are."""
    node, depth = find(tree, path)
    written, key = _name(node, path, depth), str(path[-1])
    parent = written[: -len(key)] if written.endswith(key) else ""
    near = difflib.get_close_matches(key, known, 1)
    same = [other for other in elsewhere if other.split(".")[-1] == key]
    if near:
        hint = f"did you mean {parent}{near[0]}?"
    elif path[0] == "stages" and key in same:
        hint = f"{key} is the same in all stages; set it outside them"
    elif same:
        hint = f"did you mean {same[0]}?"
    else:
        hint = f"known: {', '.join(known)}" if known else "nothing can be set here"
    return Problem(node, f"{node.place}: {written} is not a key: {hint}")


def _said(message: str) -> str:
    return message.replace("String should match pattern", "text that matches").replace("Input should be ", "", 1)


def show(value: Any) -> str:
    """A value in an error: short, and as one would write it."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def kinds(root: Any, path: Sequence[str | int]) -> list[Any]:
    """The types that a value at `path` below the class `root` may have, unions and annotations opened."""
    found = list(_open(root))
    for step in path:
        found = [inner for kind in found for outer in _step(kind, str(step)) for inner in _open(outer)]
    return found


def fields(root: Any, path: Sequence[str | int]) -> list[str]:
    """The keys that the section at `path` may have, as they are written in a file."""
    names = (
        field.alias or name
        for kind in kinds(root, path)
        if isinstance(kind, type) and issubclass(kind, BaseModel)
        for name, field in kind.model_fields.items()
    )
    return list(dict.fromkeys(names))


def paths(root: type[BaseModel], above: tuple[str, ...] = ()) -> list[str]:
    """Every dotted path below `root`, lists left out."""
    found = []
    for name in fields(root, ()):
        found.append(dotted((*above, name)))
        for kind in kinds(root, (name,)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found += paths(kind, (*above, name))
    return found


def _open(kind: Any) -> Iterator[Any]:
    """The members of unions and the bare types of annotations."""
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        yield from _open(typing.get_args(kind)[0])
    elif origin in (typing.Union, types.UnionType):
        for member in typing.get_args(kind):
            yield from _open(member)
    else:
        yield kind


def _step(kind: Any, key: str) -> Iterator[Any]:
    """The annotation one key further down."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield from (field.annotation for name, field in kind.model_fields.items() if key == (field.alias or name))
    elif typing.get_origin(kind) in (list, dict, tuple):
        yield from typing.get_args(kind)[-1:]


def _untagged(node: Node, loc: Sequence[str | int], missing: bool) -> tuple[str | int, ...]:
    """pydantic's location without the names of union members, which are no keys of the tree. A missing key is none either."""
    path: tuple[str | int, ...] = ()
    for index, step in enumerate(loc):
        inner, depth = find(node, (step,))
        if depth:
            path, node = (*path, step), inner
        elif missing and index == len(loc) - 1:
            path = (*path, step)
    return path


def _name(node: Node, path: Sequence[str | int], depth: int) -> str:
    """The key as its author wrote it; with its place in the tree where a dialect calls it something else."""
    rest = tuple(path[depth:])
    if not depth:
        return dotted(path) or "the configuration"
    own = dotted(path[:depth])
    if node.path == own or (node.path.startswith("stages.") and node.path.endswith("." + own)):
        return dotted((node.path, *rest))
    return f"{node.path} ({dotted(path)})"
