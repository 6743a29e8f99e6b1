"""Validation errors of a configuration, and of arguments in Python, as one line: file, line, key, value, and the nearest legal name.

`tree` is the configuration as nodes, values that know file and line; a path is the keys from its root to a value, ("optim", "lr"). Which
values are legal is in schema.py, and which may not be combined in conflicts.py.
"""

import difflib
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from plait.config.nodes import COMMAND_LINE, Node, deepest_node, dotted
from plait.config.schema import LENGTH, ModelSection, RunConfig
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


def one_line(text: str) -> str:
    """Return a text of several lines, such as the message of another package's error, as one: its lines joined by "; "."""
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def flag(name: str) -> str:
    """Return the option for a name in Python: "max_new_tokens" gives --max-new-tokens."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class Problem:
    """One validation error: the node (value with file and line) that it points at, and its whole line of text.

    The line begins with file and line, and names key, value and remedy.
    """

    node: Node
    text: str

    @property
    def order(self) -> tuple[int, int]:
        """Sort key by which problems are reported: values in files by line, then those of the command line, then defaults."""
        return (0 if self.node.line else 1 if self.node.file == COMMAND_LINE else 2, self.node.line)


def raise_first(problems: Sequence[Problem]) -> None:
    """Raise PlaitError with the first problem's text and how many more there are; do nothing when `problems` is empty."""
    lines = list(dict.fromkeys(problem.text for problem in sorted(problems, key=lambda problem: problem.order)))
    if lines:
        more = len(lines) - 1
        raise PlaitError(lines[0] + (f" (and {more} more {'problem' if more == 1 else 'problems'} in this configuration)" if more else ""))


def problem_at(tree: Node, path: Sequence[str | int], what: str) -> Problem:
    """Return the problem '{file:line}: {key as written} {what}' of the value at `path`. A missing one has the line of its section."""
    node, depth = deepest_node(tree, path)
    return Problem(node, f"{node.location}: {_name(node, path, depth)} {what}")


def problems_in(
    error: ValidationError,
    tree: Node,
    root: type[BaseModel],
    above: tuple[str, ...] = (),
    *,
    choices: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[Problem]:
    """Convert pydantic's errors about `tree` to problems, one per path. `root`: the class that validated the section at path `above`.

    Of errors at a path and below it (a union tries each of its members), only those below are kept. `choices`: {key: the legal words to
    list when a value is missing whose type does not list them}.
    """
    errors: dict[tuple[str | int, ...], list[Any]] = {}
    for detail in error.errors(include_url=False):
        path = (*above, *_without_tags(deepest_node(tree, above)[0], detail["loc"], detail["type"] == "missing"))
        errors.setdefault(path, []).append(detail)
    deepest = [path for path in errors if not any(len(other) > len(path) and other[: len(path)] == path for other in errors)]
    return [_problem(tree, root, above, path, errors[path], choices) for path in deepest]


def _problem(
    tree: Node,
    root: type[BaseModel],
    above: tuple[str, ...],
    path: tuple[str | int, ...],
    errors: list[Any],
    choices: Mapping[str, Sequence[str]],
) -> Problem:
    first = errors[0]
    if first["type"] == "extra_forbidden":
        return unknown_key(tree, path, keys_at(root, path[len(above) : -1]), all_keys(root, above))
    if first["type"] == "missing":
        kinds = [kind for kind in types_at(root, path[len(above) :]) if typing.get_origin(kind) is typing.Literal]
        known = choices.get(str(path[-1])) or [word for kind in kinds for word in typing.get_args(kind)]
        return problem_at(tree, path, "is missing" + (f": one of {', '.join(map(str, known))}" if known else ""))
    if first["type"] in ("value_error", "assertion_error"):
        text = one_line(str(first["ctx"]["error"]))
        node, depth = deepest_node(tree, path)
        return Problem(node, f"{node.location}: " + (text if text.startswith(_name(node, path, depth)) else f"{dotted(path)}: {text}"))
    if first["type"] == "list_type" and isinstance(first["input"], dict) and deepest_node(tree, path)[0].file == COMMAND_LINE:
        return problem_at(tree, path, f"has no entry {next(iter(first['input']), '')}: set the whole list with --{dotted(path)}=[...]")
    got = f", got {format_value(first['input'])}"
    if first["type"] == "literal_error":
        near = difflib.get_close_matches(
            str(first["input"]), [str(word) for kind in types_at(root, path[len(above) :]) for word in typing.get_args(kind)], 1
        )
        got += f": did you mean {near[0]!r}?" if near else ""
    wanted = dict.fromkeys(_WORDS.get(detail["type"]) or _shorter(detail["msg"]) for detail in errors)
    quote = ": put it in quotes" if list(wanted) == ["text"] and isinstance(first["input"], int | float) else ""
    return problem_at(tree, path, f"must be {' or '.join(wanted)}{got}{quote}{_without_training(tree, path, first['input'])}")


def _without_training(tree: Node, path: Sequence[str | int], value: Any) -> str:
    """Return what to do in place of training for 0 steps, as the end of a message; "" for any other value."""
    if value != 0 or isinstance(value, bool) or len(path) < 2 or path[-2] != "train" or path[-1] not in LENGTH:
        return ""
    if deepest_node(tree, path)[0].path.startswith("stages."):
        return ": leave a stage that trains nothing out of stages"
    return ": `plait eval --base CONFIG --bench NAME` measures a model before its first step"


def unknown_key(tree: Node, path: Sequence[str | int], known: Sequence[str], elsewhere: Sequence[str] = ()) -> Problem:
    """Return the problem of a key that does not exist, at `path`, whose text ends in a hint.

    The hint is the nearest of `known`, the keys of its section, else the same name in `elsewhere`, dotted keys of other sections, else all
    known keys.
    """
    node, depth = deepest_node(tree, path)
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
    return Problem(node, f"{node.location}: {written} is not a key: {hint}")


def _shorter(message: str) -> str:
    return one_line(message).replace("String should match pattern", "text that matches").replace("Input should be ", "", 1)


def format_value(value: Any) -> str:
    """Return a value as one would write it in a file, cut to 60 characters, for an error message."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def types_at(root: Any, path: Sequence[str | int]) -> list[Any]:
    """Return the types that a value at `path` below the class `root` may have, as [int, NoneType]. [] where there is no such path."""
    candidates = list(_members(root))
    for step in path:
        candidates = [member for kind in candidates for annotation in _annotations(kind, str(step)) for member in _members(annotation)]
    return candidates


def keys_at(root: Any, path: Sequence[str | int]) -> list[str]:
    """Return the keys that the section at `path` below `root` may have, as in a file: `from`, not `from_`. [] for no section."""
    names = (
        field.alias or name
        for kind in types_at(root, path)
        if isinstance(kind, type) and issubclass(kind, BaseModel)
        for name, field in kind.model_fields.items()
    )
    return list(dict.fromkeys(names))


def all_keys(root: type[BaseModel], above: tuple[str, ...] = ()) -> list[str]:
    """Return every dotted key below `root`, as optim.lr, without those inside lists. `above`: the path of `root` itself."""
    keys = []
    for name in keys_at(root, ()):
        keys.append(dotted((*above, name)))
        for kind in types_at(root, (name,)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys += all_keys(kind, (*above, name))
    return keys


def section_faults(section: type[ModelSection]) -> list[str]:
    """Return what is wrong with a family's class for its `model:` section, a text per fault.

    Faults are `variants` without a function `variant`, and items of `refused` whose setting or value does not exist.
    """
    if section.variants and section.variant is ModelSection.variant:
        return [f"variants names {next(iter(section.variants))!r}, and Config has no variant(name)"]
    faults = []
    for path, values in section.refused.items():
        sections = [[kind for kind in types_at(RunConfig, path[:depth]) if _is_section(kind)] for depth in range(len(path))]
        known = [[name for kind in kinds for name in kind.model_fields] for kinds in sections]
        absent = next((depth for depth, names in enumerate(known) if path[depth] not in names), None)
        kinds = types_at(RunConfig, path)
        words = [str(word) for kind in kinds if typing.get_origin(kind) is typing.Literal for word in typing.get_args(kind)]
        void = [value for value in values if value not in words and str not in kinds]
        if absent is not None:
            faults.append(f"refused names {dotted(path)}, which is no setting: {_nearest(path[absent], known[absent])}")
        elif void:
            faults.append(f"refused names {dotted(path)} = {void[0]!r}, which it never is: {_nearest(void[0], words)}")
    return faults


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}"


def _members(kind: Any) -> Iterator[Any]:
    """Yield the members of a union, or the bare type of an annotation."""
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        yield from _members(typing.get_args(kind)[0])
    elif origin in (typing.Union, types.UnionType):
        for member in typing.get_args(kind):
            yield from _members(member)
    else:
        yield kind


def _annotations(kind: Any, key: str) -> Iterator[Any]:
    """Yield the annotation of the field or item `key` of a type."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield from (field.annotation for name, field in kind.model_fields.items() if key == (field.alias or name))
    elif typing.get_origin(kind) in (list, dict, tuple):
        yield from typing.get_args(kind)[-1:]


def _without_tags(node: Node, loc: Sequence[str | int], missing: bool) -> tuple[str | int, ...]:
    """Return pydantic's location without the names of union members, which are not keys of the tree; a missing key is kept."""
    path: tuple[str | int, ...] = ()
    for index, step in enumerate(loc):
        inner, depth = deepest_node(node, (step,))
        if depth:
            path, node = (*path, step), inner
        elif missing and index == len(loc) - 1:
            path = (*path, step)
    return path


def _name(node: Node, path: Sequence[str | int], depth: int) -> str:
    """Return the key as its author wrote it, and in brackets its path in the tree where a dialect names it differently."""
    rest = tuple(path[depth:])
    if not depth:
        return dotted(path) or "the configuration"
    in_tree = dotted(path[:depth])
    if node.path == in_tree or (node.path.startswith("stages.") and node.path.endswith("." + in_tree)):
        return dotted((node.path, *rest))
    return f"{node.path} ({dotted(path)})"


class Wanted(NamedTuple):
    """What an argument is to be: one of `kinds`; `words` say it in a message, such as "a text or a path"."""

    kinds: tuple[type, ...]
    words: str


PLACE = Wanted((str, Path), "a text or a path")
TEXT = Wanted((str,), "a text")
SWITCH = Wanted((bool,), "True or False")
WHOLE = Wanted((int,), "a whole number")
NUMBER = Wanted((int, float), "a number")
LIST = Wanted((Sequence,), "a list")
CONFIGURATION = Wanted((str, Path, Mapping), "a file, a run directory or a dict")


def optional(wanted: Wanted) -> Wanted:
    """Return what is wanted, or None."""
    return Wanted((*wanted.kinds, type(None)), f"{wanted.words}, or None")


def check_arguments(call: str, **given: tuple[Any, Wanted]) -> None:
    """Raise PlaitError for the first argument of a function of the Python interface that is not what it wants.

    `call`: the function, such as "plait.open"; `given`: (value, what is wanted) by the name of the argument. True and False are no numbers.
    """
    for name, (value, wanted) in given.items():
        fits = isinstance(value, wanted.kinds) and (bool in wanted.kinds or not isinstance(value, bool))
        if not fits or (wanted.kinds == LIST.kinds and isinstance(value, str | bytes)):
            raise PlaitError(f"{call}: `{name}` is to be {wanted.words}, and is {with_type(value)}")


def with_type(value: Any) -> str:
    """Return a value with its type as a line, "the int 5", of which a long one is cut."""
    text = " ".join(repr(value).split())
    return f"the {type(value).__name__} {text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + '...'}"
