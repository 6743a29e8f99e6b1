"""List the dialects: configuration files of other trainers that load as their authors wrote them, in the order in which they are tried.

A new dialect is a module here and a row below, or an entry point `plait.dialects` of another package that names a `Dialect`.
"""

from plait.config import plugins
from plait.config.dialects import dotted_flags, flat_json, molmo_scripts, nested_yaml
from plait.config.translation import Dialect

SHIPPED: tuple[Dialect, ...] = (
    Dialect("flat JSON", flat_json.recognise, flat_json.translate),
    Dialect("nested YAML", nested_yaml.recognise, nested_yaml.translate),
    Dialect("dotted flags", dotted_flags.recognise, dotted_flags.translate, molmo_scripts.SCRIPTS, molmo_scripts.open_script),
)


def dialects() -> tuple[Dialect, ...]:
    """Return the shipped dialects, then those that installed packages offer. Raises PlaitError for one that cannot be loaded."""
    return (*SHIPPED, *(plugins.load(entry, Dialect) for entry in plugins.offered("plait.dialects")))


def is_script(name: str) -> bool:
    """Return whether `name` is a launch script of a dialect, such as `molmo/captioner`, which takes words, and not a file."""
    return any(name in dialect.scripts for dialect in dialects())
