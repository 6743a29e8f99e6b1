"""Build plait's configuration from one that was written for another trainer: what the translators of all such formats (dialects) share.

The author's configuration is that of the user's file, in the other trainer's keys. A configuration is a tree of nodes, which are values
that know their file and line. A row says what became of one of the author's keys. Which key means what is in the dialects' own files.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from plait.config.nodes import Node, from_plain, merge, nest, to_plain
from plait.config.translation import TranslatedKey
from plait.errors import PlaitError


class TranslationBuilder:
    """The author's keys as `written`, plait's `tree` built from them so far, and `rows`: for each written key, what became of it.

    `defaults`: the value that the author's trainer uses for a key that is not written; values made of them are listed with the origin
    `default_label`. `notes`: {key: the remark of its row where `add_row` is given none}.
    """

    def __init__(
        self, written: dict[str, Node], tree: Node, *, defaults: Mapping[str, Any], default_label: str | None, notes: Mapping[str, str]
    ):
        self.written, self.tree = written, tree
        self.defaults, self.default_label, self.notes = defaults, default_label, notes
        self.rows: dict[str, TranslatedKey] = {}

    def get(self, key: str) -> Any:
        """Return the plain value of `key`, one of the author's keys, or else its default (None without one)."""
        return to_plain(self.written[key]) if key in self.written else self.defaults.get(key)

    def origin(self, key: str) -> Node:
        """Return the node whose file and line are the origin of a value made from `key`.

        It is the key's own, or one that stands for defaults.
        """
        return self.written.get(key, Node(None, self.tree.file, path=key, label=self.default_label))

    def assign(self, path: str, value: Any, *keys: str) -> None:
        """Set `path` of plait's tree, such as "optim.lr", with the file and line of the first of `keys` that is written.

        `value`: plain data, or a list of nodes. Without a written key, the value is listed as a default (`default_label`).
        """
        origin = next((self.written[key] for key in keys if key in self.written), self.origin(keys[0] if keys else path))
        has_nodes = isinstance(value, list) and any(isinstance(item, Node) for item in value)
        leaf = replace(origin, value=value) if has_nodes else from_plain(value, origin)
        self.tree = merge(self.tree, nest(path.split("."), leaf))

    def translate(self, path: str, value: Any, *keys: str, note: str = "") -> None:
        """Set `path` of plait's tree, such as "optim.lr", and record it in the row of each of the author's `keys`.

        The value has the file and line of the first of `keys` that is written; without one it is listed as a default. `note`: the remark
        of the rows; "": that of each key in `notes`.
        """
        self.assign(path, value, *keys)
        for key in keys:
            self.add_row(key, path, note)

    def add_row(self, key: str, path: str | None, note: str = "") -> None:
        """Record that the author's `key` became `path` (None: it has no effect here), if it is written; replaces an earlier row.

        `note`: the row's remark; "": that of the key in `notes`.
        """
        if key in self.written:
            self.rows[key] = TranslatedKey(key, self.get(key), path, note or self.notes.get(key, ""))

    def entry(self, fields: Mapping[str, tuple[str, Any]]) -> Node:
        """Return a node for one item of a list, from {plait's field: (the author's key that it comes from, value)}."""
        values = {ours: value if isinstance(value, Node) else from_plain(value, self.origin(key)) for ours, (key, value) in fields.items()}
        return Node(values, self.tree.file)

    def error(self, key: str, why: str) -> PlaitError:
        """Return the PlaitError '{file:line}: {key} {why}', to be raised by the caller."""
        return PlaitError(f"{self.origin(key).location}: {key} {why}")
