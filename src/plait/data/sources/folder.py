"""The kind `folder`: images in a folder, with captions and fields in files of the same stem (`dog.jpg`, `dog.txt`, `dog.json`).

Subfolders are searched; the field `folder` holds the name of a sample's own. A folder with `metadata.jsonl` is read by that file instead
(jsonl.py).
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import xxhash

from plait.config.schema import Source as Entry
from plait.data import paths
from plait.data.records import IMAGE_KINDS, Record, from_members
from plait.data.sources.contract import Reader, Source
from plait.data.sources.conversations import open_conversations
from plait.data.sources.jsonl import JsonRecords, local_path_of
from plait.data.sources.kind import Opening, SourceKind
from plait.data.text import rename
from plait.errors import BadSample, PlaitError

_READ = IMAGE_KINDS | {"txt", "json", "cls"}


class Folder:
    """All images under one folder, sorted by name. `columns`: new field name -> the file's. Raises PlaitError if there is none."""

    def __init__(self, root: Path, columns: Mapping[str, str]) -> None:
        self.root, self.columns = root, dict(columns)
        groups: dict[str, list[tuple[str, int]]] = {}
        for name, size in _walk(root):
            folder, _, file = name.rpartition("/")
            stem, _, extension = file.partition(".")
            if stem and extension.rpartition(".")[2].lower() in _READ:
                groups.setdefault(f"{folder}/{stem}" if folder else stem, []).append((extension, size))
        self.samples = [(stem, members) for stem, members in groups.items() if any(_is_image(extension) for extension, _ in members)]
        if not self.samples:
            raise PlaitError(f"there is no image under {root} (looked for .{' .'.join(sorted(IMAGE_KINDS))})")
        self.digest = xxhash.xxh3_64(json.dumps(self.samples).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> Record:
        """Return sample `index`: the images and fields of one stem. Raises BadSample for a file that has gone or cannot be understood."""
        stem, members = self.samples[index]
        try:
            bodies = [(extension, (self.root / f"{stem}.{extension}").read_bytes()) for extension, _ in members]
        except OSError as error:
            raise BadSample(f"cannot read {error.filename}: {error.strerror}") from error
        record = from_members(stem, bodies)
        return record._replace(fields=rename({"folder": Path(stem).parent.name} | record.fields, self.columns))


def _is_image(extension: str) -> bool:
    return extension.rpartition(".")[2].lower() in IMAGE_KINDS


def _walk(root: Path) -> list[tuple[str, int]]:
    """Return (path below root, bytes) of every file, sorted, without those whose name, or whose folder's, begins with a dot."""
    files: list[tuple[str, int]] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        files += [(Path(folder, name).relative_to(root).as_posix(), Path(folder, name).stat().st_size) for name in names]
    return sorted(files)


def _open(entry: Entry, opening: Opening) -> Source:
    root = paths.local(local_path_of(entry))
    root = root / entry.split if entry.split else root
    if not root.is_dir():
        raise PlaitError(f"{root} is not a folder")
    table = root / "metadata.jsonl"
    reader: Reader
    if table.is_file():
        reader = JsonRecords(table, root, opening.cache, {"image": "file_name"} | dict(entry.columns))
    else:
        reader = Folder(root, entry.columns)
    return open_conversations(entry, reader)


KIND = SourceKind("folder", open=_open)
