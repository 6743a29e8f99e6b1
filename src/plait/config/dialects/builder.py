"""The translation of one configuration under construction: what every dialect does to build plait's tree from its author's keys.

Which key means what is in the dialects' own files.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from plait.config.nodes import Node, from_plain, merge, nest, to_plain
from plait.config.translation import TranslatedKey
from plait.errors import PlaitError


class TranslationBuilder:
    """The author's keys as written, plait's tree built so far, and a row for each written key.

    `defaults` are what the author's trainer takes for a key that is not written; values made of them have the origin `default_label`.
    `notes` are the notes of rows that are given none.
    """

    def __init__(
        self, written: dict[str, Node], tree: Node, *, defaults: Mapping[str, Any], default_label: str | None, notes: Mapping[str, str]
    ):
        self.written, self.tree = written, tree
        self.defaults, self.default_label, self.notes = defaults, default_label, notes
        self.rows: dict[str, TranslatedKey] = {}

    def get(self, key: str) -> Any:
        """Return the value of one of the author's keys, or its default."""
        return to_plain(self.written[key]) if key in self.written else self.defaults.get(key)

    def origin(self, key: str) -> Node:
        """Return the node whose origin a value made of `key` takes: the key's own, or that of defaults."""
        return self.written.get(key, Node(None, self.tree.file, path=key, label=self.default_label))

    def assign(self, path: str, value: Any, *keys: str) -> None:
        """Set `path` of plait's tree, with the origin of the first of `keys` that is written. A list may hold nodes already."""
        origin = next((self.written[key] for key in keys if key in self.written), self.origin(keys[0] if keys else path))
        has_nodes = isinstance(value, list) and any(isinstance(item, Node) for item in value)
        leaf = replace(origin, value=value) if has_nodes else from_plain(value, origin)
        self.tree = merge(self.tree, nest(path.split("."), leaf))

    def translate(self, path: str, value: Any, *keys: str, note: str = "") -> None:
        """Set `path` of plait's tree as `assign` does, and add a row for each of `keys`."""
        self.assign(path, value, *keys)
        for key in keys:
            self.add_row(key, path, note)

    def add_row(self, key: str, path: str | None, note: str = "") -> None:
        """Add the row of `key` if it is written, in place of one that it has."""
        if key in self.written:
            self.rows[key] = TranslatedKey(key, self.get(key), path, note or self.notes.get(key, ""))

    def entry(self, fields: Mapping[str, tuple[str, Any]]) -> Node:
        """Return an entry of a list from {plait's field: (the author's key that it comes from, value)}. A value may be a node already."""
        values = {ours: value if isinstance(value, Node) else from_plain(value, self.origin(key)) for ours, (key, value) in fields.items()}
        return Node(values, self.tree.file)

    def error(self, key: str, why: str) -> PlaitError:
        """Return the error '{location}: {key} {why}'."""
        return PlaitError(f"{self.origin(key).location}: {key} {why}")
