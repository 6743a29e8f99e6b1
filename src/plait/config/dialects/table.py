"""List the dialects in the order in which they are tried. A dialect is a format of another trainer, whose files load as they are written.

A new dialect is a module here and a row below, or an entry point `plait.dialects` of another package that names a `Dialect`.
"""

from collections.abc import Sequence
from importlib.metadata import EntryPoint

from plait.config import plugins
from plait.config.dialects import dotted_flags, flat_json, molmo_commands, molmo_scripts, nested_yaml, wandb_sweeps
from plait.config.translation import CALLS, Dialect

SHIPPED: tuple[Dialect, ...] = (
    Dialect("W&B sweep", wandb_sweeps.recognise, wandb_sweeps.translate),
    Dialect("flat JSON", flat_json.recognise, flat_json.translate),
    Dialect("nested YAML", nested_yaml.recognise, nested_yaml.translate),
    Dialect("dotted flags", dotted_flags.recognise, dotted_flags.translate, molmo_scripts.SCRIPTS, molmo_scripts.open_script),
)


def dialects() -> tuple[Dialect, ...]:
    """Return the shipped dialects, then those that installed packages offer. Raises PlaitError for one that breaks its contract."""
    return (*SHIPPED, *map(_load, plugins.offered("plait.dialects")))


def _load(entry: EntryPoint) -> Dialect:
    dialect = plugins.load(entry, Dialect, CALLS)
    if dialect.scripts and dialect.open_script is None:
        raise plugins.fault(entry, f"({entry.value}) has scripts and no open_script(name, words), which makes the tree of one")
    return dialect


def scripts() -> dict[str, tuple[str, ...]]:
    """Return all launch scripts, names given in place of a file, with the words that follow each: {"molmo/captioner": ("MODEL",)}."""
    return {name: words for dialect in dialects() for name, words in dialect.scripts.items()}


def is_script(name: str) -> bool:
    """Return whether `name` is a launch script of a dialect, such as `captioner`, which takes words, and not a file."""
    return name in scripts()


def rewritten(arguments: Sequence[str]) -> list[str]:
    """Return a command line in plait's words where it is one of another trainer's, such as that of a training script.

    Raises PlaitError, with the command to type, for one that can only be answered.
    """
    return molmo_commands.rewritten(arguments)
