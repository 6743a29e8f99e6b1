"""Rows of a published dataset: JSON files or parquet as its authors give them out, and the pictures that lie beside them.

Nothing here knows what the rows mean (academic.py and pixmo.py do). Rows of JSON stay in memory; parquet and the Hub go through `datasets`.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash

from plait.data import paths
from plait.data.sources.contract import Absent
from plait.data.sources.datasets import Table
from plait.errors import BadSample, PlaitError

Row = dict[str, Any]
PICTURES = "_pictures"  # of a row that holds its own: encoded files
PIXMO_IMAGES = "pixmo_images"
COCO = "coco"
Keep = tuple[str, Callable[[Any], bool] | None]
"""A column and what its values must be; None: there at all (pictures are not read for that)."""


class Rows(Protocol):
    """The rows of one split, any one of them at a time."""

    digest: str

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Row: ...
    def column(self, name: str) -> Sequence[Any] | None: ...  # one field of every row; None where rows have no such field


class Listed:
    """Rows in memory."""

    def __init__(self, rows: list[Row], files: Sequence[Path]) -> None:
        self.rows = rows
        facts = [[file.name, file.stat().st_size] for file in files]
        self.digest = xxhash.xxh3_64(json.dumps([facts, len(rows)]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Row:
        return self.rows[i]

    def column(self, name: str) -> list[Any]:
        """One field of every row; None where it is missing."""
        return [row.get(name) for row in self.rows]


class Parquet:
    """Rows of parquet files or of a Hub dataset; those that `keep` refuses by one column are left out."""

    def __init__(self, table: Table, keep: Keep | None = None) -> None:
        self.table, self.digest = table, table.digest
        self.chosen: Sequence[int] = range(len(table))
        if keep is not None:
            name, wanted = keep
            values = self._all(name)
            good = table.rows.data.column(name).is_valid().to_pylist() if wanted is None else map(wanted, values)
            self.chosen = [i for i, here in enumerate(good) if here]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, i: int) -> Row:
        record = self.table.read(self.chosen[i])
        return {**record.fields, **({PICTURES: record.images} if record.images else {})}

    def _all(self, name: str) -> Sequence[Any]:
        if name not in self.table.rows.column_names:
            raise PlaitError(f"{self.table.title} has no column {name!r}; it has {', '.join(self.table.rows.column_names)}")
        return self.table.rows[name]

    def column(self, name: str) -> list[Any] | None:
        """One column of the rows that were kept; None for one that is not there, or holds pictures."""
        if name not in self.table.rows.column_names or name in self.table.pictures:
            return None
        values = list(self._all(name))
        return [values[i] for i in self.chosen]


@dataclass(frozen=True)
class Place:
    """Where a dataset lies: its own folder, and the root with those that several share (coco, pixmo_images)."""

    folder: Path
    root: Path
    cache: str | None = None
    hub: bool = False

    def files(self, *patterns: str) -> list[Path]:
        """One file per pattern, from the dataset's folder. Absent when one is not there."""
        found = []
        for pattern in patterns:
            some = sorted(self.folder.glob(pattern))
            if not some:
                raise Absent(f"no {pattern} in {self.folder}")
            found.append(some[0])
        return found

    def picture(self, *choices: str) -> Path:
        """The first of `choices` that is a file, seen from the dataset's folder and then from the root. BadSample when none is."""
        for choice in choices:
            for start in (self.folder, self.root):
                if (start / choice).is_file():
                    return start / choice
        raise BadSample(f"no image {choices[0]} in {self.folder} or {self.root}")

    def of_url(self, url: str) -> Path:
        """The downloaded image of a PixMo address: a file whose name is the sha256 of the URL, with or without an ending."""
        name = hashlib.sha256(url.encode()).hexdigest()
        for folder in (self.folder / "images", self.root / PIXMO_IMAGES):
            if (folder / name).is_file():
                return folder / name
            if (found := next(folder.glob(f"{name}.*"), None)) is not None:
                return found
        raise BadSample(f"the image of {url} is not there: no file {name} in {self.root / PIXMO_IMAGES} or {self.folder / 'images'}")


Opener = Callable[[Place], Rows]
Random = np.random.Generator


@dataclass(frozen=True)
class Asked:
    """One conversation about the row's picture. `gold`: the fields that a bench compares an answer with."""

    question: str
    answer: str
    style: str
    gold: dict[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    more: tuple[tuple[str, str], ...] = ()  # (question, answer) of later turns

    @property
    def messages(self) -> list[dict[str, str]]:
        """Turns of user and assistant."""
        pairs = [(self.question, self.answer), *self.more]
        return [{"role": role, "content": text} for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]


Size = Callable[[], tuple[int, int]]
"""Width and height of the row's picture, in pixels."""

Ask = Callable[[Row, Random, Size], list[Asked]]


@dataclass(frozen=True)
class Spec:
    """A dataset: where its files are, how a row becomes conversations, which rule judges answers, and how to get it."""

    folder: str
    splits: Mapping[str, Opener]
    ask: Ask
    get: str
    rule: str | None = None
    picture: Callable[[Place, Row], Path] | None = None  # None: rows hold their own
    group: str | None = None  # rows with the same value share their picture in training
    held_out: bool = False  # published whole: one picture in a hundred, by the hash of `group`, is the split `validation`


def read_json(file: Path) -> Any:
    """The content of a JSON file."""
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise PlaitError(f"{file} is not JSON: {error}") from error


def in_json(pattern: str, *keys: str, wanted: Callable[[Row], bool] = lambda row: True, mark: Row | None = None) -> Opener:
    """The list of rows in a JSON file, under `keys`; of an object of rows, each with its key as `id`. Each gets the fields of `mark`."""

    def opened(place: Place) -> Rows:
        (file,) = place.files(pattern)
        found = read_json(file)
        for key in keys:
            if not isinstance(found, Mapping) or key not in found:
                raise PlaitError(f"{file} has no {key!r}: is it the published file?")
            found = found[key]
        rows = [{"id": key, **row} for key, row in found.items()] if isinstance(found, Mapping) else found
        if not isinstance(rows, list) or not rows or not isinstance(rows[0], Mapping):
            raise PlaitError(f"{file} holds no list of records: is it the published file?")
        for row in rows:
            row.update(mark or {})
        return Listed([row for row in rows if wanted(row)], [file])

    return opened


def joined(questions: str, annotations: str) -> Opener:
    """VQA's two files: questions, and annotations with the same `question_id`."""

    def opened(place: Place) -> Rows:
        asked, answered = place.files(questions, annotations)
        answers = {row["question_id"]: row for row in read_json(answered)["annotations"]}
        rows = read_json(asked)["questions"]
        lost = [row["question_id"] for row in rows if row["question_id"] not in answers]
        if lost:
            raise PlaitError(f"{answered} has no answer to question {lost[0]} of {asked.name} (and {len(lost) - 1} more)")
        return Listed([{**answers[row["question_id"]], **row} for row in rows], [asked, answered])

    return opened


def concatenated(*openers: Opener) -> Opener:
    """Rows of several files, one after the other."""

    def opened(place: Place) -> Rows:
        parts = [one(place) for one in openers]
        made = Listed([part[i] for part in parts for i in range(len(part))], [])
        made.digest = xxhash.xxh3_64("".join(part.digest for part in parts).encode()).hexdigest()
        return made

    return opened


def in_parquet(hub: str, split: str, config: str | None = None, keep: Keep | None = None) -> Opener:
    """Parquet files as the Hub repository holds them (`SPLIT-*.parquet` in the folder, its `data` or CONFIG); the Hub itself if asked."""

    def opened(place: Place) -> Rows:
        inside = [place.folder / part for part in (config or "data", "data", ".")]
        for folder in inside:
            if sorted(folder.glob(f"{split}-*.parquet")) or sorted(folder.glob(f"{split}.parquet")):
                return Parquet(Table(str(folder / f"{split}*.parquet"), None, split, {}, place.cache, {}), keep)
        if place.hub:
            return Parquet(Table(None, hub, split, {"config": config} if config else {}, place.cache, {}), keep)
        raise Absent(f"no {split}-*.parquet in {place.folder}")

    return opened


def either(*openers: Opener) -> Opener:
    """The first form that is there; Absent with the reasons of all when none is."""

    def opened(place: Place) -> Rows:
        reasons = []
        for one in openers:
            try:
                return one(place)
            except Absent as error:
                reasons.append(str(error))
        raise Absent("; ".join(reasons))

    return opened


def root_of(path: str | None, folder: str, root: Path) -> Path:
    """The dataset's folder: the entry's own path, or its place under the root."""
    return paths.local(path) if path else root / folder
