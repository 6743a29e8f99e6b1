"""What installed packages add to plait by entry points, loaded with one clear line for whatever is wrong with it.

Not what is added: a model family, a verb (command), a dialect (configuration format) and a kind of data source have contracts elsewhere.
"""

from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from plait.errors import PlaitError

GROUPS = {"plait.families": "family", "plait.commands": "verb", "plait.dialects": "dialect", "plait.sources": "source"}
"""What an entry point of each group offers, in one word."""

Kind = TypeVar("Kind")


def offered(group: str) -> list[EntryPoint]:
    """Return what installed packages offer in the entry point group `group`, such as "plait.families", in the order found."""
    return list(entry_points(group=group))


def packages() -> list[str]:
    """Return the names of the packages that offer anything to plait."""
    return sorted({entry.module.partition(".")[0] for group in GROUPS for entry in offered(group)})


def load(entry: EntryPoint, kind: type[Kind]) -> Kind:
    """Import and return what an entry point names. Raises PlaitError where its code fails, or where it is no instance of `kind`."""
    try:
        value = entry.load()
    except Exception as error:  # whatever it is, it is that package's code that must be mended
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise fault(entry, f"cannot be loaded from {entry.value}: {reason}") from error
    if not isinstance(value, kind):
        raise fault(entry, f"cannot be loaded: {entry.value} is a {type(value).__name__}, not a {kind.__name__}")
    return value


def fault(entry: EntryPoint, text: str) -> PlaitError:
    """Return the PlaitError of an entry point: what it offers, what is wrong (`text`), and the package to mend or remove."""
    package = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.module
    return PlaitError(f"{GROUPS[entry.group]} {entry.name!r} {text} (package {package})")
