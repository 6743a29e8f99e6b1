"""The dialects that load as their authors wrote them, in the order in which they are tried. A new one is a module and a row here."""

from collections.abc import Sequence
from pathlib import Path

from plait import dotted_flags, flat_json, launch_scripts, nested_yaml, reading
from plait.provenance import Node
from plait.reading import Override
from plait.translation import Dialect, Translation

DIALECTS: tuple[Dialect, ...] = (
    Dialect("flat JSON", flat_json.recognise, flat_json.translate),
    Dialect("nested YAML", nested_yaml.recognise, nested_yaml.translate),
    Dialect("dotted flags", dotted_flags.recognise, dotted_flags.translate),
)


def is_script(path: Path) -> bool:
    """Whether `path` is no file but a launch script of the Molmo guide, which takes words besides flags."""
    return path.as_posix() in launch_scripts.SCRIPTS


def read(path: Path, words: Sequence[str]) -> Node:
    """The mapping in a file, or a launch script with its words."""
    return launch_scripts.opened(path, words) or reading.read(path)


def translate(tree: Node, overrides: Sequence[Override], path: Path, own: Sequence[str]) -> Translation:
    """`tree` in plait's names: translated if a dialect recognises it, else as it is. `own` are plait's top-level keys."""
    for dialect in DIALECTS:
        if dialect.recognise(tree, own):
            return dialect.translate(tree, overrides, path, own)
    return Translation(tree, overrides)
