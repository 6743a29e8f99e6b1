"""The kind `datasets`: rows of parquet, JSON, CSV or Arrow files, or of a Hub dataset, through the optional package `datasets`.

Files at an address are downloaded first, but for parquet that is streamed, row group by row group.

JSON and CSV are read without the package, which guesses types (the text "2024-01-15" becomes a date, "007" a number) and refuses a whole
file for one broken row. Images stay encoded; a ClassLabel becomes its name, so that a template writes "frog" and not "6".
"""

import json
import logging
import posixpath
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import xxhash

from plait.config import hub_errors
from plait.config.schema import SourceEntry
from plait.data import addresses, paths
from plait.data.formats import tables
from plait.data.formats.spans import check_bytes, check_file
from plait.data.link_lists.refusal import refuse_known
from plait.data.parquet.row_groups import RowGroups, footers_of
from plait.data.parquet.rows import RowRecords, holds_short
from plait.data.records import Record
from plait.data.remote_files import fetched
from plait.data.sources import hub_files
from plait.data.sources.contract import Reader, Source
from plait.data.sources.conversations import Conversations, open_conversations
from plait.data.sources.folder import Chosen, reader_of
from plait.data.sources.indexed import LAYOUTS, Chain, IndexedRecords
from plait.data.sources.kind import Opening, SourceKind
from plait.data.streaming.opening import LARGE_BYTES, StreamOptions, check_options, size_of
from plait.errors import PlaitError

_FORMATS = {**{ending: layout.format for ending, layout in LAYOUTS.items()}, ".parquet": "parquet", ".arrow": "arrow"}
"""The format of a file by the ending of its name, in small letters or capitals; also the package's name of its loader."""
_NAMED = 4  # files that a message names


class Table:
    """Random access to the rows of one split, read from files (`path`) or from the Hub (`hub_name`).

    Give one of the two; of both, `path` is read. It is a file, address, folder or pattern (*, {a,b}) of .parquet, .arrow, .json, .jsonl,
    .ndjson, .csv or .tsv files, all of one of these formats, or a folder that `save_to_disk` of the package wrote.
    `options`: `config` and `revision` of a Hub dataset; `images`, the folder that image paths are relative to (default: that of the files);
    `outside`, whether they may leave it. `columns`: new field name -> column name. `cache`: the cache folder of `datasets`.
    Raises PlaitError if the package or the files are missing, or `datasets` cannot load them.
    """

    def __init__(
        self, path: str | None, hub_name: str | None, split: str, options: Mapping[str, Any], cache: str | None, columns: Mapping[str, str]
    ) -> None:
        try:
            import datasets
        except ImportError as error:
            raise PlaitError("source datasets needs the package `datasets`: pip install 'plait[hub-data]'") from error
        self.title = addresses.name_of(path) if path else str(hub_name)
        self.left_out: Mapping[str, int] = {}
        try:
            with _quiet(datasets):
                rows = _load_path(datasets, path, split, cache) if path else _load_hub(datasets, str(hub_name), split, options, cache)
        except PlaitError:
            raise
        except Exception as error:  # the package and the readers below it raise whatever a damaged file leads them to
            refused = hub_errors.refusal(error, str(hub_name), dataset=True) if hub_name else None
            where = addresses.shown(path or str(hub_name))
            raise PlaitError(f"datasets cannot load {where} ({split}): {refused or _reason(error)}") from error
        if not len(rows):
            raise PlaitError(
                f"{addresses.shown(path or str(hub_name))} ({split}) holds no rows; its columns are {', '.join(rows.features) or 'none'}"
            )
        self.builder = rows.info.builder_name
        short = {name: _short_places(feature) for name, feature in rows.features.items()}
        self.records = RowRecords(
            self.title,
            columns=dict(columns),
            pictures=[name for name, feature in rows.features.items() if _is_image(datasets, feature)],
            labels={name: list(kind.names) for name, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)},
            short={name: places for name, places in short.items() if holds_short(places)},
            root=_root_of_images(path, options),
            outside=bool(options.get("outside", False)),
        )
        for name in (name for name in self.records.pictures if not _holds_bytes(rows.features[name])):
            rows = rows.cast_column(name, _encoded(datasets, rows.features[name]))
        self.rows = rows
        content = [self.title, split, len(rows), {name: str(feature) for name, feature in rows.features.items()}, rows.dataset_size]
        self.digest = xxhash.xxh3_64(json.dumps(content).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, i: int) -> Record:
        """Return row `i` as a record (fields and encoded images). Raises BadSample if a column is missing or an image cannot be read."""
        return self.records.record(self.rows[i], i)


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Keep off standard error what the package writes of an error that it raises, and its progress bars where nobody watches them."""
    handlers, bars = logging.getLogger("datasets").handlers, datasets.are_progress_bars_disabled()
    for handler in handlers:
        handler.addFilter(_below_error)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(_below_error)
        if not bars and not sys.stderr.isatty():
            datasets.enable_progress_bars()


def _below_error(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR


def _root_of_images(path: str | None, options: Mapping[str, Any]) -> Path | None:
    """Return the folder that image paths are relative to. Raises PlaitError where `images` names none."""
    if "images" in options:
        return paths.folder_of_images(str(options["images"]))
    if path is None or addresses.is_remote(path):
        return None
    named = paths.local(path)
    return named if named.is_dir() else named.parent


def _load_path(datasets: Any, path: str, split: str, cache: str | None) -> Any:
    return _load_saved(datasets, path, split) if _is_saved(path) else _load_files(datasets, _copies(path, split, cache), cache)


def _load_saved(datasets: Any, path: str, split: str) -> Any:
    try:
        saved = datasets.load_from_disk(str(paths.local(path)))
    except IndexError as error:  # it has no file of rows
        raise PlaitError(f"{path} holds no rows") from error
    if not isinstance(saved, dict):
        return saved
    if split not in saved:
        raise PlaitError(f"{path} has no split {split!r}; it has {', '.join(saved)}")
    return saved[split]


def _load_files(datasets: Any, files: Sequence[Path], cache: str | None) -> Any:
    names = [str(file) for file in files]
    tables.check_columns(names)
    try:
        return datasets.load_dataset(_format(names[0]), data_files=names, split="train", cache_dir=cache)
    except Exception as error:
        if line := tables.fault(names):
            raise PlaitError(line) from error
        raise


def _is_saved(path: str) -> bool:
    """Return whether a path is a folder that `save_to_disk` of the package writes."""
    folder = paths.local(path)
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _format(file: str) -> str | None:
    name = addresses.name_of(addresses.spelled_out(file) if addresses.is_remote(file) else file)
    return _FORMATS.get(Path(name).suffix.lower())


def _files(path: str, split: str) -> list[str]:
    """Return the paths or addresses of the data files that a path names, all of one format.

    Raises PlaitError for files of several formats or an unknown one, and for empty ones.
    """
    folder = paths.local(path)
    if not addresses.is_remote(path) and folder.is_dir() and not any(_format(file.name) for file in folder.iterdir()):
        raise PlaitError(f"no file in {folder} ends in {', '.join(_FORMATS)}")
    files = paths.files(path, tuple(_FORMATS), split=None, default_split=split)
    unknown = next((file for file in files if _format(file) is None), None)
    if unknown is not None:
        remote = addresses.is_remote(unknown)
        if not remote and Path(unknown).with_suffix("").suffix.lower() in LAYOUTS:
            check_bytes(Path(unknown), "text")  # tells compression
        shown = addresses.shown(unknown) if remote else unknown
        cure = (
            f"; name files, as {shown.rstrip('/')}/*.parquet" if remote and not addresses.is_web(unknown) and not Path(shown).suffix else ""
        )
        raise PlaitError(f"cannot tell the format of {shown}; known endings: {', '.join(_FORMATS)}{cure}")
    counts = Counter(map(_format, files))
    if len(counts) > 1:
        told = " and ".join(f"{count} {kind}" for kind, count in counts.items())
        cure = " or ".join(f"path: {_pattern(path, files, kind)}" for kind in counts)
        raise PlaitError(
            f"{addresses.shown(path)} names files of {len(counts)} formats ({told}), and a source reads one: name it, as {cure}"
        )
    for file in files:
        if not addresses.is_remote(file):
            check_file(Path(file))
    return files


def _pattern(path: str, files: Sequence[str], kind: str | None) -> str:
    """Return a path that names the files of one format. `files`: all that `path` names."""
    named = [file for file in files if _format(file) == kind]
    endings = sorted({Path(addresses.name_of(file)).suffix for file in named})
    ending = endings[0] if len(endings) == 1 else f".{{{','.join(each[1:] for each in endings)}}}"
    remote, (folder, _, last) = addresses.is_remote(path), addresses.shown(path).rstrip("/").rpartition("/")
    literal = not remote and paths.local(path).exists()
    choices = [path] if literal else paths.braces(path)
    wild = not literal and not addresses.is_web(path) and any(mark in path for mark in "*?[")
    if wild and any(mark in last for mark in "*?["):
        return f"{folder or '.'}/*{ending}"
    if not wild and set(files).isdisjoint(choices if remote else [str(paths.local(choice)) for choice in choices]):  # they are folders
        return f"{addresses.shown(path).rstrip('/')}/*{ending}"
    shown = [addresses.shown(file) for file in named]
    if len(shown) == 1 or len({posixpath.dirname(file) for file in shown}) > 1:
        return shown[0]
    names = [posixpath.basename(file) for file in shown]
    return f"{posixpath.dirname(shown[0])}/{{{','.join(names[:_NAMED])}{',...' * (len(names) > _NAMED)}}}"


def _copies(path: str, split: str, cache: str | None) -> list[Path]:
    """Return the data files that a path names; those at addresses are downloaded. Raises PlaitError as `_files` does."""
    return [fetched(file, cache) if addresses.is_remote(file) else Path(file) for file in _files(path, split)]


def _reason(error: BaseException) -> str:
    """Return the first line of the error that began a chain: the package's own says only that something went wrong below it."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next(iter(str(error).splitlines()), "")
    return line if line and isinstance(error, OSError | ValueError) else f"{type(error).__name__} {line}".strip()


def _load_hub(datasets: Any, name: str, split: str, options: Mapping[str, Any], cache: str | None) -> Any:
    """Return the rows of a Hub dataset. If it cannot be asked, those that the package keeps in `cache`, else in its own cache folder."""
    unasked = hub_files.check_access(name, options.get("revision"))
    folders = [cache] if unasked is None else [cache, None]
    for folder in dict.fromkeys(folders):
        try:
            rows = datasets.load_dataset(name, options.get("config"), split=split, revision=options.get("revision"), cache_dir=folder)
        except Exception as error:
            if unasked is None or not hub_errors.unreachable(error):
                raise
            continue
        if unasked is not None:
            hub_files.tell_unreached(name, unasked)
        return rows
    assert unasked is not None
    raise PlaitError(hub_files.unreached(name, split, unasked)) from unasked


def _is_image(datasets: Any, feature: Any) -> bool:
    of_one = feature.feature if isinstance(feature, datasets.List) else feature
    return isinstance(of_one, datasets.Image) or _holds_bytes(feature)


def _holds_bytes(feature: Any) -> bool:
    """Return whether cells are {"bytes", "path"}, or lists of them: pictures as the package stores them, of files that do not say so."""
    of_one = getattr(feature, "feature", feature)
    return isinstance(of_one, Mapping) and set(of_one) == {"bytes", "path"} and "binary" in str(getattr(of_one["bytes"], "dtype", ""))


def _short_places(feature: Any) -> Any:
    """Return where a column holds numbers of 16 or 32 bits, also in lists and structs, as RowRecords takes it."""
    if isinstance(feature, Mapping):
        return {name: _short_places(inner) for name, inner in feature.items()}
    if hasattr(feature, "feature"):
        return [_short_places(feature.feature)]
    return None if hasattr(feature, "shape") else getattr(feature, "dtype", None)  # arrays of several dimensions are no text


def _encoded(datasets: Any, feature: Any) -> Any:
    """Return the image feature, or list of images, whose cells are not decoded."""
    undecoded = datasets.Image(decode=False)
    return undecoded if isinstance(feature, datasets.Image) else datasets.List(undecoded)


def _hub_reader(entry: SourceEntry, split: str, cache: str | None, *, training: bool) -> Reader:
    """Return a reader of a Hub dataset: plait's own for text files, imagefolders and streams, the package's table for other formats."""
    downloaded = hub_files.download(str(entry.name), split, entry.options)
    reader: Reader
    if downloaded.parquet:
        streamed = _streamed(downloaded.parquet, entry, cache, training=training, labels=downloaded.classes)
        return streamed or Table(None, entry.name, split, entry.options, cache, entry.columns)
    if entry.options.get("stream") is True:
        raise PlaitError(f"options.stream is of parquet, and {entry.name} is of other files, or the Hub could not be asked: leave it out")
    if downloaded.folder is not None:
        chosen = Chosen(frozenset(downloaded.pictures), downloaded.metadata, downloaded.labels)
        reader = reader_of(Path(downloaded.folder), entry, cache, chosen)
    elif downloaded.files:
        reader = _records([Path(file) for file in downloaded.files], entry, cache)
    else:
        reader = Table(None, entry.name, split, entry.options, cache, entry.columns)
        if reader.builder in hub_files.BUILDERS and not downloaded.packaged:
            guessed = f"the package's own copy of its {reader.builder} files holds guesses (`007` as 7)"
            raise PlaitError(f"{entry.name}: the Hub could not be asked, and {guessed}: try again when it answers")
    classes = {ours: downloaded.classes[theirs] for ours, theirs in entry.columns.items() if theirs in downloaded.classes}
    classes |= {
        name: names for name, names in downloaded.classes.items() if name not in {**entry.columns, **dict.fromkeys(entry.columns.values())}
    }
    reader = hub_files.NamedClasses(reader, classes) if classes else reader
    reader.left_out = {**reader.left_out, **downloaded.left_out}
    return reader


def _reader(path: str, entry: SourceEntry, split: str, cache: str | None, *, training: bool) -> Reader:
    """Return a reader of the files that a path names. `training`: whether they are trained on, and large ones at an address streamed."""
    if _is_saved(path):
        if entry.options.get("stream") is True:
            raise PlaitError(f"options.stream is of parquet, and {path} is a folder that `save_to_disk` wrote: leave it out")
        return Table(path, None, split, entry.options, cache, entry.columns)
    files = _files(path, split)
    if (streamed := _streamed(files, entry, cache, training=training)) is not None:
        streamed.left_out = paths.left_out(path, tuple(_FORMATS), files)
        return streamed
    copies = [fetched(file, cache) if addresses.is_remote(file) else Path(file) for file in files]
    text = copies[0].suffix.lower() in LAYOUTS
    reader: Reader = _records(copies, entry, cache) if text else Table(path, None, split, entry.options, cache, entry.columns)
    reader.left_out = {**reader.left_out, **paths.left_out(path, tuple(_FORMATS), [str(copy) for copy in copies])}
    return reader


def _streamed(
    files: Sequence[str], entry: SourceEntry, cache: str | None, *, training: bool, labels: Mapping[str, list[str]] | None = None
) -> RowGroups | None:
    """Return a reader of parquet files that are streamed; None for others.

    `files`: paths or addresses; `training`: whether they are trained on, and large ones at an address streamed; `labels`: names of classes
    that the files do not tell. Raises PlaitError where other files are to be streamed.
    """
    options, parquet = StreamOptions.of(entry.options), all(_format(file) == "parquet" for file in files)
    if options.stream is True and not parquet:
        raise PlaitError(f"options.stream is of parquet, and {addresses.shown(files[0])} is {_format(files[0])}: leave it out")
    large = options.stream == "auto" and parquet and training and addresses.is_remote(files[0]) and size_of(files) >= LARGE_BYTES
    if options.stream is not True and not large:
        return None
    title = addresses.name_of(entry.path) if entry.path else str(entry.name)
    root, outside = _root_of_images(entry.path, entry.options), bool(entry.options.get("outside", False))
    records = RowRecords(title, columns=dict(entry.columns), labels=labels or {}, root=root, outside=outside)
    return RowGroups(footers_of(files, cache), records, options, cache)


class RowGroupSamples(Conversations):
    """Rows of parquet that are read row group by row group, in training in the order of their stream."""

    def __init__(self, entry: SourceEntry, reader: RowGroups, *, training: bool) -> None:
        super().__init__(entry, reader)
        self.may_wait, self.stored = reader.remote, False
        self.stream = reader.stream(len(self)) if training else None


def _records(files: Sequence[Path], entry: SourceEntry, cache: str | None) -> Reader:
    """Return a reader of files of JSON or CSV."""
    root, outside = _root_of_images(entry.path, entry.options), bool(entry.options.get("outside", False))
    readers = [IndexedRecords(file, LAYOUTS[file.suffix.lower()], cache, entry.columns, images=root, outside=outside) for file in files]
    return readers[0] if len(readers) == 1 else Chain(readers)


def _open(entry: SourceEntry, opening: Opening) -> Source:
    cache, split = str(opening.cache) if opening.cache else None, entry.split or opening.split
    refuse_known(entry)
    training = opening.split == "train"
    open_reader = partial(_reader, entry.path) if entry.path else _hub_reader
    reader = open_reader(entry, split, cache, training=training)
    if isinstance(reader, RowGroups):
        streamed = reader
        return open_conversations(entry, reader, lambda row, _: RowGroupSamples(row, streamed, training=training))
    return open_conversations(entry, reader)


KIND = SourceKind(
    "datasets",
    needs="path or name",
    name_is=" on the Hub",
    options=("config", "revision", "images", "outside", "stream", "block", "machines", "cache_gb"),
    paths=("images",),
    check=check_options,
    open=_open,
)
