"""Sources of samples: what a `data:` entry opens. A reader gives records, the entry's template makes conversations of them.

A sample is a dict: `id`, `images` (encoded files), `messages` (role and content), `fields` (the raw record) and, for clips, `frames`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol

import xxhash

from plait.config.schema import Source as Entry
from plait.data import paths, text
from plait.data.formats import index
from plait.data.records import Record
from plait.data.sources.custom import Custom
from plait.data.sources.folder import Folder
from plait.data.sources.latents import Latents
from plait.data.sources.lines import Lines
from plait.data.sources.shards import Shards, open_shard
from plait.data.sources.table import Table
from plait.data.synthetic.nlvr import Nlvr
from plait.data.synthetic.scenes import Scenes
from plait.errors import BadSample, PlaitError

Sample = dict[str, Any]

_OPTIONS: dict[str, tuple[str, ...]] = {"shards": (), "folder": (), "jsonl": ("images",), "datasets": ("config", "revision")}
_PROBES = 20  # records looked at, at most, to check a template before the run


class Source(Protocol):
    """What the loader draws from. `source[i]` in any order, from any thread or process.

    One that draws something of a sample anew each time, such as the words of a question, has `draw(i, sample_key) -> Sample` too.
    """

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...  # identity of the content: names, sizes, counts, template; not times, not where it lies
    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Sample: ...


class Absent(PlaitError):
    """A dataset that is known, but lies nowhere it was looked for."""


Catalogue = Callable[[Entry, str], Source]
"""Opens the entry of a dataset that a family knows by name, for a split."""


class Reader(Protocol):
    """What gives records: Shards, Folder, Lines, Table."""

    digest: str

    def __len__(self) -> int: ...
    def read(self, i: int) -> Record: ...


class Conversations:
    """A reader's records with their messages made."""

    def __init__(self, reader: Reader, name: str, template: Any | None, columns: Mapping[str, str], limit: int | None) -> None:
        self.reader, self.name, self.template = reader, name, template
        self._length = len(reader) if limit is None else min(limit, len(reader))
        told = template and [getattr(template, role) for role in text.ROLES]
        self.fingerprint = xxhash.xxh3_64(repr([reader.digest, self._length, told, sorted(columns.items())]).encode()).hexdigest()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> Sample:
        record = self.reader.read(i)
        conversation = text.messages(record.fields, self.template)
        text.check_marks(conversation, len(record.images))
        sample: Sample = {"id": record.id, "images": record.images, "messages": conversation, "fields": record.fields}
        return sample | {"frames": record.frames} if record.frames else sample


def open_source(
    entry: Entry, *, seed: int, split: str = "train", cache: str | Path | None = None, catalogue: Catalogue | None = None
) -> Source:
    """Open one entry. `split` is what the entry is used for (train, validation), when it does not name one itself.

    Errors: missing files, fields, splits and options, each one line that begins with the entry.
    """
    where = f"data source {title(entry)}"
    if entry.source == "dataset":
        return _dataset(entry, entry.split or split, catalogue, where)
    if entry.source == "scenes":
        if entry.template is not None or entry.columns:
            raise PlaitError(f"{where}: scenes write their own text; take out `template` and `columns`, and use `options`")
        return Scenes(entry.options, seed=seed, split=entry.split or split, length=entry.limit)
    if entry.source == "latents":
        return _latents(entry, split, cache, where)
    if entry.source == "nlvr":
        return _nlvr(entry, split, cache, where)
    unknown = next((name for name in entry.options if name not in _OPTIONS[entry.source]), None)
    if unknown is not None:
        known = _OPTIONS[entry.source]
        near = get_close_matches(unknown, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known)}" if known else "it takes none"
        raise PlaitError(f"{where}: no option {unknown!r}; {hint}")
    try:
        source = Conversations(_reader(entry, split, cache), title(entry), entry.template, entry.columns, entry.limit)
    except PlaitError as error:
        raise PlaitError(f"{where}: {error}") from error
    _probe(source, entry, where)
    return source


def _latents(entry: Entry, split: str, cache: str | Path | None, where: str) -> Source:
    if entry.template is not None or entry.columns:
        raise PlaitError(f"{where}: latents carry their own captions; take out `template` and `columns`")
    if not entry.path:
        raise PlaitError(f"{where} needs `path`")
    try:
        return Latents(entry.path, entry.options, split=entry.split or split, limit=entry.limit, cache=cache)
    except PlaitError as error:
        raise PlaitError(f"{where}: {error}") from error


def _nlvr(entry: Entry, split: str, cache: str | Path | None, where: str) -> Source:
    if entry.template is not None or entry.columns:
        raise PlaitError(f"{where}: nlvr makes its own questions; take out `template` and `columns`, or read the shards as source shards")
    try:
        found = Nlvr(_reader(entry, split, cache), title(entry), entry.options, entry.limit)
        found[0]  # shards of another kind should not wait for step 1
    except (PlaitError, BadSample) as error:
        raise PlaitError(f"{where}: {error}") from error
    return found


def _dataset(entry: Entry, split: str, catalogue: Catalogue | None, where: str) -> Source:
    if entry.template is not None or entry.columns:
        raise PlaitError(f"{where}: a dataset makes its own conversations; take out `template` and `columns`")
    if not entry.name:
        raise PlaitError(f"{where} needs `name`")
    if ":" in entry.name:
        return Custom(entry.name, split=split, options=entry.options, limit=entry.limit)
    if catalogue is None:
        raise PlaitError(f"{where}: no datasets are known by name here; name your own as module:Class or file.py:Class")
    return catalogue(entry, split)


def open_all(
    entries: Sequence[Entry], *, seed: int, split: str = "train", cache: str | Path | None = None, catalogue: Catalogue | None = None
) -> list[Source]:
    """Open every entry of a mixture, in order."""
    return [open_source(entry, seed=seed, split=split, cache=cache, catalogue=catalogue) for entry in entries]


def title(entry: Entry) -> str:
    """A short name for reports: the entry's own, or its kind and the end of its path."""
    return entry.name or (f"{entry.source}:{entry.path.rstrip('/').rpartition('/')[2]}" if entry.path else entry.source)


def _reader(entry: Entry, split: str, cache: str | Path | None) -> Reader:
    if entry.source == "datasets":
        if not entry.path and not entry.name:
            raise PlaitError("give `path` (files) or `name` (a Hub dataset)")
        return Table(entry.path, entry.name, entry.split or split, entry.options, str(cache) if cache else None, entry.columns)
    if not entry.path:
        raise PlaitError(f"source {entry.source} needs `path`")
    if entry.source in ("shards", "nlvr"):
        return Shards(paths.files(entry.path, ".tar", split=entry.split, default_split=split), cache, entry.columns)
    if paths.is_remote(entry.path):
        raise PlaitError(f"{entry.path} is remote, which only shards can be; copy it to disk, or make shards of it")
    if entry.source == "folder":
        return _folder(paths.local(entry.path), entry.split, cache, entry.columns)
    found = paths.files(entry.path, ".jsonl", split=entry.split, default_split=split)
    if len(found) > 1:
        raise PlaitError(f"{entry.path!r} names {len(found)} files; give each its own entry")
    root = paths.local(str(entry.options["images"])) if "images" in entry.options else None
    return Lines(Path(found[0]), root, cache, entry.columns)


def _folder(root: Path, split: str | None, cache: str | Path | None, columns: Mapping[str, str]) -> Reader:
    root = root / split if split else root
    if not root.is_dir():
        raise PlaitError(f"{root} is not a folder")
    table = root / "metadata.jsonl"
    return Lines(table, root, cache, {"image": "file_name"} | dict(columns)) if table.is_file() else Folder(root, columns)


def _probe(source: Conversations, entry: Entry, where: str) -> None:
    """Read the first record that can be read, and check columns and template against it: a wrong field should not wait for step 1."""
    first = None
    for i in range(min(_PROBES, len(source))):
        try:
            record = source.reader.read(i)
        except BadSample as error:
            first = first or error
            continue
        if entry.template is not None:
            text.check_template(entry.template, record.fields, where)
        return
    raise PlaitError(f"{where}: none of the first {min(_PROBES, len(source))} samples can be read: {first}")


@dataclass(frozen=True)
class Indexed:
    """One line of `plait data index`."""

    path: str
    index: Path
    samples: int
    members: int
    hidden: int  # files passed over because their names begin with a dot
    kinds: tuple[str, ...]
    built: bool  # False: a fresh index was there
    time_s: float


def index_files(pattern: str, *, cache: str | Path | None = None, rebuild: bool = False) -> list[Indexed]:
    """Make the index of every shard that `pattern` names (every split of a folder), and say what is in it."""
    rows = []
    for path in paths.files(pattern, ".tar", split=None, default_split=""):
        start = time.perf_counter()
        shard = open_shard(path, cache, rebuild=rebuild)
        index.map_arrays(shard.head)  # also checks that it is whole
        facts = shard.head.facts
        took = time.perf_counter() - start
        rows.append(
            Indexed(
                path, shard.head.path, facts["samples"], facts["members"], facts["hidden"], tuple(facts["extensions"]), shard.built, took
            )
        )
    return rows
