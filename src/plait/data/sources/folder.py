"""The kind `folder`: images in a folder, with captions and fields in files of the same name (`dog.jpg`, `dog.txt`, `dog.json`).

Subfolders and links to folders are searched; the field `folder` holds the name of the folder that a sample is in. A folder with
`metadata.jsonl` or `metadata.csv`, whose column `file_name` names the pictures, is read by that file instead (indexed.py).
"""

import json
import os
import re
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from plait.config.schema import SourceEntry
from plait.data import paths, splits
from plait.data.formats.names import natural
from plait.data.paths import read_regular
from plait.data.records import IMAGE_KINDS, TEXT_FIELDS, Record, from_members
from plait.data.sources.contract import Reader, Source
from plait.data.sources.conversations import open_conversations
from plait.data.sources.indexed import CSV, JSON, IndexedRecords
from plait.data.sources.jsonl import local_path_of
from plait.data.sources.kind import Opening, SourceKind
from plait.data.text import rename
from plait.errors import BadSample, PlaitError, first_names

BESIDE = frozenset(TEXT_FIELDS) | {"json"}
"""Endings of files that belong to the picture of their name."""
_FRAME = re.compile(r"(.+)\.(frame[^.]*)", re.DOTALL)  # a name may hold line breaks
_METADATA = ("metadata.jsonl", "metadata.csv")
_UNREAD_METADATA = "metadata.parquet"
METADATA = (*_METADATA, _UNREAD_METADATA)
"""Names of files that describe the pictures beside and below them; that of parquet is refused."""

Members = list[tuple[str, str, int]]
"""The files of a sample: (kind as in records.py, such as png or prompt.txt; path below the folder; bytes)."""


@dataclass(frozen=True)
class Chosen:
    """What is read of a folder that holds more than one dataset: `pictures`, paths below it. The others are passed over, uncounted.

    `metadata`: whether its metadata file is read. `labels`: whether the field `label` holds the name of a picture's folder.
    """

    pictures: frozenset[str]
    metadata: bool
    labels: bool


class Folder:
    """All pictures under one folder, in the order of their names, each with the files that share its name.

    A picture's stem ends at the last dot. `a.b.txt` belongs to the picture `a.b`, where there is one, else to `a`, as its field `b`;
    `a.png.txt` to `a.png` alone. Pictures that share a stem are separate samples, named with their ending. `a.frame3.png` is a frame of
    `a`. `columns`: new field name -> old. `chosen`: only these pictures. Raises PlaitError if there is no picture.
    """

    def __init__(self, root: Path, columns: Mapping[str, str], chosen: Chosen | None = None) -> None:
        self.root, self.columns, self.labels = root, dict(columns), chosen is not None and chosen.labels
        walk = _walk(root)
        unread = walk.unread
        files = {path: size for path, size in walk.files.items() if _is_chosen(path, chosen)}
        self.metadata = [path for path in files if path.rpartition("/")[2] in _METADATA]
        by_stem: dict[str, list[str]] = {}
        for path in files:
            stem, _, ending = path.rpartition(".")
            if stem and not stem.endswith("/") and ending.lower() in IMAGE_KINDS and not _frame_of(path):
                by_stem.setdefault(stem, []).append(path)
        owners = {path: stem if len(paths) == 1 else path for stem, paths in by_stem.items() for path in paths}
        members: dict[str, Members] = {}
        for path, size in files.items():
            for picture, kind in _belongs(path, by_stem):
                members.setdefault(owners[picture], []).append((kind, path, size))
            if not _belongs(path, by_stem):
                unread[_why_unread(path) + " of the split" * (chosen is not None and _ending(path) in BESIDE)] += 1
        if walk.hidden and chosen is None:
            unread["hidden pictures (a name begins with a dot)"] = len(walk.hidden)
        self.samples = list(members.items())
        self.left_out: Mapping[str, int] = dict(unread)
        if not self.samples:
            beside = "; ".join(f"{count} of {reason}" for reason, count in unread.items())
            raise PlaitError(f"there is no image under {root} (looked for .{' .'.join(sorted(IMAGE_KINDS))}){'; ' * bool(beside)}{beside}")
        content = [(name, [(kind, size) for kind, _, size in of_sample]) for name, of_sample in self.samples]
        self.digest = xxhash.xxh3_64(json.dumps(content).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.samples)

    def metadata_below(self) -> list[str]:
        """Return the paths of the metadata files in subfolders whose pictures have no captions or fields of their own.

        Such a file is not read, so its pictures would have no text: the subfolder is to be a source of its own.
        """
        described = [any(kind.lower() not in IMAGE_KINDS for kind, _, _ in members) for _, members in self.samples]
        below = []
        for path in self.metadata:
            inside = [own for own, (name, _) in zip(described, self.samples, strict=True) if name.startswith(f"{Path(path).parent}/")]
            below += [path] if inside and not any(inside) else []
        return below

    def read(self, index: int) -> Record:
        """Return sample `index` as a record. Raises BadSample if one of its files is missing or cannot be parsed."""
        name, members = self.samples[index]
        try:
            return self._read(name, members)
        except BadSample as error:
            error.sample = name
            raise

    def _read(self, name: str, members: Members) -> Record:
        read: dict[str, tuple[str, bytes]] = {}  # what records.py calls a file -> its kind and content
        for kind, path, _ in sorted(members, key=lambda member: _reading_order(member[0])):
            body, (other, before) = read_regular(self.root / path), read.get(_field_kind(kind), ("", None))
            shared = name.rpartition(".")[2].lower() in IMAGE_KINDS  # several pictures have this stem: a.txt is of those without their own
            if before is not None and before.strip() != body.strip() and not shared:
                raise BadSample(f"{name} has two different files of one kind, .{other} and .{kind}: keep one")
            read[_field_kind(kind)] = (kind, body)
        record = from_members(name, [(field, body) for field, (_, body) in read.items()])
        of_folder = {"folder": Path(name).parent.name} | ({"label": (self.root / name).parent.name} if self.labels else {})
        return record._replace(fields=rename(of_folder | record.fields, self.columns))


class Listed:
    """The records `rows` of a metadata file in folder `root`, each with its picture. A row that names no picture is a bad sample.

    `chosen`: leave out the rows of pictures that are there and not among these. `left_out` counts those rows, the pictures below the
    folder, hidden ones too, that no row lists, and other files, which are not read. Raises PlaitError if no row is left.
    """

    def __init__(self, rows: IndexedRecords, root: Path, chosen: Chosen | None = None) -> None:
        self.rows, self.digest = rows, rows.digest
        walk, listed = _walk(root), {os.path.normpath(root / name) for name in rows.image_paths()}
        beside = Counter(walk.unread)
        others = {os.path.normpath(root / path) for path in walk.files if not _is_chosen(path, chosen)}
        self.kept: Sequence[int] = [i for i in range(len(rows)) if others.isdisjoint(self._pictures(i))] if others else range(len(rows))
        if len(self.kept) < len(rows):
            beside[f"rows of {rows.path.name} with pictures of another split"] = len(rows) - len(self.kept)
            self.digest = xxhash.xxh3_64(json.dumps([rows.digest, *self.kept]).encode()).hexdigest()
        if not self.kept:
            raise PlaitError(f"no row of {rows.path} has a picture of the split")
        for path in [*walk.files, *walk.hidden]:
            if _is_chosen(path, chosen) and os.path.normpath(root / path) not in listed and path != rows.path.name:
                picture = _ending(path) in IMAGE_KINDS
                beside[f"pictures that {rows.path.name} does not list" if picture else f".{_ending(path)}: not read"] += 1
        self.left_out: Mapping[str, int] = dict(beside)

    def _pictures(self, row: int) -> list[str]:
        """Return the paths of the pictures that a row names; [] for a broken one."""
        try:
            return [os.path.normpath(self.rows.path.parent / name) for name in self.rows.paths_of(row)]
        except BadSample:
            return []

    def __len__(self) -> int:
        return len(self.kept)

    def read(self, index: int) -> Record:
        """Return row `index` as a record. Raises BadSample if it names no picture (`file_name` is null or blank), or cannot be read."""
        record = self.rows.read(self.kept[index])
        if not record.images:
            raise BadSample(f"{record.id} names no picture: its file_name is null or blank")
        return record


def _is_chosen(path: str, chosen: Chosen | None) -> bool:
    """Return whether a file is no picture, or one of those to be read."""
    return chosen is None or path in chosen.pictures or _ending(path) not in IMAGE_KINDS


def _frame_of(path: str) -> str | None:
    """Return the stem that a picture is a frame of, as `a` for `a.frame3.png`; None for any other file."""
    match = _FRAME.fullmatch(path.rpartition(".")[0])
    return match[1] if match else None


def _belongs(path: str, by_stem: Mapping[str, list[str]]) -> list[tuple[str, str]]:
    """Return (picture, kind of member) for every picture that a file belongs to; none for one that is left alone."""
    stem, _, ending = path.rpartition(".")
    if ending.lower() in IMAGE_KINDS:
        owner = _frame_of(path)
        if owner is None:
            return [(path, ending)] if path in by_stem.get(stem, ()) else []
        return [(picture, path[len(owner) + 1 :]) for picture in by_stem.get(owner, ())]
    if ending.lower() not in BESIDE:
        return []
    of_picture, _, picture_ending = stem.rpartition(".")
    if stem in by_stem.get(of_picture, ()):
        return [(stem, f"{picture_ending}.{ending}")]
    owner = stem
    while owner not in by_stem and "." in owner.rpartition("/")[2]:
        owner = owner.rpartition(".")[0]
    return [(picture, path[len(owner) + 1 :]) for picture in by_stem.get(owner, ())]


def _reading_order(kind: str) -> tuple[bool, tuple[list[tuple[int, str]], str]]:
    """Return a key for sorting: what belongs to one picture alone (a.png.txt) comes last, and frame2 before frame10."""
    return kind.partition(".")[0].lower() in IMAGE_KINDS, natural(kind)


def _field_kind(kind: str) -> str:
    """Return the kind as records.py reads it: the picture's own ending in `png.txt` names no field."""
    first, _, rest = kind.partition(".")
    return rest if rest and first.lower() in IMAGE_KINDS else kind


def _why_unread(path: str) -> str:
    """Return why a file belongs to no sample, for the table of what was left out."""
    ending = path.rpartition(".")[2].lower() if "." in path.rpartition("/")[2] else ""
    if ending in BESIDE:
        return f".{ending} without a picture"
    return f".{ending}: not read" if ending else "files without an ending"


@dataclass(frozen=True)
class _Walk:
    """What lies below a folder: bytes by path, sorted, and what is not data.

    Paths of hidden pictures (a name of the path begins with a dot) are not, and entries that cannot be files of data, which are counted.
    """

    files: dict[str, int]
    hidden: list[str]
    unread: Counter[str]


def _walk(root: Path) -> _Walk:
    """Look through a folder. Links to folders are followed, each folder once, but for those in hidden folders."""
    files: dict[str, int] = {}
    unread: Counter[str] = Counter()
    hidden, hidden_folders = [], []
    seen = {os.path.realpath(root)}
    for folder, subfolders, names in os.walk(root, followlinks=True):
        hidden_folders += [Path(folder, name) for name in subfolders if name.startswith(".")]
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and _first_visit(Path(folder, name), seen)]
        hidden += [Path(folder, name) for name in names if name.startswith(".") and _ending(name) in IMAGE_KINDS]
        for name in (name for name in names if not name.startswith(".")):
            path = Path(folder, name)
            try:
                status = path.stat()
            except OSError:
                unread["links to nothing"] += 1
                continue
            if stat.S_ISREG(status.st_mode):
                files[path.relative_to(root).as_posix()] = status.st_size
            else:
                unread["no regular files"] += 1
    for start in hidden_folders:
        for folder, _, names in os.walk(start):
            if os.path.realpath(folder) not in seen:  # else a link that is not hidden leads there
                hidden += [Path(folder, name) for name in names if _ending(name) in IMAGE_KINDS]
    return _Walk(dict(sorted(files.items())), [path.relative_to(root).as_posix() for path in hidden], unread)


def _ending(name: str) -> str:
    """Return a file's ending in lower case; "" for a name without one, such as ".png"."""
    return Path(name).suffix[1:].lower()


def _first_visit(folder: Path, seen: set[str]) -> bool:
    """Return whether a folder is visited for the first time, by any link, and add its real path to `seen`."""
    real = os.path.realpath(folder)
    new = real not in seen
    seen.add(real)
    return new


def reader_of(root: Path, entry: SourceEntry, cache: str | Path | None, chosen: Chosen | None = None) -> Reader:
    """Return a reader of the pictures below `root`, as an entry of `data:` asks for them. `chosen`: of these alone.

    Where `root` has a metadata file, its rows are the records. `cache`: folder for the index of that file; None: the user's.
    Raises PlaitError for a folder without pictures, and for metadata that cannot be read.
    """
    described = chosen is None or chosen.metadata
    tables = [root / name for name in _METADATA if described and (root / name).is_file()]
    if len(tables) > 1:
        raise PlaitError(f"{root} has both {' and '.join(_METADATA)}; remove the one that does not describe it")
    if described and not tables and (root / _UNREAD_METADATA).is_file():
        raise PlaitError(f"{root / _UNREAD_METADATA} is not read: write its rows as metadata.jsonl, or give its path with source: datasets")
    if not tables:
        pictures = Folder(root, entry.columns, chosen)
        if described and not entry.allow_blank and (below := pictures.metadata_below()):
            shown = ", ".join(below[:3]) + (", ..." if len(below) > 3 else "")
            one = root / Path(below[0]).parent
            raise PlaitError(f"{root} has metadata in its subfolders ({shown}): give the folder of one as a source, such as path: {one}")
        return pictures
    layout = CSV if tables[0].suffix == ".csv" else JSON
    columns, outside = {"image": "file_name"} | dict(entry.columns), bool(entry.options.get("outside", False))
    rows = IndexedRecords(tables[0], layout, cache, columns, images=root, outside=outside, path_columns=(), movable=False)
    return Listed(rows, root, chosen)


def _lone_split(beside: Sequence[Path], split: str) -> str | None:
    """Return the name of the one thing in a folder, `beside`, if it is the folder of `split` with metadata: `train/metadata.csv` alone."""
    described = len(beside) == 1 and any((beside[0] / name).is_file() for name in _METADATA)
    return beside[0].name if described and splits.of_folders([beside[0].name]).get(beside[0].name) == split else None


def _open(entry: SourceEntry, opening: Opening) -> Source:
    folder = paths.local(local_path_of(entry))
    if not folder.is_dir():
        raise PlaitError(f"{folder} is not a folder")
    beside = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    subfolders = [path.name for path in beside if path.is_dir()]
    split = entry.split or splits.folder_of(subfolders, opening.split, str(folder))
    if split and not entry.split and (metadata := [path.name for path in beside if path.name in _METADATA]):
        of_splits = " and ".join(f"{name}/" for name in sorted(splits.of_folders(subfolders), reverse=True))
        raise PlaitError(f"{folder / metadata[0]} lies beside {of_splits}: write the rows of each into its own folder")
    split = split or _lone_split(beside, opening.split)
    if split is None:
        return open_conversations(entry, reader_of(folder, entry, opening.cache))
    if not (folder / split).is_dir():
        raise PlaitError(f"{folder / split} is not a folder; {folder} has {first_names(subfolders)}")
    reader = reader_of(folder / split, entry, opening.cache)
    others = [path.name for path in beside if path.name != split and (path.is_dir() or _ending(path.name) in IMAGE_KINDS)]
    if others and not entry.split:
        reader.left_out = {**reader.left_out, f"folders and pictures beside {split}/, such as {others[0]}": len(others)}
    return open_conversations(entry, reader)


KIND = SourceKind("folder", options=("outside",), open=_open)
