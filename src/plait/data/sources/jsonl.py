"""The kind `jsonl`: JSON records that name their image files, one object per line (JSONL) or in one JSON array as LLaVA publishes.

Only the offsets of the records are kept (formats/index.py), so a file may be larger than memory. Image paths are relative to the file's
folder, or to `options.images`, and stay below it unless `options.outside` is true.
"""

import base64
import binascii
import codecs
import json
import mmap
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from plait.config.schema import Source as Entry
from plait.data import addresses, paths
from plait.data.formats import index
from plait.data.formats.open_file import OpenFile
from plait.data.paths import read_regular
from plait.data.records import Record, as_list, parse_json
from plait.data.sources.contract import Source
from plait.data.sources.conversations import open_conversations
from plait.data.sources.kind import Opening, SourceKind, path_of
from plait.data.text import image_parts, kind_of, rename
from plait.errors import BadSample, PlaitError

_SPACE = b" \t\r\n"
_TEXT = re.compile(rb"[^ \t\r\n]")


class JsonRecords:
    """Random access to the records of one file; threads may read at once, and it pickles. `columns`: new field name -> the record's.

    `images`: the folder that image paths are relative to (None: the file's). Raises PlaitError if that is no folder, or the file has no
    records.
    """

    def __init__(
        self, path: Path, images: Path | None, cache: str | Path | None, columns: Mapping[str, str], *, outside: bool = False
    ) -> None:
        self.path, self.columns, self.outside = path, dict(columns), outside
        self.left_out: Mapping[str, int] = {}
        self.root = images or path.parent
        if not self.root.is_dir():
            raise PlaitError(f"options.images {str(self.root)!r} is not a folder")
        self.head, self.built = index.obtain(path, cache, lambda: _scan(path))
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

    def _name(self, i: int) -> str:
        return f"{self.path.name}:{i + 1}"

    def read(self, i: int) -> Record:
        """Read record `i` with the bytes of its images. Raises BadSample for broken JSON, a missing file, a missing column."""
        record = parse_json(self._bytes(i), self._name(i))
        if not isinstance(record, dict):
            raise BadSample(f"{self._name(i)} holds a {type(record).__name__}, not an object of fields")
        fields = rename(record, self.columns)
        image_values = [*as_list(fields.get("image")), *as_list(fields.get("images"))] or image_parts(fields.get("messages"))
        images, frames = ([self._image(value) for value in values] for values in (image_values, as_list(fields.get("frames"))))
        return Record(str(fields.get("id", self._name(i))), fields, images, frames)

    def _bytes(self, i: int) -> bytes:
        with self._lock:
            if self._file is None:
                self._spans, self._file = index.map_arrays(self.head), OpenFile(self.path)
        start, end = int(self._spans["start"][i]), int(self._spans["end"][i])
        return self._file.read(start, end - start)

    def _image(self, value: object) -> bytes:
        """Return the encoded image that a record's value names: a path, a `data:` address, or a mapping with `path` or `url`."""
        address = value.get("path") or value.get("url") if isinstance(value, Mapping) else value
        if not isinstance(address, str):
            raise BadSample(f"an image is named by a path, not by {kind_of(value)}")
        if address.startswith("data:"):
            return _decode_data_url(address)
        if "://" in address:
            raise BadSample(f"the image {address} is on the network; download it first, and name the file in its place")
        return read_regular(paths.inside(self.root, address, anywhere=self.outside))


def _decode_data_url(address: str) -> bytes:
    try:
        return base64.b64decode(address.partition("base64,")[2], validate=True)
    except binascii.Error as error:
        raise BadSample(f"broken data: address of an image ({error})") from error


def _scan(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Find where each record begins and ends; JSON lines are parsed only when they are read.

    Raises PlaitError for a file without records, and for one that is neither lines, an array, nor an object with one array of records.
    """
    if path.stat().st_size == 0:
        raise PlaitError(f"{path} is empty (0 bytes)")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        if mapped[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise PlaitError(f"{path} is UTF-16; JSON is UTF-8: iconv -f UTF-16 -t UTF-8 {path.name} > new.jsonl")
        first = next((byte for byte in mapped[:4096].removeprefix(codecs.BOM_UTF8) if byte not in _SPACE), 0)
        if first == ord("["):
            spans = _array_spans(path, mapped[:])
        else:
            spans = (_spans_in_object(path, mapped) if first == ord("{") else None) or _line_spans(mapped)
    if not spans:
        raise PlaitError(f"{path} holds no records")
    table = np.array(spans, np.int64)
    return {"samples": len(spans)}, {"start": np.ascontiguousarray(table[:, 0]), "end": np.ascontiguousarray(table[:, 1])}


def _spans_in_object(path: Path, mapped: mmap.mmap) -> list[tuple[int, int]] | None:
    """Return the records of a file that is one object with one array of objects, as {"data": [...]}; None for lines of JSON.

    Raises PlaitError for one object with several such arrays, and for one that gives the array's key twice.
    """
    first_line = _line_from(mapped, 0)
    if _TEXT.search(mapped, len(first_line)) and _is_json(first_line):
        return None
    pairs: list[tuple[str, Any]] = []

    def keep_pairs(of_object: list[tuple[str, Any]]) -> dict[str, Any]:
        pairs[:] = of_object  # the outermost object comes last
        return dict(of_object)

    try:
        whole = json.loads(mapped[:].decode("utf-8-sig"), object_pairs_hook=keep_pairs)
    except (ValueError, RecursionError):
        return None
    names = [name for name, _ in pairs]
    arrays = [name for name, value in pairs if isinstance(value, list) and value and all(isinstance(item, dict) for item in value)]
    if twice := next((name for name in arrays if names.count(name) > 1), None):
        raise PlaitError(f"{path} gives the key {twice!r} twice: make one array of the two, or name each once")
    if len(arrays) > 1:
        raise PlaitError(
            f"{path} holds {len(arrays)} arrays of records: {', '.join(arrays)}; write the one to train on to a file of its own"
        )
    if not arrays or _has_text(whole):
        return None
    text = mapped[:].decode("latin-1")
    return _array_spans(path, mapped[:], _start_of_value(text, arrays[0]), whole_file=False)


def _start_of_value(text: str, name: str) -> int:
    """Return where the value of a key of the outermost object begins, in text that is sound JSON."""
    decoder, position = json.JSONDecoder(), text.index("{") + 1
    while True:
        found, end = decoder.raw_decode(text, _past_space(text, position))
        position = _past_space(text, _past_space(text, end) + 1)
        if found == name:
            return position
        _, end = decoder.raw_decode(text, position)
        position = _past_space(text, end) + 1


def _has_text(record: Mapping[str, Any]) -> bool:
    """Return whether an object is itself a record: it has a conversation or caption."""
    return any(name in record for name in ("messages", "conversations", "caption", "text", "image", "images"))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _line_spans(mapped: mmap.mmap) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    start = 3 if mapped[:3] == codecs.BOM_UTF8 else 0
    while line := _line_from(mapped, start):
        if line.strip():
            spans.append((start, start + len(line)))
        start += len(line)
    return spans


def _line_from(mapped: mmap.mmap, start: int) -> bytes:
    mapped.seek(start)
    return mapped.readline()


def _array_spans(path: Path, body: bytes, start: int | None = None, *, whole_file: bool = True) -> list[tuple[int, int]]:
    """Find the elements of a JSON array that begins at `start` (None: the first bracket). `whole_file`: nothing may come after it.

    Latin-1 maps every byte to one character, so positions in the text are offsets in the file. Raises PlaitError with the offset.
    """
    text, decoder = body.decode("latin-1"), json.JSONDecoder()
    spans: list[tuple[int, int]] = []
    position = (text.index("[") if start is None else start) + 1
    while True:
        position = _past_space(text, position)
        if text[position : position + 1] == "]":
            rest = _past_space(text, position + 1)
            if whole_file and rest < len(text):
                raise PlaitError(f"{path} goes on after its array of {len(spans)} records, at offset {rest}; make it one array, or lines")
            return spans
        try:
            _, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise PlaitError(f"{path} is not a JSON array of records: offset {position}: {error}") from error
        spans.append((position, end))
        position = _past_space(text, end)
        if text[position : position + 1] == ",":
            position += 1
        elif text[position : position + 1] != "]":
            raise PlaitError(f"{path} is not a JSON array of records: offset {position}: expected , or ]")


def _past_space(text: str, position: int) -> int:
    while text[position : position + 1] in (" ", "\t", "\r", "\n"):
        position += 1
    return position


def local_path_of(entry: Entry) -> str:
    """Return the path of an entry (an item of the `data:` section) that must be on disk. Raises PlaitError for an address such as s3://."""
    path = path_of(entry)
    if addresses.is_remote(path):
        raise PlaitError(f"{addresses.shown(path)} is remote, which only shards can be; copy it to disk, or make shards of it")
    return path


def _open(entry: Entry, opening: Opening) -> Source:
    files = paths.files(local_path_of(entry), ".jsonl", split=entry.split, default_split=opening.split)
    if len(files) > 1:
        raise PlaitError(f"{entry.path!r} names {len(files)} files; give each its own entry")
    images = paths.local(str(entry.options["images"])) if "images" in entry.options else None
    outside = bool(entry.options.get("outside", False))
    return open_conversations(entry, JsonRecords(Path(files[0]), images, opening.cache, entry.columns, outside=outside))


KIND = SourceKind("jsonl", options=("images", "outside"), paths=("images",), open=_open)
