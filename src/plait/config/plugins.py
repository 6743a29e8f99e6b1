"""Load and check what installed packages add to plait by entry points; whatever is wrong with it becomes one clear line.

A model family, a verb (command), a dialect (configuration format) and a kind of data source can be added. Their contracts are elsewhere,
and say of each function how plait calls it: `build(config, assets, *, seed)`.
"""

import dataclasses
import functools
import inspect
import sys
import traceback
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from plait.config import messages
from plait.errors import PlaitError

GROUPS = {"plait.families": "family", "plait.commands": "verb", "plait.dialects": "dialect", "plait.sources": "source"}
"""The word for what each entry point group adds."""

_SHOWN_CHARACTERS = 60
HEAVY = "torch"
"""The package that what is loaded for every command must not import: it takes seconds."""
IMPORT_LATER = "import it inside the functions that use it"
"""What a package that imports it is told to do."""
Kind = TypeVar("Kind")


def offered(group: str) -> list[EntryPoint]:
    """Return the entry points of installed packages in `group`, such as "plait.families", in the order found."""
    return list(_on_path(tuple(sys.path)).select(group=group))


@functools.lru_cache(maxsize=1)
def _on_path(path: tuple[str, ...]) -> Any:
    """Return all entry points of the packages on `path`, which is sys.path. Reading them takes longer than most of what a command does."""
    return entry_points()


def named(group: str, name: str, shipped: Collection[str]) -> EntryPoint | None:
    """Return the entry point `name` of a group, such as "plait.families"; None without one. Raises PlaitError if two packages offer it.

    `shipped`: the names that plait itself has; a package that offers one of them is refused too.
    """
    found = [entry for entry in offered(group) if entry.name == name]
    packages = " and by ".join(map(package_of, found))
    if found and name in shipped:
        raise PlaitError(
            f"{GROUPS[group]} {name!r} is offered by plait itself and by {packages}: remove that package, or rename what it adds"
        )
    if len(found) > 1:
        raise PlaitError(f"{GROUPS[group]} {name!r} is offered by {packages}: remove all but one")
    return found[0] if found else None


def packages() -> list[str]:
    """Return the names of the top-level modules, sorted, in which installed packages have entry points for plait."""
    return sorted({entry.module.partition(".")[0] for group in GROUPS for entry in offered(group)})


def load(entry: EntryPoint, kind: type[Kind], calls: Mapping[str, str] | None = None) -> Kind:
    """Import and return the object that an entry point names. Raises PlaitError where that fails, or where it is no instance of `kind`.

    `calls`: for a `kind` that is a dataclass, {field: how plait calls the function in it, as "open(entry, opening)"}; PlaitError is raised
    for one that cannot be called so, and for other fields of a wrong type.
    """
    before = HEAVY in sys.modules
    try:
        value = entry.load()
    except Exception as error:  # whatever it is, it is that package's code that must be mended
        raise fault(entry, f"cannot be loaded from {entry.value}: {one_line(error)}") from error
    if HEAVY in sys.modules and not before:
        raise fault(entry, f"cannot be loaded: {entry.value} imports {HEAVY}, for which every command would wait: {IMPORT_LATER}")
    if not isinstance(value, kind):
        raise fault(entry, f"cannot be loaded: {entry.value} is a {type(value).__name__}, not a {kind.__name__}")
    if calls is not None and (wrong := faults(value, calls)):
        raise fault(entry, f"({entry.value}) does not fulfil the contract of {kind.__module__}.{kind.__name__}: {'; '.join(wrong)}")
    return value


def fault(entry: EntryPoint, text: str) -> PlaitError:
    """Return, to be raised, a PlaitError about an entry point: "family 'NAME' {text} (package NAME VERSION)"."""
    return PlaitError(f"{GROUPS[entry.group]} {entry.name!r} {text} (package {package_of(entry)})")


def package_of(entry: EntryPoint) -> str:
    """Return "NAME VERSION" of the package that offers an entry point; the entry point's module where the package is not known."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.module


def one_line(error: Exception) -> str:
    """Return an error of another package's code as its type and the first line of its message."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def raised(error: Exception) -> str:
    """Return an error of another package's code as its type, its message's first line, and the file and line that raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{one_line(error)} ({Path(frame.filename).name}:{frame.lineno})"


def shown(value: Any) -> str:
    """Return a value for a message: None, a number or a short text as written, of anything else its type ("a Tensor")."""
    short = value is None or isinstance(value, int | float) or (isinstance(value, str) and len(value) <= _SHOWN_CHARACTERS)
    return repr(value) if short else f"a {type(value).__name__}"


def json_fault(value: Any, where: str = "") -> str | None:
    """Return what JSON cannot hold in `value`, with its place, such as "a Tensor as scores.2"; None if there is nothing.

    `where`: the dotted place of `value` in what is checked; "" for all of it.
    """
    if value is None or isinstance(value, str | int | float):
        return None
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        items: list[tuple[str, Any]] = list(value.items())
    elif isinstance(value, list | tuple):
        items = [(str(number), item) for number, item in enumerate(value)]
    else:
        return f"a {type(value).__name__} as {where}"
    return next((text for name, item in items if (text := json_fault(item, f"{where}.{name}".lstrip("."))) is not None), None)


def faults(value: Any, calls: Mapping[str, str]) -> list[str]:
    """Return a text per wrong field of a dataclass instance: another type than declared, or a function with another signature.

    `calls`: {field: how plait calls the function in it}, such as {"open": "open(entry, opening)"}. Such a field may be None if that is its
    default. Raises nothing.
    """
    hints, wrong = get_type_hints(type(value)), []
    for field in dataclasses.fields(value):
        given = vars(value)[field.name]
        if field.name in calls:
            wrong.append(None if given is None and field.default is None else call_fault(calls[field.name], given))
        else:
            wrong.append(type_fault(field.name, hints[field.name], given))
    return [text for text in wrong if text is not None]


def type_fault(name: str, hint: Any, value: Any) -> str | None:
    """Return why `value`, the value of `name`, is not of the type `hint`, or None. Nothing is converted; any mapping is one."""
    try:
        _validator(hint).validate_python(dict(value) if isinstance(value, Mapping) else value, strict=True)
    except ValidationError as error:
        return messages.one_line(f"{name} is {value!r}: {error.errors()[0]['msg'].replace('Input should', 'it should')}")
    return None


@functools.cache
def _validator(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)


def call_fault(wanted: str, function: Any, leading: Sequence[str] = ()) -> str | None:
    """Return why `function` cannot be called as in `wanted`, such as `build(config, assets, *, seed)`, or None if it can.

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
    """Return a text per function that is missing from `members` ({name: function}), or that cannot be called as `wanted` says.

    `wanted`: {name: how plait calls it, such as "build(config, assets, *, seed)"}.
    """
    missing = [f"it lacks {call}" for name, call in wanted.items() if name not in members]
    given = [call_fault(call, members[name]) for name, call in wanted.items() if name in members]
    return [*missing, *filter(None, given)]
