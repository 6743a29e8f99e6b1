"""A folder of images: files of one stem are one sample, captions and fields lie beside the picture (`dog.jpg`, `dog.txt`, `dog.json`).

Subfolders are walked; the field `folder` holds the name of a sample's own. A folder with `metadata.jsonl` is read by it instead (lines.py).
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import xxhash

from plait.data.records import IMAGE_KINDS, Record, from_members
from plait.data.text import rename
from plait.errors import BadSample, PlaitError

_BESIDE = IMAGE_KINDS | {"txt", "json", "cls"}


class Folder:
    """All images under one folder, in the order of their names."""

    def __init__(self, root: Path, columns: Mapping[str, str]) -> None:
        self.root, self.columns = root, dict(columns)
        groups: dict[str, list[tuple[str, int]]] = {}
        for name, size in _walk(root):
            folder, _, file = name.rpartition("/")
            stem, _, kind = file.partition(".")
            if stem and kind.rpartition(".")[2].lower() in _BESIDE:
                groups.setdefault(f"{folder}/{stem}" if folder else stem, []).append((kind, size))
        self.samples = [(stem, kinds) for stem, kinds in groups.items() if any(_is_image(kind) for kind, _ in kinds)]
        if not self.samples:
            raise PlaitError(f"there is no image under {root} (looked for .{' .'.join(sorted(IMAGE_KINDS))})")
        self.digest = xxhash.xxh3_64(json.dumps(self.samples).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, i: int) -> Record:
        """Sample `i`. Errors: BadSample for a file that has gone or cannot be understood."""
        stem, kinds = self.samples[i]
        try:
            members = [(kind, (self.root / f"{stem}.{kind}").read_bytes()) for kind, _ in kinds]
        except OSError as error:
            raise BadSample(f"cannot read {error.filename}: {error.strerror}") from error
        record = from_members(stem, members)
        return record._replace(fields=rename({"folder": Path(stem).parent.name} | record.fields, self.columns))


def _is_image(kind: str) -> bool:
    return kind.rpartition(".")[2].lower() in IMAGE_KINDS


def _walk(root: Path) -> list[tuple[str, int]]:
    """(path below root, bytes) of every file, sorted; names that begin with a dot are passed over."""
    found = []
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".")]
        found += [(Path(folder, name).relative_to(root).as_posix(), os.stat(Path(folder, name)).st_size) for name in files]
    return sorted(found)
