"""How a kind of source declares itself: a file ends in `KIND = SourceKind(...)`, and everything else learns of the kind from there.

An entry is one item of the configuration's `data:` section; its kind (`shards`, `folder`, ...) says how its data is read. Packages beside
plait add kinds by the entry point group `plait.sources`, whose entries have the name of the kind and point to its `KIND`. A file that
declares a kind does not import torch: configurations are checked without it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from plait.config.schema import Source as Entry
from plait.config.source_rules import SourceRules
from plait.data.addresses import shown
from plait.data.sources.contract import Source

Catalogue = Callable[[Entry, str], Source]
"""Opens a dataset that the family knows by name: called with the entry that has the name, and the split."""


@dataclass(frozen=True)
class Opening:
    """What a source is opened with besides its own settings (the entry): the run's settings, and what it is used for."""

    seed: int
    split: str
    """train or validation, by the list that the entry is in; an entry's own `split` counts first."""

    cache: str | Path | None
    """The folder of indices and fetched files; None: the user's cache."""

    catalogue: Catalogue | None
    """The named datasets of the run's family; None where no family is known."""


@dataclass(frozen=True, kw_only=True)
class SourceKind(SourceRules):
    """A kind of source: which keys its entries take, and how one that keeps to them is opened."""

    open: Callable[[Entry, Opening], Source]
    """Returns the source of an entry. Raises PlaitError, one line, for what is wrong with the files."""

    names_itself: bool = False
    """Whether the errors of `open` begin with what they are about. False: the opener puts the entry's title before them."""


CALLS = {"open": "open(entry, opening)", "check": "check(options)"}
"""How the functions of a SourceKind are called."""


def title(entry: Entry) -> str:
    """Return a short name of an entry for reports: its `name`, or its kind and the end of its path, such as `shards:train-000.tar`."""
    return entry.name or (f"{entry.source}:{shown(entry.path).rstrip('/').rpartition('/')[2]}" if entry.path else entry.source)


def path_of(entry: Entry) -> str:
    """Return the `path` of an entry whose kind needs one, as a string."""
    assert entry.path, "the opener has checked what the kind needs"
    return entry.path
