"""Rows of parquet, JSON, CSV or Arrow files, or of a Hub dataset, through the optional package `datasets`.

Images stay encoded (no decoding in `datasets`); a ClassLabel becomes its name, so that a template says "frog" and not "6".
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from plait.data import paths
from plait.data.records import Record
from plait.data.sources.lines import listed
from plait.data.text import rename
from plait.errors import BadSample, PlaitError

_LOADERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".arrow": "arrow"}


class Table:
    """The rows of one split, any one of them at a time."""

    def __init__(
        self, path: str | None, hub_name: str | None, split: str, options: Mapping[str, Any], cache: str | None, columns: Mapping[str, str]
    ) -> None:
        try:
            import datasets
        except ImportError as error:
            raise PlaitError("source datasets needs the package `datasets`: pip install 'plait[hub-data]'") from error
        self.title = Path(path).name if path else str(hub_name)
        try:
            rows = _load_files(datasets, path, split, cache) if path else _load_hub(datasets, str(hub_name), split, options, cache)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise PlaitError(f"datasets cannot load {path or hub_name} ({split}): {str(error).splitlines()[0]}") from error
        self.columns = dict(columns)
        self.labels = {name: f for name, f in rows.features.items() if isinstance(f, datasets.ClassLabel)}
        self.pictures = [name for name, feature in rows.features.items() if _is_image(datasets, feature)]
        for name in self.pictures:
            rows = rows.cast_column(name, _encoded(datasets, rows.features[name]))
        self.rows = rows
        facts = [self.title, split, len(rows), {name: str(feature) for name, feature in rows.features.items()}, rows.dataset_size]
        self.digest = xxhash.xxh3_64(json.dumps(facts).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def _name(self, i: int) -> str:
        return f"{self.title}[{i}]"

    def read(self, i: int) -> Record:
        """Row `i`. Errors: BadSample for a missing column or a value that is no image."""
        row = self.rows[i]
        for name, label in self.labels.items():
            if row[name] is not None and row[name] >= 0:
                row[name] = label.int2str(row[name])
        pictures = {name: row[name] for name in self.pictures}
        fields = rename(row, self.columns)
        named = [value for name in ("image", "images") for value in listed(fields.get(name))]
        wanted = named or [value for name in self.pictures for value in listed(pictures[name])]
        images, frames = ([_bytes(value, self._name(i)) for value in values] for values in (wanted, listed(fields.get("frames"))))
        plain = {name: value for name, value in fields.items() if name not in ("image", "images", "frames", *self.pictures)}
        return Record(str(plain.get("id", self._name(i))), plain, images, frames)


def _load_files(datasets: Any, path: str, split: str, cache: str | None) -> Any:
    folder = paths.local(path)
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        saved = datasets.load_from_disk(str(folder))
        if not isinstance(saved, dict):
            return saved
        if split not in saved:
            raise PlaitError(f"{path} has no split {split!r}; it has {', '.join(saved)}")
        return saved[split]
    files = _in_folder(folder, split) if folder.is_dir() else paths.files(path, "", split=None)
    kind = _LOADERS.get(Path(files[0]).suffix)
    if kind is None:
        raise PlaitError(f"cannot tell the format of {files[0]}; known endings: {', '.join(_LOADERS)}")
    return datasets.load_dataset(kind, data_files=files, split="train", cache_dir=cache)


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
    plain = datasets.Image(decode=False)
    return plain if isinstance(feature, datasets.Image) else datasets.List(plain)


def _bytes(value: Any, where: str) -> bytes:
    """Encoded bytes of an image cell: bytes, or what `datasets` gives for one ({"bytes", "path"})."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, Mapping) and value.get("bytes") is not None:
        return value["bytes"]
    if isinstance(value, Mapping) and isinstance(value.get("path"), str):
        try:
            return Path(value["path"]).read_bytes()
        except OSError as error:
            raise BadSample(f"{where}: cannot read the image {value['path']}: {error.strerror}") from error
    raise BadSample(f"{where}: no image in {str(value)[:60]!r}")
