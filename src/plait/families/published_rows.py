"""Rows (records as dicts) of a published dataset: JSON or parquet files in their authors' layout, and the image files beside them.

Shared by the catalogues of families, which describe each dataset by a Spec. Rows of JSON stay in memory; parquet and the Hub are read by
the library `datasets`. An opener is a function from a DatasetFiles to the rows of one split, called when the dataset is opened; functions
in published_openers.py return one. A converter is a function from (row, random generator, function that returns the image's size) to
conversations.
"""

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import xxhash

from plait.data import paths
from plait.data.sources.contract import Absent
from plait.data.sources.datasets import Table
from plait.errors import BadSample, PlaitError

Row = dict[str, Any]
"""A record of a dataset, {field: value}."""
PICTURES = "_pictures"
"""Field of a row that holds its own image files."""
PIXMO_IMAGES = "pixmo_images"
"""Folder below the data root with the downloaded images of PixMo."""
COCO = "coco"
"""Folder with the images of COCO."""
Keep = tuple[str, Callable[[Any], bool] | None]
"""A column and a condition on its values by which rows are kept; None: the value must not be null (images are not read for that)."""


class Rows(Protocol):
    """The rows of one split, read one at a time. `digest`: a hash of the content, to notice changes when a run is resumed."""

    digest: str

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Row: ...
    def column(self, name: str) -> Sequence[Any] | None:
        """Return field `name` of every row, in order, to group rows by it; None if rows have no such field."""


class RowList:
    """Rows that are held in memory, such as those of JSON files; `digest`: a text that changes with them or their files."""

    def __init__(self, rows: list[Row], digest: str) -> None:
        self.rows, self.digest = rows, digest

    @classmethod
    def of_files(cls, rows: list[Row], files: Sequence[Path]) -> "RowList":
        """Wrap rows that were read from `files`. The digest is a hash of the files' names and sizes, and the number of rows."""
        sizes = [[file.name, file.stat().st_size] for file in files]
        return cls(rows, xxhash.xxh3_64(json.dumps([sizes, len(rows)]).encode()).hexdigest())

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Row:
        return self.rows[i]

    def column(self, name: str) -> list[Any]:
        """Return one field of every row, in order; None for a row without it."""
        return [row.get(name) for row in self.rows]


class ParquetRows:
    """Rows of `table` (parquet files or a Hub dataset): all, or those that `keep` chooses.

    `keep`: (column, condition that its value fulfils). The condition None: the value is not null. Raises PlaitError for an unknown column.
    """

    def __init__(self, table: Table, keep: Keep | None = None) -> None:
        self.table, self.digest = table, table.digest
        self.chosen: Sequence[int] = range(len(table))
        if keep is not None:
            name, condition = keep
            values = self._all(name)
            kept = table.rows.data.column(name).is_valid().to_pylist() if condition is None else map(condition, values)
            self.chosen = [i for i, keep_row in enumerate(kept) if keep_row]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, i: int) -> Row:
        record = self.table.read(self.chosen[i])
        return {**record.fields, **({PICTURES: record.images} if record.images else {})}

    def _all(self, name: str) -> Sequence[Any]:
        if name not in self.table.rows.column_names:
            raise PlaitError(f"{self.table.title} has no column {name!r}; it has {', '.join(self.table.rows.column_names)}")
        values: Sequence[Any] = self.table.rows[name]
        return values

    def filled(self, name: str) -> int:
        """Return how many rows of the table have a value in a column; images are not read for that."""
        return sum(self.table.rows.data.column(name).is_valid().to_pylist())

    def column(self, name: str) -> list[Any] | None:
        """Return one column of the chosen rows; None if it does not exist, or holds images."""
        if name not in self.table.rows.column_names or name in self.table.records.pictures:
            return None
        values = list(self._all(name))
        return [values[i] for i in self.chosen]


class ChangedRows:
    """Rows of which each is changed by a function as it is read."""

    def __init__(self, rows: Rows, change: Callable[[Row], Row]) -> None:
        self.rows, self.change, self.digest = rows, change, rows.digest

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Row:
        return self.change(self.rows[i])

    def column(self, name: str) -> Sequence[Any] | None:
        """Return one field of every row as it was before it is changed; None if rows have no such field."""
        return self.rows.column(name)


class ChainedRows:
    """The rows of several tables, one table's after the other's, each read when it is asked for."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.parts = parts
        self.digest = xxhash.xxh3_64("".join(part.digest for part in parts).encode()).hexdigest()
        self.ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, i: int) -> Row:
        number = bisect_right(self.ends, i)
        return self.parts[number][i - (self.ends[number - 1] if number else 0)]

    def column(self, name: str) -> list[Any] | None:
        """Return one field of every row, in order; None if a table has no such field."""
        columns = [part.column(name) for part in self.parts]
        return None if any(column is None for column in columns) else [value for column in columns for value in column or ()]


@dataclass(frozen=True)
class DatasetFiles:
    """Where a dataset's files are: in its `folder`, and in `root`, the folder of all datasets, which may share images.

    `cache`: folder of index files, None for the user's; `hub`: whether missing files are read from the Hub.
    """

    folder: Path
    root: Path
    cache: str | None = None
    hub: bool = False

    def find(self, *patterns: str) -> list[Path]:
        """Return a file for each glob pattern: its first match in the dataset's folder. Raises Absent if a pattern has no match."""
        files = []
        for pattern in patterns:
            matches = sorted(self.folder.glob(pattern))
            if not matches:
                raise Absent(f"no {pattern} in {self.folder}")
            files.append(matches[0])
        return files

    def image(self, *choices: str) -> Path:
        """Return the first of the relative paths `choices` that is a file in the folder or the root. Raises BadSample if none is."""
        for choice in choices:
            for start in (self.folder, self.root):
                path = paths.inside(start, choice, anywhere=False, links=True)
                if path.is_file():
                    return path
        raise BadSample(f"no image {choices[0]} in {self.folder} or {self.root}")

    @property
    def _downloads(self) -> tuple[Path, Path]:
        return self.folder / "images", self.root / PIXMO_IMAGES

    def image_of_url(self, url: str) -> Path:
        """Return the path of the downloaded image of a PixMo URL. The file is named by the URL's sha256, with or without an ending.

        Raises BadSample if there is none.
        """
        name = url_hash(url)
        for folder in self._downloads:
            if (folder / name).is_file():
                return folder / name
            if (with_ending := next(folder.glob(f"{name}.*"), None)) is not None:
                return with_ending
        own, shared = self._downloads
        raise BadSample(f"the image of {url} is not there: no file {name} in {shared} or {own}")

    def downloaded(self) -> frozenset[str]:
        """Return the hashes (`url_hash`) of the URLs whose images have been downloaded, by the names of the files alone."""
        return frozenset(entry.name.partition(".")[0] for folder in self._downloads if folder.is_dir() for entry in os.scandir(folder))


def url_hash(url: str) -> str:
    """Return the sha256 of a URL in hexadecimal digits, by which a downloaded image is named."""
    return hashlib.sha256(url.encode()).hexdigest()


Opener = Callable[[DatasetFiles], Rows]
"""Reads the rows of one split of a dataset, given where its files are."""
Random = np.random.Generator


@dataclass(frozen=True)
class Conversation:
    """A conversation about a row's image: a question with its answer, and in `more` the (question, answer) pairs of later turns.

    `style`: the task's name. `gold`: {field of the sample: value} for the rule that scores answers. `weight`: factor on its loss weights.
    `answer`: None where it is not published. `bare`: the question without a drawn wording, a label or ""; None: there is none.
    """

    question: str
    answer: str | None
    style: str
    gold: dict[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    more: tuple[tuple[str, str], ...] = ()
    bare: str | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        """Return all turns as [{"role": "user", "content": ...}, {"role": "assistant", ...}, ...]; the first may have `bare` too."""
        pairs = [(self.question, self.answer), *self.more]
        turns = [(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]
        told = [{"role": role, "content": text} for role, text in turns if text is not None]
        return told if self.bare is None else [{**told[0], "bare": self.bare}, *told[1:]]


Size = Callable[[], tuple[int, int]]
"""A function that returns (width, height) of the row's image, in pixels."""

Converter = Callable[[Row, Random, Size], list[Conversation]]
"""Makes the conversations of a row; the generator draws wordings and the order of options."""


@dataclass(frozen=True)
class Spec:
    """The description of a dataset: `folder` below the data root, `splits`, {split: opener of its rows}, and `convert`, their converter.

    An opener maps DatasetFiles to Rows; the converter (row, random, image size) to conversations. `get`: text on where to get the files.
    `rule`: the bench that scores answers, None without one.
    """

    folder: str
    splits: Mapping[str, Opener]
    convert: Converter
    get: str
    rule: str | None = None
    picture: Callable[[DatasetFiles, Row], Path | None] | None = None
    """Path of a row's image file, or None for a row that holds it; no function: rows hold their own image files."""
    group: str | None = None
    """The column whose value is the same in rows with the same picture; None: no two rows share one."""
    held_out: bool = False
    """Whether it is published whole: one picture in a hundred, by the hash of `group`, is the split `validation`."""
    by_url: bool = False
    """Whether pictures are downloaded apart, from the URLs in the column `group`; rows whose picture is not there are left out."""
    packing: Literal["all", "half", "one"] = "all"
    """Which rows with the same picture are one training sample: all, each half of them (where there are two or more), or one."""

    def rows(self, split: str, files: DatasetFiles) -> Rows:
        """Open the rows of `split`. Raises Absent if its files are missing, and PlaitError if they are not as they were published."""
        try:
            return self.splits[split](files)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            what = f"{type(error).__name__}: {error}"
            raise PlaitError(f"the files of {split} in {files.folder} are not as they were published ({what}): get them again") from error


def root_of(path: str | None, folder: str, root: Path) -> Path:
    """Return a dataset's folder: `path`, as set for it in the configuration, or if that is None `folder` under `root`."""
    return paths.local(path) if path else root / folder
