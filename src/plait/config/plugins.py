"""What installed packages add to plait by entry points, loaded and checked, with one clear line for whatever is wrong with it.

Not what is added: a model family, a verb (command), a dialect (configuration format) and a kind of data source have contracts elsewhere,
which say of each function how plait calls it: `build(config, assets, *, seed)`.
"""

import dataclasses
import functools
import inspect
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from plait.errors import PlaitError

GROUPS = {"plait.families": "family", "plait.commands": "verb", "plait.dialects": "dialect", "plait.sources": "source"}
"""What an entry point of each group offers, in one word."""

Kind = TypeVar("Kind")


def offered(group: str) -> list[EntryPoint]:
    """Return what installed packages offer in the entry point group `group`, such as "plait.families", in the order found."""
    return list(_on_path(tuple(sys.path)).select(group=group))


@functools.lru_cache(maxsize=1)
def _on_path(path: tuple[str, ...]) -> Any:
    """Return all entry points of the packages on `path`, which is sys.path: reading them takes longer than most of what a command does."""
    return entry_points()


def named(group: str, name: str) -> EntryPoint | None:
    """Return the entry point `name` of a group, None where there is none. Raises PlaitError where two packages offer it."""
    found = [entry for entry in offered(group) if entry.name == name]
    if len(found) > 1:
        raise PlaitError(f"{GROUPS[group]} {name!r} is offered by {' and by '.join(map(package_of, found))}: remove all but one")
    return found[0] if found else None


def packages() -> list[str]:
    """Return the names of the packages that offer anything to plait."""
    return sorted({entry.module.partition(".")[0] for group in GROUPS for entry in offered(group)})


def load(entry: EntryPoint, kind: type[Kind], calls: Mapping[str, str] | None = None) -> Kind:
    """Import and return what an entry point names. Raises PlaitError where its code fails, or where it is no instance of `kind`.

    `calls`: for a `kind` that is a dataclass, how plait calls its functions, as in `faults`, whose result is raised as one line.
    """
    try:
        value = entry.load()
    except Exception as error:  # whatever it is, it is that package's code that must be mended
        raise fault(entry, f"cannot be loaded from {entry.value}: {one_line(error)}") from error
    if not isinstance(value, kind):
        raise fault(entry, f"cannot be loaded: {entry.value} is a {type(value).__name__}, not a {kind.__name__}")
    if calls is not None and (wrong := faults(value, calls)):
        raise fault(entry, f"({entry.value}) does not fulfil the contract of {kind.__module__}.{kind.__name__}: {'; '.join(wrong)}")
    return value


def fault(entry: EntryPoint, text: str) -> PlaitError:
    """Return the PlaitError of an entry point: what it offers, what is wrong (`text`), and the package to mend or remove."""
    return PlaitError(f"{GROUPS[entry.group]} {entry.name!r} {text} (package {package_of(entry)})")


def package_of(entry: EntryPoint) -> str:
    """Return the name and version of the package that offers an entry point."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.module


def one_line(error: Exception) -> str:
    """Return an error of another package's code as its type and the first line of its message."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def faults(value: Any, calls: Mapping[str, str]) -> list[str]:
    """Return what is wrong with the fields of a dataclass instance, one text each: values of another type than the field declares.

    `calls`: by field, how plait calls the function that it holds, such as {"open": "open(entry, opening)"}. One whose default is None may
    be None. Raises nothing.
    """
    hints, wrong = get_type_hints(type(value)), []
    for field in dataclasses.fields(value):
        given = vars(value)[field.name]
        if field.name in calls:
            wrong.append(None if given is None and field.default is None else call_fault(calls[field.name], given))
            continue
        try:
            _validator(hints[field.name]).validate_python(given, strict=True)
        except ValidationError as error:
            wrong.append(f"{field.name} is {given!r}: {error.errors()[0]['msg'].replace('Input should', 'it should')}")
    return [text for text in wrong if text is not None]


@functools.cache
def _validator(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)


def call_fault(wanted: str, function: Any, leading: Sequence[str] = ()) -> str | None:
    """Return why `function` cannot be called as in `wanted`, such as `build(config, assets, *, seed)`, or None.

    `leading`: arguments before those, such as `self`. What has no signature in Python, as some classes in C, is taken to be right.
    """
    name, _, arguments = wanted.rstrip(")").partition("(")
    if not callable(function):
        return f"{name} is to be callable: {wanted}"
    positional, _, keywords = arguments.partition("*, ")
    given = [*leading, *filter(None, positional.rstrip(", ").split(", "))]
    try:
        inspect.signature(function).bind(*given, **dict.fromkeys(filter(None, keywords.split(", "))))
    except TypeError as error:
        return f"{name} cannot be called as {wanted.rpartition('.')[2]} ({error})"
    except ValueError:
        return None
    return None


def function_faults(members: Mapping[str, Any], wanted: Mapping[str, str]) -> list[str]:
    """Return what is wrong with functions by name: those that `wanted` names and that are missing, or have another signature."""
    missing = [f"it lacks {call}" for name, call in wanted.items() if name not in members]
    given = [call_fault(call, members[name]) for name, call in wanted.items() if name in members]
    return [*missing, *filter(None, given)]
