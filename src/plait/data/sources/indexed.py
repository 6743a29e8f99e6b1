"""Read records of a text file (JSON, CSV) by number. Only their offsets are kept (formats/index.py), so it may be larger than memory.

A broken record does not affect the others. Records name images by paths, which must stay below one folder unless `outside` is set.
"""

import base64
import binascii
import json
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from plait.data import paths
from plait.data.formats import clips, csv_spans, index, json_spans
from plait.data.formats.open_file import OpenFile
from plait.data.formats.spans import Facts, RecordLayout
from plait.data.link_lists.refusal import RemotePicture
from plait.data.paths import read_regular
from plait.data.records import IMAGE_KINDS, PATH_FIELDS, Record, is_absent, parse_json, picture_cells
from plait.data.sources.contract import Reader
from plait.data.text import image_parts, kind_of, rename
from plait.errors import BadSample


def _json_fields(body: bytes, where: str, facts: Facts) -> dict[str, Any]:
    """Return the fields of one record. Raises BadSample, with its name `where`, for what is no JSON, or no object."""
    record = parse_json(body, where)
    if not isinstance(record, dict):
        raise BadSample(f"{where} holds {kind_of(record)}, not an object of fields")
    return record


JSON = RecordLayout("json", json_spans.scan, _json_fields)
CSV = RecordLayout("csv", csv_spans.scan, csv_spans.fields)
LAYOUTS = {".json": JSON, ".jsonl": JSON, ".ndjson": JSON, ".csv": CSV, ".tsv": CSV}
"""The layout of a file of records by the ending of its name, in small letters."""


def index_records(
    path: Path, layout: RecordLayout, cache: str | Path | None, *, rebuild: bool = False, beside: bool = False
) -> tuple[index.IndexHead, bool]:
    """Return the index of a file of records, and whether it was built just now.

    `cache`: folder for it; None: the user's. `rebuild`: build it although there is one; `beside`: keep it next to the file instead.
    Raises PlaitError for a file without records, or that is not text of `layout`.
    """

    def fits(facts: Facts) -> bool:  # else it was read as another kind before, or by an earlier version, which knew no lines
        return facts.get("format") == layout.format and "lines" in facts

    return index.obtain(path, cache, lambda: layout.scan(path), rebuild=rebuild, beside=beside, fits=fits)


class IndexedRecords:
    """Random access to the records of one file; thread-safe and picklable. `columns`: new field name -> the name in the file.

    `layout`: the file's format; `cache`: folder for its index. `images`: the folder that image paths are relative to; None: paths are
    refused. `outside`: they may leave it. `path_columns`: fields that may hold an image's path, tried in order where a record has no
    `image` or `images`. `movable`: whether `options.images` may name another folder, as the reason of a missing image then says. Raises
    PlaitError for a file without records.
    """

    def __init__(
        self,
        path: Path,
        layout: RecordLayout,
        cache: str | Path | None,
        columns: Mapping[str, str],
        *,
        images: Path | None,
        outside: bool = False,
        path_columns: Sequence[str] = PATH_FIELDS,
        movable: bool = True,
    ) -> None:
        self.path, self.layout, self.columns = path, layout, dict(columns)
        self.root, self.outside, self.path_columns, self.movable = images, outside, tuple(path_columns), movable
        self.left_out: Mapping[str, int] = {}
        self.head, _ = index_records(path, layout, cache)
        self.digest = xxhash.xxh3_64(json.dumps([path.name, self.head.stamp["size"], len(self), self.head.xxh3]).encode()).hexdigest()
        self._start_closed()

    def _start_closed(self) -> None:
        self._lock = threading.Lock()
        self._file: OpenFile | None = None
        self._spans: dict[str, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_file", "_spans")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start_closed()

    def __len__(self) -> int:
        return int(self.head.facts["samples"])

    def read(self, i: int) -> Record:
        """Return record `i` with the bytes of its images. Raises BadSample if it is broken or a column or image file is missing."""
        try:
            return self._read(i)
        except BadSample as error:
            error.sample = self._name(i)
            raise

    def _read(self, i: int) -> Record:
        fields = self.fields(i)
        images = [self._image(value, fields) for value in self.image_values(fields)]
        frames = self._frames(fields.get("frames"))
        if not images and not frames and clips.is_video(video := fields.get("video")):
            frames = self._frames(video)
        name = fields.get("id")
        return Record(self._name(i) if name is None else str(name), fields, images, frames)

    def read_text(self, i: int) -> Record:
        """Return record `i` with empty bytes in place of its images, whose files are not read. Raises BadSample if it is broken."""
        fields = self.fields(i)
        name = fields.get("id")
        return Record(self._name(i) if name is None else str(name), fields, [b""] * len(self.image_values(fields)), [])

    def fields(self, i: int) -> dict[str, Any]:
        """Return the fields of record `i`, renamed by `columns`. Raises BadSample if it is broken or a column is missing."""
        return rename(self.layout.fields(self._bytes(i), self._name(i), self.head.facts), self.columns)

    def image_values(self, fields: Mapping[str, Any]) -> list[Any]:
        """Return the values in a record's fields that name its images: paths, `data:` URLs, dicts with `path` or `url`; [] without any.

        Raises BadSample where the fields name some images and the turns of the conversation others.
        """
        of_fields, of_turns = (
            [cell for name in ("image", "images") for cell in picture_cells(fields.get(name))],
            image_parts(fields.get("messages")),
        )
        if of_fields and of_turns and list(map(_address, of_fields)) != list(map(_address, of_turns)):
            raise BadSample("its fields name other images than its messages do: leave one of the two out")
        values = of_fields or of_turns
        return values or next(([path] for path in map(fields.get, self.path_columns) if isinstance(path, str) and not is_absent(path)), [])

    def image_paths(self) -> Iterator[str]:
        """Yield the image paths or URLs in all records, as they are written there; broken records are skipped."""
        for i in range(len(self)):
            try:
                yield from self.paths_of(i)
            except BadSample:
                continue

    def paths_of(self, i: int) -> list[str]:
        """Return the image paths or URLs in record `i`, as they are written there. Raises BadSample if it is broken."""
        return [address for address in map(_address, self.image_values(self.fields(i))) if address is not None]

    def _name(self, i: int) -> str:
        """Return the file's name with the line on which record `i` begins, or with its number, from 0, where records share lines."""
        spans, _ = self._opened()
        return f"{self.path.name}:{spans['line'][i]}" if "line" in spans else f"{self.path.name}[{i}]"

    def _bytes(self, i: int) -> bytes:
        spans, file = self._opened()
        start, end = int(spans["start"][i]), int(spans["end"][i])
        return file.read(start, end - start)

    def _opened(self) -> tuple[dict[str, np.ndarray], OpenFile]:
        """Return the arrays of the index and the file, opened at the first call."""
        with self._lock:
            if self._file is None:
                self._spans, self._file = index.map_arrays(self.head), OpenFile(self.path)
            return self._spans, self._file

    def _frames(self, value: object) -> list[bytes]:
        """Return the encoded frames of a clip: the pictures of a list, or those of a folder or video that one path names."""
        cells = picture_cells(value)
        if len(cells) == 1 and isinstance(cells[0], str) and self.root is not None:
            clip = paths.inside(self.root, cells[0], anywhere=self.outside)
            if clips.is_clip(clip):
                return clips.read_clip(clip, IMAGE_KINDS)
        return [self._image(cell) for cell in cells]

    def _image(self, value: object, fields: Mapping[str, Any] | None = None) -> bytes:
        """Return the encoded image that a record's value names: a path, a `data:` address, or a mapping with `path` or `url`."""
        address = _address(value)
        if address is None:
            raise BadSample(f"an image is named by a path, not by {kind_of(value)}")
        if address.startswith("data:"):
            return _decode_data_url(address)
        if "://" in address and not address.startswith("file://"):
            raise RemotePicture.at(address, fields)
        if self.root is None:
            raise BadSample(f"an image is a path, {address!r}, and this dataset has no folder: set options {{images: FOLDER}}")
        if not self.movable:
            return read_regular(paths.inside(self.root, address, anywhere=self.outside))
        return paths.read_image(self.root, address, anywhere=self.outside)


class Chain:
    """A reader of the concatenated records of several readers."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        self.readers, self._ends = list(readers), list(accumulate(map(len, readers)))
        self.digest = xxhash.xxh3_64("".join(reader.digest for reader in readers).encode()).hexdigest()
        self.left_out: Mapping[str, int] = sum((Counter(reader.left_out) for reader in readers), Counter())

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, i: int) -> Record:
        """Return record `i`, counted over all readers. Raises BadSample as its reader does."""
        which = bisect_right(self._ends, i)
        return self.readers[which].read(i - (self._ends[which - 1] if which else 0))


def _address(value: object) -> str | None:
    """Return the path or address in what names an image, a text or a mapping with `path` or `url`. None for anything else."""
    address = value.get("path") or value.get("url") if isinstance(value, Mapping) else value
    return address if isinstance(address, str) else None


def _decode_data_url(address: str) -> bytes:
    try:
        return base64.b64decode(address.partition("base64,")[2], validate=True)
    except binascii.Error as error:
        raise BadSample(f"broken data: address of an image ({error})") from error
