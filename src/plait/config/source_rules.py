"""What a configuration must know of a kind of data source: which keys it needs and which options it has. Nothing is opened here.

A source is one data set; its kind (`shards`, `jsonl`, ...) says how it is read; an entry is one item of the `data:` section.
"""

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class SourceRules:
    """What a kind of source accepts in its entry, an item of `data.train`; checked before any file is opened."""

    name: str
    """The kind's name: the value of `source:` in an entry."""

    needs: Literal["path", "name", "path or name", "nothing"] = "path"
    """Which keys of the entry say where the samples are; `path or name`: exactly one of the two."""

    name_is: str = ""
    """What `name` stands for, as the end of the message "needs a name": ": one that the family knows", or " on the Hub"."""

    own_text: str = ""
    """The error message when `template` or `columns` is set for a kind that makes its own conversations; empty for kinds that take them."""

    options: tuple[str, ...] | None = ()
    """The keys that `options:` may have. None: the source itself checks names and values when it is opened."""

    paths: tuple[str, ...] = ()
    """Those of `options` whose values are paths, which are relative to the configuration's file as `path` is."""

    check: Callable[[Mapping[str, Any]], tuple[str, str] | None] | None = None
    """Looks at the values of `options` without opening a file; returns the first wrong one and why, as ("size", "must be ..."), or None."""

    def missing(self, path: str | None, name: str | None) -> str | None:
        """Return what an entry with this `path` and `name` lacks, such as "needs a path", or None if it lacks nothing."""
        if self.needs == "path" and not path:
            return "needs a path"
        if self.needs == "name" and not name:
            return f"needs a name{self.name_is}"
        if self.needs == "path or name" and bool(path) == bool(name):
            return f"needs either a name{self.name_is} or a path"
        return None

    def unknown_option(self, options: Iterable[str]) -> tuple[str, str] | None:
        """Return the first of `options` that this kind lacks, with a hint: ("sise", "did you mean 'size'?"). None if all exist."""
        unknown = None if self.options is None else next((name for name in options if name not in self.options), None)
        if unknown is None:
            return None
        near = difflib.get_close_matches(unknown, self.options or (), 1)
        if near:
            return unknown, f"did you mean {near[0]!r}?"
        return unknown, f"it takes {', '.join(self.options)}" if self.options else "it takes none"


_MEANT = {
    **dict.fromkeys(("csv", "tsv", "parquet", "arrow", "hf", "huggingface", "hub"), "datasets"),
    **dict.fromkeys(("json", "llava", "sharegpt"), "jsonl"),
    **dict.fromkeys(("imagefolder", "images", "directory"), "folder"),
    **dict.fromkeys(("webdataset", "wds", "tar"), "shards"),
}
"""Kinds of source by other names that users look for."""


def unknown_kind(kind: str, known: Collection[str]) -> str:
    """Return the end of an error message about an unknown `source:`, such as "must be 'a' or 'b', got 'c'". It names the nearest kind."""
    *first, last = map(repr, known)
    near = [_MEANT[kind.lower()]] if _MEANT.get(kind.lower()) in known else difflib.get_close_matches(kind, known, 1)
    return f"must be {', '.join(first)} or {last}, got {kind!r}" + (f": did you mean {near[0]!r}?" if near else "")
