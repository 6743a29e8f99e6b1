"""The kind `datasets`: rows of parquet, JSON, CSV or Arrow files, or of a Hub dataset, through the optional package `datasets`.

JSON and CSV are read without the package, which guesses types (the text "2024-01-15" becomes a date, "007" a number) and refuses a whole
file for one broken row. Images stay encoded; a ClassLabel becomes its name, so that a template writes "frog" and not "6".
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from plait.config import hub_errors
from plait.config.schema import SourceEntry
from plait.data import addresses, paths
from plait.data.formats import tables
from plait.data.formats.spans import check_bytes, check_file
from plait.data.records import PATH_FIELDS, Record, as_list
from plait.data.sources import hub_files
from plait.data.sources.contract import Source
from plait.data.sources.conversations import open_conversations
from plait.data.sources.indexed import LAYOUTS, Chain, IndexedRecords
from plait.data.sources.kind import Opening, SourceKind
from plait.data.text import kind_of, rename
from plait.errors import BadSample, PlaitError

_LOADERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".arrow": "arrow"}


class Table:
    """Random access to the rows of one split, read from files (`path`) or from the Hub (`hub_name`).

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
        self.title = Path(path).name if path else str(hub_name)
        self.left_out: Mapping[str, int] = {}
        self.root, self.outside = _root_of_images(path, options), bool(options.get("outside", False))
        try:
            rows = _load_files(datasets, path, split, cache) if path else _load_hub(datasets, str(hub_name), split, options, cache)
        except PlaitError:
            raise
        except Exception as error:  # the package and the readers below it raise whatever a damaged file leads them to
            refused = hub_errors.refusal(error, str(hub_name), dataset=True) if hub_name else None
            raise PlaitError(f"datasets cannot load {path or hub_name} ({split}): {refused or _reason(error)}") from error
        if not len(rows):
            raise PlaitError(f"{path or hub_name} ({split}) holds no rows; its columns are {', '.join(rows.features) or 'none'}")
        self.columns = dict(columns)
        self.labels = {name: f for name, f in rows.features.items() if isinstance(f, datasets.ClassLabel)}
        self.pictures = [name for name, feature in rows.features.items() if _is_image(datasets, feature)]
        for name in self.pictures:
            rows = rows.cast_column(name, _encoded(datasets, rows.features[name]))
        self.rows = rows
        content = [self.title, split, len(rows), {name: str(feature) for name, feature in rows.features.items()}, rows.dataset_size]
        self.digest = xxhash.xxh3_64(json.dumps(content).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def _name(self, i: int) -> str:
        return f"{self.title}[{i}]"

    def read(self, i: int) -> Record:
        """Return row `i` as a record. Raises BadSample if a column is missing or an image cannot be read."""
        row = self.rows[i]
        for name, label in self.labels.items():
            if row[name] is not None:  # -1 stands for a missing label
                row[name] = label.int2str(row[name]) if row[name] >= 0 else None
        pictures = {name: row[name] for name in self.pictures}
        fields = rename(row, self.columns)
        named = [value for name in ("image", "images") for value in as_list(fields.get(name))]
        cells = named or [value for name in self.pictures for value in as_list(pictures[name])]
        cells = cells or next((as_list(fields[name]) for name in PATH_FIELDS if isinstance(fields.get(name), str)), [])
        images, frames = ([self._bytes(value, self._name(i)) for value in values] for values in (cells, as_list(fields.get("frames"))))
        plain = {name: value for name, value in fields.items() if name not in ("image", "images", "frames", *self.pictures)}
        name = plain.get("id")
        return Record(self._name(i) if name is None else str(name), plain, images, frames)

    def _bytes(self, value: object, where: str) -> bytes:
        """Return the encoded bytes of an image cell: bytes, a path, or what `datasets` gives for one ({"bytes", "path"}).

        Raises BadSample for anything else, and for a path that names no file below the folder of images.
        """
        if isinstance(value, bytes):
            return value
        if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
            return bytes(value["bytes"])
        name = value.get("path") if isinstance(value, Mapping) else value
        if not isinstance(name, str):
            raise BadSample(f"{where}: no image, but {kind_of(value)}")
        if self.root is None:
            raise BadSample(f"{where}: its image is a path, {name!r}, and this dataset has no folder: set options {{images: FOLDER}}")
        return paths.read_image(self.root, name, anywhere=self.outside)


def _root_of_images(path: str | None, options: Mapping[str, Any]) -> Path | None:
    """Return the folder that image paths are relative to. Raises PlaitError where `images` names none."""
    if "images" in options:
        return paths.folder_of_images(str(options["images"]))
    if path is None:
        return None
    named = paths.local(path)
    return named if named.is_dir() else named.parent


def _load_files(datasets: Any, path: str, split: str, cache: str | None) -> Any:
    folder = paths.local(path)
    if _is_saved(folder):
        try:
            saved = datasets.load_from_disk(str(folder))
        except IndexError as error:  # it has no file of rows
            raise PlaitError(f"{path} holds no rows") from error
        if not isinstance(saved, dict):
            return saved
        if split not in saved:
            raise PlaitError(f"{path} has no split {split!r}; it has {', '.join(saved)}")
        return saved[split]
    files = _files(path, split)
    compared = [] if any(map(addresses.is_remote, files)) or Path(files[0]).suffix in LAYOUTS else files
    tables.check_columns(compared)
    try:
        return datasets.load_dataset(_LOADERS[Path(files[0]).suffix], data_files=files, split="train", cache_dir=cache)
    except Exception as error:
        if line := tables.fault(compared):
            raise PlaitError(line) from error
        raise


def _is_saved(folder: Path) -> bool:
    """Return whether a folder is what `save_to_disk` of the package writes."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _files(path: str, split: str) -> list[str]:
    """Return the data files that a path names, all of one format. Raises PlaitError for files of an unknown format and for empty ones."""
    folder = paths.local(path)
    files = _in_folder(folder, split) if folder.is_dir() else paths.files(path, "", split=None)
    unknown = next((file for file in files if Path(file).suffix not in _LOADERS), None)
    if unknown is not None:
        if Path(unknown).with_suffix("").suffix in LAYOUTS and not addresses.is_remote(unknown):
            check_bytes(Path(unknown), "text")  # tells compression
        raise PlaitError(f"cannot tell the format of {unknown}; known endings: {', '.join(_LOADERS)}")
    other = next((file for file in files if _LOADERS[Path(file).suffix] != _LOADERS[Path(files[0]).suffix]), None)
    if other is not None:
        raise PlaitError(f"{files[0]} and {other} are of two formats: give each its own entry")
    for file in files:
        if not addresses.is_remote(file):
            check_file(Path(file))
    return files


def _reason(error: BaseException) -> str:
    """Return the first line of the error that began a chain: the package's own says only that something went wrong below it."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next(iter(str(error).splitlines()), "")
    return line if line and isinstance(error, OSError | ValueError) else f"{type(error).__name__} {line}".strip()


def _in_folder(folder: Path, split: str) -> list[str]:
    for suffix in _LOADERS:
        if any(folder.glob(f"*{suffix}")):
            return paths.files(str(folder), suffix, split=None, default_split=split)
    raise PlaitError(f"no file in {folder} ends in {', '.join(_LOADERS)}")


def _load_hub(datasets: Any, name: str, split: str, options: Mapping[str, Any], cache: str | None) -> Any:
    return datasets.load_dataset(name, options.get("config"), split=split, revision=options.get("revision"), cache_dir=cache)


def _is_image(datasets: Any, feature: Any) -> bool:
    return isinstance(feature, datasets.Image) or (isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.Image))


def _encoded(datasets: Any, feature: Any) -> Any:
    """Return the image feature, or list of images, whose cells are not decoded."""
    undecoded = datasets.Image(decode=False)
    return undecoded if isinstance(feature, datasets.Image) else datasets.List(undecoded)


def _text_files(entry: SourceEntry, split: str, cache: str | None) -> list[str]:
    """Return the JSON or CSV files that an entry names, those of a Hub dataset downloaded; [] for other formats."""
    if entry.path is None:
        return hub_files.text_files(str(entry.name), split, entry.options, cache)
    if _is_saved(paths.local(entry.path)):
        return []
    files = _files(entry.path, split)
    return files if Path(files[0]).suffix in LAYOUTS and not any(map(addresses.is_remote, files)) else []


def _open(entry: SourceEntry, opening: Opening) -> Source:
    cache, split = str(opening.cache) if opening.cache else None, entry.split or opening.split
    files = _text_files(entry, split, cache)
    if not files:
        return open_conversations(entry, Table(entry.path, entry.name, split, entry.options, cache, entry.columns))
    root, outside = _root_of_images(entry.path, entry.options), bool(entry.options.get("outside", False))
    readers = [IndexedRecords(Path(file), LAYOUTS[Path(file).suffix], cache, entry.columns, images=root, outside=outside) for file in files]
    return open_conversations(entry, readers[0] if len(readers) == 1 else Chain(readers))


KIND = SourceKind(
    "datasets",
    needs="path or name",
    name_is=" on the Hub",
    options=("config", "revision", "images", "outside"),
    paths=("images",),
    open=_open,
)
