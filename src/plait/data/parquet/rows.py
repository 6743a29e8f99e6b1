"""Make records of the rows of a table: pictures as encoded bytes, names in place of class numbers, short decimals.

The same for a table that the package `datasets` reads and for one that is read row group by row group.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from plait.data import paths
from plait.data.link_lists.refusal import RemotePicture
from plait.data.records import PATH_FIELDS, Record, is_absent, picture_cells
from plait.data.text import kind_of, rename
from plait.errors import BadSample

SHORT: Mapping[str, type[np.floating[Any]]] = {"float32": np.float32, "float16": np.float16}
"""Types of numbers whose decimals are shorter than those of the 64-bit number that Python makes of them."""
_WHOLE = 2.0**53  # to this, Python writes a whole number with all its digits


@dataclass(frozen=True)
class RowRecords:
    """Makes records of rows, {column: value}. `title`: of the table, for names of rows.

    `columns`: new field name -> column name. `pictures`: columns of images, or of lists of them. `labels`: {column: names of its classes,
    by number}. `short`: {column: where it holds numbers of 16 or 32 bits}: a name of SHORT, [of each item], or {name: of that value}.
    `root`: the folder that paths of images are relative to; None: there is none; `outside`: whether they may leave it.
    """

    title: str
    columns: Mapping[str, str] = field(default_factory=dict)
    pictures: Sequence[str] = ()
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    short: Mapping[str, Any] = field(default_factory=dict)
    root: Path | None = None
    outside: bool = False

    def name(self, i: int) -> str:
        """Return the name of row `i`, such as "train.parquet[7]"."""
        return f"{self.title}[{i}]"

    def record(self, row: dict[str, Any], i: int) -> Record:
        """Return row `i` as a record (fields and encoded images). Raises BadSample if a column is missing or an image cannot be read."""
        try:
            return self._record(row, i)
        except BadSample as error:
            error.sample = self.name(i)
            raise

    def _record(self, row: dict[str, Any], i: int) -> Record:
        for name, names in self.labels.items():
            row[name] = _class(row[name], names, name)
        for name, places in self.short.items():
            row[name] = _in_short(row[name], places)
        pictures = {name: row[name] for name in self.pictures}
        fields = rename(row, self.columns)
        named = [cell for name in ("image", "images") for cell in picture_cells(fields.get(name))]
        cells = named or [cell for name in self.pictures for cell in picture_cells(pictures[name])]
        cells = cells or next(([path] for path in map(fields.get, PATH_FIELDS) if isinstance(path, str) and not is_absent(path)), [])
        images, frames = (
            [self._bytes(value, self.name(i), fields) for value in values] for values in (cells, picture_cells(fields.get("frames")))
        )
        read = ("image", "images", "frames", *self.pictures)
        plain = {name: None if name in read else value for name, value in fields.items() if name not in read or is_absent(value)}
        own = plain.get("id")
        return Record(self.name(i) if own is None else str(own), plain, images, frames)

    def _bytes(self, value: object, where: str, fields: Mapping[str, Any]) -> bytes:
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
        if name.startswith(("http://", "https://")):
            raise RemotePicture.at(name, fields)
        if self.root is None:
            raise BadSample(f"{where}: its image is a path, {name!r}, and this dataset has no folder: set options {{images: FOLDER}}")
        return paths.read_image(self.root, name, anywhere=self.outside)


def holds_short(places: Any) -> bool:
    """Return whether a column's places, as in `RowRecords.short`, have any numbers of 16 or 32 bits."""
    if isinstance(places, Mapping):
        return any(map(holds_short, places.values()))
    return holds_short(places[0]) if isinstance(places, list) else places in SHORT


def _class(value: Any, names: Sequence[str], column: str) -> Any:
    """Return the name of a class by its number; None for -1, which stands for a missing label. Raises BadSample for another number."""
    if value is None or not isinstance(value, int):
        return value
    if value >= len(names):
        raise BadSample(f"`{column}` is class {value} of {len(names)}, which are counted from 0")
    return names[value] if value >= 0 else None


def _in_short(value: Any, places: Any) -> Any:
    """Return a cell whose numbers of 16 or 32 bits are the shortest decimals that they stand for: 0.1 for 0.10000000149011612.

    Whole numbers stay as they are.
    """
    if value is None or not holds_short(places):
        return value
    if isinstance(places, Mapping):
        return {name: _in_short(value[name], inner) for name, inner in places.items()}
    if isinstance(places, list):
        return [_in_short(item, places[0]) for item in value]
    return value if value.is_integer() and abs(value) < _WHOLE else float(str(SHORT[places](value)))
