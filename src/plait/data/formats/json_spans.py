"""Find the records of a JSON file. It has an object per line (JSONL), one array of them, or one object with one array of them.

Only offsets are found here; lines are parsed when they are read, so a file may be larger than memory.
"""

import codecs
import json
import mmap
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from plait.data.formats.open_file import MOST_BYTES
from plait.data.formats.spans import Facts, Span, check_bytes, pack
from plait.errors import PlaitError

_LONGEST_RECORD = 1 << 24  # bytes looked at to tell how the records of a file are divided
_OWN = ("messages", "conversations", "images")
"""Arrays of objects that belong to one record."""
_PICTURES = ("image", "images", "frames")
_LARGEST_OBJECT = 1 << 32  # bytes of a file that may be one object with an array of records
_SPACE = b" \t\r\n"
_TEXT = re.compile(rb"[^ \t\r\n]")


def scan(path: Path) -> tuple[Facts, dict[str, np.ndarray]]:
    """Find the records; return (facts, arrays): {`format`, `samples`, `lines`} and {`start`, `end`, `line`}.

    `start`, `end`: each record's byte offsets; `line`: that on which it begins, from 1, left out (`lines` False) where records share
    lines. Raises PlaitError for a file without records, and for one that is neither lines, an array, nor an object with one array of
    records, with the command that makes lines of it where the records are divided in another way.
    """
    check_bytes(path, "JSON")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        first = next((byte for byte in mapped[:4096].removeprefix(codecs.BOM_UTF8) if byte not in _SPACE), 0)
        if first == ord("["):
            spans = _array_spans(path, mapped[:])
        else:
            spans = (_spans_in_object(path, mapped) if first == ord("{") else None) or _line_spans(mapped)
            _check_layout(path, mapped, spans)
    return pack(path, "json", spans)


def _spans_in_object(path: Path, mapped: mmap.mmap) -> list[Span] | None:
    """Return the records of a file that is one object with one array of objects, as {"data": [...]}. None for lines of JSON.

    An item of it that is no object is a record that cannot be read.
    Raises PlaitError for one object with several such arrays, for one that gives the array's key twice, and for a record among records.
    """
    first = mapped.find(b"\n") + 1 or len(mapped)
    if _TEXT.search(mapped, first) and _is_json(mapped, 0, first):
        return None
    if len(mapped) > _LARGEST_OBJECT:  # it would be parsed in memory
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
    arrays = [name for name, value in pairs if isinstance(value, list) and any(isinstance(item, dict) for item in value)]
    if twice := next((name for name in arrays if names.count(name) > 1), None):
        raise PlaitError(f"{path} gives the key {twice!r} twice: make one array of the two, or name each once")
    if len(arrays) > 1:
        raise PlaitError(
            f"{path} holds {len(arrays)} arrays of records: {', '.join(arrays)}; write the one to train on to a file of its own"
        )
    if not arrays:
        return None
    if _has_text(whole):
        if not _is_own(arrays[0], whole) and all(isinstance(item, dict) and _has_text(item) for item in whole[arrays[0]]):
            raise PlaitError(
                f"{path} may be one record or those in its array {arrays[0]!r}: write the array to a file of its own, or put [ ] around "
                "the one record"
            )
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


def _is_own(name: str, record: Mapping[str, Any]) -> bool:
    """Return whether an array belongs to a record: its turns, its images, or annotations of the pictures that it names."""
    return name in _OWN or (name == "annotations" and any(of in record for of in _PICTURES) and not any(map(_has_picture, record[name])))


def _has_picture(item: object) -> bool:
    return isinstance(item, Mapping) and any(of in item for of in _PICTURES)


def _has_text(record: Mapping[str, Any]) -> bool:
    """Return whether an object is itself a record: it has a conversation, a caption or an image."""
    return any(name in record for name in (*_OWN, "caption", "text", "image"))


def _is_json(mapped: mmap.mmap, start: int, end: int) -> bool:
    """Return whether a line is JSON in any encoding of single bytes, or UTF-8, and of a length that a record can have."""
    if end - start > MOST_BYTES:
        return False
    try:
        json.loads(mapped[start:end].removeprefix(codecs.BOM_UTF8).decode("latin-1"))
    except (ValueError, RecursionError):
        return False
    return True


def _line_spans(mapped: mmap.mmap) -> list[Span]:
    spans: list[Span] = []
    start, line = 3 if mapped[:3] == codecs.BOM_UTF8 else 0, 0
    while start < len(mapped):
        end, line = mapped.find(b"\n", start) + 1 or len(mapped), line + 1
        if _TEXT.search(mapped, start, end):
            spans.append((start, end, line))
        start = end
    return spans


def _check_layout(path: Path, mapped: mmap.mmap, spans: list[Span]) -> None:
    """Raise PlaitError, with the command that mends it, for objects that are not one per line: divided by commas, of several lines, or
    by carriage returns alone.

    A line that is broken among others is a bad sample, so the first two lines must both be no JSON, and a record or a comma must follow
    the first record. Before all else the file must be UTF-8: the commands would mangle other text.
    """
    if not spans or any(_is_json(mapped, start, end) for start, end, _ in spans[:2]):
        return
    text = mapped[spans[0][0] : spans[0][0] + _LONGEST_RECORD].decode("latin-1")
    try:
        record, end = json.JSONDecoder().raw_decode(text, _past_space(text, 0))
    except (ValueError, RecursionError):
        return
    position = _past_space(text, end)
    of_one_line = end <= spans[0][1] - spans[0][0]
    if not isinstance(record, dict) or (position == len(text) and of_one_line):
        return
    if text[position : position + 1] not in ("", "{", ",") or (of_one_line and position >= spans[0][1] - spans[0][0]):
        return
    after = text[position : _past_space(text, position + 1)]  # a comma, if there is one, and the space after it
    name, plain = shlex.quote(path.name), f"new{path.suffix}"
    if after.startswith(",") and of_one_line and "\n" in after:
        fault, cure = "has a comma at the end of its lines", f"sed 's/,[[:space:]]*$//' {name} > {plain}"
    elif after.startswith(","):
        fault, cure = (
            "has commas between its records, and no brackets",
            f"(echo '['; sed '$ s/,[[:space:]]*$//' {name}; echo ']') > {plain}",
        )
    elif "\r" in text[end:position] and "\n" not in text[end:position]:
        fault, cure = "has carriage returns alone between its records", f"tr '\\r' '\\n' < {name} > {plain}"
    else:
        fault = "has several records in one line" if of_one_line else "has records of several lines"
        cure = f"jq -c . {name} > {plain}"
    if not _is_utf8(mapped):
        raise PlaitError(f"{path} is not UTF-8, as JSON is: iconv -f LATIN1 -t UTF-8 {name} > {plain}")
    raise PlaitError(f"{path} {fault}; JSON lines are one record a line: {cure}")


def _is_utf8(mapped: mmap.mmap) -> bool:
    """Return whether a whole file is UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(mapped), _LONGEST_RECORD):
            decoder.decode(mapped[start : start + _LONGEST_RECORD], final=start + _LONGEST_RECORD >= len(mapped))
    except UnicodeDecodeError:
        return False
    return True


def _array_spans(path: Path, body: bytes, start: int | None = None, *, whole_file: bool = True) -> list[Span]:
    """Find the elements of a JSON array that begins at `start` (None: the first bracket). `whole_file`: nothing may come after it.

    Latin-1 maps every byte to one character, so positions in the text are offsets in the file. Raises PlaitError with the offset.
    """
    text, decoder = body.decode("latin-1"), json.JSONDecoder()
    spans: list[Span] = []
    position, line, counted = (text.index("[") if start is None else start) + 1, 1, 0
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
        line, counted = line + body.count(b"\n", counted, position), position
        spans.append((position, end, line))
        position = _past_space(text, end)
        if text[position : position + 1] == ",":
            position += 1
        elif text[position : position + 1] != "]":
            raise PlaitError(f"{path} is not a JSON array of records: offset {position}: expected , or ]")


def _past_space(text: str, position: int) -> int:
    while text[position : position + 1] in (" ", "\t", "\r", "\n"):
        position += 1
    return position
