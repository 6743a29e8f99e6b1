"""Open the entries of a configuration's `data:` section as sources. Each kind is declared in a file, imported when it is first used."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

from plait.config import plugins
from plait.config.schema import SourceEntry
from plait.config.source_rules import unknown_kind
from plait.data.sources.contract import Source
from plait.data.sources.kind import CALLS, Opening, OpenNamed, SourceKind, title
from plait.errors import PlaitError

SHIPPED = ("shards", "folder", "jsonl", "datasets", "dataset", "latents", "nlvr", "scenes")
"""The kinds that ship, each declared in the file of the same name in this folder."""

GROUP = "plait.sources"
"""The entry point group by which other packages add kinds. They cannot replace those that ship."""


class SourceKinds(Mapping[str, SourceKind]):
    """A mapping from name, such as `shards`, to kind of source. Iterating yields the names without importing the kinds' files."""

    def __getitem__(self, name: str) -> SourceKind:
        """Import and return a kind. Raises KeyError for an unknown name, PlaitError if another package's is broken or has the same name."""
        point = plugins.named(GROUP, name, SHIPPED)
        if name in SHIPPED:
            kind: SourceKind = importlib.import_module(f"plait.data.sources.{name}").KIND
            return kind
        if point is None:
            raise KeyError(name)
        return _load(point)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*SHIPPED, *(point.name for point in plugins.offered(GROUP))]))

    def __len__(self) -> int:
        return sum(1 for _ in self)


KINDS = SourceKinds()


def _load(point: EntryPoint) -> SourceKind:
    """Import the kind of another package. Raises PlaitError when its code fails, or gives something else than the kind it names."""
    kind = plugins.load(point, SourceKind, CALLS)
    if kind.name != point.name:
        raise plugins.fault(point, f"cannot be loaded: {point.value} is the SourceKind {kind.name!r}")
    if kind.options is not None and (unknown := [name for name in kind.paths if name not in kind.options]):
        raise plugins.fault(point, f"cannot be loaded: {point.value} has {unknown[0]!r} in paths, which is none of its options")
    return kind


def open_source(
    entry: SourceEntry, *, seed: int, split: str = "train", cache: str | Path | None = None, open_named: OpenNamed | None = None
) -> Source:
    """Open the source of one entry of `data:`. `seed`: the run's. `split`: train or validation, unless the entry names one itself.

    `cache`: folder of indices and fetched files (None: the user's); `open_named`: opens the datasets that a model family knows by name.
    Raises PlaitError, one line, for a wrong entry and for missing files, fields and splits; Absent if a named dataset has no files here.
    """
    where = f"data source {title(entry)}"
    kind = KINDS.get(entry.source)
    if kind is None:
        raise PlaitError(f"{where}: source {unknown_kind(entry.source, KINDS)}")
    if kind.own_text and entry.own_text is not None:
        raise PlaitError(f"{where}: {kind.own_text}" + (f" ({entry.own_text})" if entry.own_text in ("captions", "templates") else ""))
    if missing := kind.missing(entry.path, entry.name):
        raise PlaitError(f"{where} {missing}")
    if unknown := kind.unknown_option(entry.options):
        raise PlaitError(f"{where}: no option {unknown[0]!r}; {unknown[1]}")
    try:
        source = kind.open(entry, Opening(seed, split, cache, open_named))
    except PlaitError as error:
        if kind.names_itself:
            raise
        raise PlaitError(f"{where}: {error}") from error
    except OSError as error:
        raise PlaitError(f"{where}: cannot read {error.filename or entry.path}: {error.strerror}") from error
    if not isinstance(source, Source):
        raise PlaitError(f"{where}: its kind opened a {type(source).__name__}, which is no subclass of {Source.__module__}.Source")
    try:
        texts = {"name": source.name, "fingerprint": source.fingerprint}
    except AttributeError as error:
        raise PlaitError(f"{where}: a source has a name and a fingerprint, which are texts: {error}") from error
    if wrong := [f"{attribute} is {value!r}" for attribute, value in texts.items() if not isinstance(value, str)]:
        raise PlaitError(f"{where}: a source has a name and a fingerprint, which are texts: {' and '.join(wrong)}")
    return source if entry.filter is None else importlib.import_module("plait.data.sources.filtered").passing(source, entry, where, cache)


def open_all(
    entries: Sequence[SourceEntry], *, seed: int, split: str = "train", cache: str | Path | None = None, open_named: OpenNamed | None = None
) -> list[Source]:
    """Open each entry, in order. Raises PlaitError for the first that cannot be opened.

    `seed`: the run's; `split`: of entries without; `cache`: folder of fetched files (None: the user's); `open_named`: opens named datasets.
    """
    return [open_source(entry, seed=seed, split=split, cache=cache, open_named=open_named) for entry in entries]
