"""JSON records with images beside them: one object per line (JSONL), or one JSON array as LLaVA publishes.

Only the offsets of the records are kept (index.py), so a file larger than memory is fine. Image paths are relative to the file's folder,
or to `options.images`.
"""

import base64
import binascii
import json
import mmap
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from plait.data.formats import index
from plait.data.records import Record, parse_json
from plait.data.text import image_parts, rename
from plait.errors import BadSample, PlaitError

_SPACE = b" \t\r\n"


class Lines:
    """The records of one file, any one of them at a time."""

    def __init__(self, path: Path, images: Path | None, cache: str | Path | None, columns: Mapping[str, str]) -> None:
        self.path, self.columns = path, dict(columns)
        self.root = images or path.parent
        if not self.root.is_dir():
            raise PlaitError(f"options.images {str(self.root)!r} is not a folder")
        self.head, self.built = index.obtain(path, cache, lambda: _scan(path))
        self.digest = xxhash.xxh3_64(json.dumps([path.name, self.head.stamp["size"], len(self), self.head.xxh3]).encode()).hexdigest()
        self._start_cold()

    def _start_cold(self) -> None:
        self._lock, self._mapped = threading.Lock(), None  # type: threading.Lock, mmap.mmap | None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_mapped", "_arrays")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start_cold()

    def __len__(self) -> int:
        return int(self.head.facts["samples"])

    def _name(self, i: int) -> str:
        return f"{self.path.name}:{i + 1}"

    def read(self, i: int) -> Record:
        """Record `i` with its images' bytes. Errors: BadSample for broken JSON, a missing file, a missing column."""
        record = parse_json(self._bytes(i), self._name(i))
        if not isinstance(record, dict):
            raise BadSample(f"{self._name(i)} holds a {type(record).__name__}, not an object of fields")
        fields = rename(record, self.columns)
        wanted = [*listed(fields.get("image")), *listed(fields.get("images"))] or image_parts(fields.get("messages"))
        images, frames = ([self._file(value) for value in values] for values in (wanted, listed(fields.get("frames"))))
        return Record(str(fields.get("id", self._name(i))), fields, images, frames)

    def _bytes(self, i: int) -> bytes:
        with self._lock:
            if self._mapped is None:
                self._arrays = index.map_arrays(self.head)
                with open(self.path, "rb") as file:
                    self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._mapped[int(self._arrays["start"][i]) : int(self._arrays["end"][i])]

    def _file(self, value: Any) -> bytes:
        where = value.get("path") or value.get("url") if isinstance(value, Mapping) else value
        if not isinstance(where, str):
            raise BadSample(f"an image is named by a path, not by {str(value)[:60]!r}")
        if where.startswith("data:"):
            return _data_url(where)
        if "://" in where:
            raise BadSample(f"the image {where} is on the network; download it first (plait data download)")
        try:
            return (self.root / where).read_bytes()
        except OSError as error:
            raise BadSample(f"cannot read the image {self.root / where}: {error.strerror}") from error


def listed(value: Any) -> list[Any]:
    """One thing, several or none, as a list."""
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _data_url(where: str) -> bytes:
    try:
        return base64.b64decode(where.partition("base64,")[2], validate=True)
    except binascii.Error as error:
        raise BadSample(f"broken data: address of an image ({error})") from error


def _scan(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Where each record begins and ends. The records themselves are parsed when they are read."""
    if path.stat().st_size == 0:
        raise PlaitError(f"{path} is empty (0 bytes)")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        first = next((byte for byte in mapped[:4096].removeprefix(b"\xef\xbb\xbf") if byte not in _SPACE), 0)
        spans = _array_spans(path, mapped[:]) if first == ord("[") else _line_spans(mapped)
    if not spans:
        raise PlaitError(f"{path} holds no records")
    table = np.array(spans, np.int64)
    return {"samples": len(spans)}, {"start": np.ascontiguousarray(table[:, 0]), "end": np.ascontiguousarray(table[:, 1])}


def _line_spans(mapped: mmap.mmap) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    start = 3 if mapped[:3] == b"\xef\xbb\xbf" else 0
    while line := _line_from(mapped, start):
        if line.strip():
            spans.append((start, start + len(line)))
        start += len(line)
    return spans


def _line_from(mapped: mmap.mmap, start: int) -> bytes:
    mapped.seek(start)
    return mapped.readline()


def _array_spans(path: Path, body: bytes) -> list[tuple[int, int]]:
    """Elements of a JSON array. Latin-1 maps every byte to one character, so positions in the text are offsets in the file."""
    text, decoder = body.decode("latin-1"), json.JSONDecoder()
    spans: list[tuple[int, int]] = []
    place = text.index("[") + 1
    while True:
        place = _past_space(text, place)
        if text[place : place + 1] == "]":
            return spans
        try:
            _, end = decoder.raw_decode(text, place)
        except ValueError as error:
            raise PlaitError(f"{path} is not a JSON array of records: offset {place}: {error}") from error
        spans.append((place, end))
        place = _past_space(text, end)
        if text[place : place + 1] == ",":
            place += 1
        elif text[place : place + 1] != "]":
            raise PlaitError(f"{path} is not a JSON array of records: offset {place}: expected , or ]")


def _past_space(text: str, place: int) -> int:
    while text[place : place + 1] in (" ", "\t", "\r", "\n"):
        place += 1
    return place
