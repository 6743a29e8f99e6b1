"""The dialects that load as their authors wrote them, in the order in which they are tried. A new one is a module and a row here."""

from collections.abc import Sequence
from pathlib import Path

from plait import flat_json, nested_yaml
from plait.provenance import Node
from plait.reading import Override
from plait.translation import Dialect, Translation

DIALECTS: tuple[Dialect, ...] = (
    Dialect("flat JSON", flat_json.recognise, flat_json.translate),
    Dialect("nested YAML", nested_yaml.recognise, nested_yaml.translate),
)


def translate(tree: Node, overrides: Sequence[Override], path: Path, own: Sequence[str]) -> Translation:
    """`tree` in plait's names: translated if a dialect recognises it, else as it is. `own` are plait's top-level keys."""
    for dialect in DIALECTS:
        if dialect.recognise(tree, own):
            return dialect.translate(tree, overrides, path, own)
    return Translation(tree, overrides)
