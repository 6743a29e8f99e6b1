"""The declaration of a kind of source. Its file ends in `KIND = SourceKind(...)`, from which all other code learns of the kind.

An entry is one item of the configuration's `data:` section; its kind (`shards`, `folder`, ...) says how its data is read. Other packages
add kinds by the entry point group `plait.sources`, whose entry points have the name of the kind and point to its `KIND`. A file that
declares a kind does not import torch: configurations are checked without it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from plait.config.schema import SourceEntry
from plait.config.source_rules import SourceRules
from plait.data.addresses import shown
from plait.data.sources.contract import Source

OpenNamed = Callable[[SourceEntry, str], Source]
"""Opens a dataset that the model family knows by name: called with the entry that gives the name, and the split."""


@dataclass(frozen=True)
class Opening:
    """What a source is opened with besides its entry of the `data:` section: the run's seed and settings, and the split."""

    seed: int
    split: str
    """train or validation, by the list that the entry is in; the entry's `split`, if set, has precedence."""

    cache: str | Path | None
    """The folder of indices and fetched files; None: $PLAIT_CACHE or ~/.cache/plait."""

    open_named: OpenNamed | None
    """Opens the named datasets of the run's model family; None: there are none."""


@dataclass(frozen=True, kw_only=True)
class SourceKind(SourceRules):
    """A kind of source: which settings its entries take (the fields of the base class), and how a valid entry is opened."""

    open: Callable[[SourceEntry, Opening], Source]
    """Returns the source of an entry. Raises PlaitError, one line, if its files are missing or wrong."""

    names_itself: bool = False
    """Whether error messages of `open` name the source themselves. False: `open_source` puts the entry's title before them."""


CALLS = {"open": "open(entry, opening)", "check": "check(options)"}
"""How the functions of a SourceKind are called."""


def title(entry: SourceEntry) -> str:
    """Return a short name of an entry for reports: its `name`, or its kind and the end of its path, as `shards:train-000.tar`."""
    return entry.name or (f"{entry.source}:{shown(entry.path).rstrip('/').rpartition('/')[2]}" if entry.path else entry.source)


def path_of(entry: SourceEntry) -> str:
    """Return the `path` of an entry whose kind needs one, as a string."""
    assert entry.path, "the opener has checked what the kind needs"
    return entry.path
