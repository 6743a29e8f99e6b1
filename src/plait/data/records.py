"""A record: one sample's fields and encoded images as they were read. Every reader (shards, folder, jsonl, datasets) returns these."""

import functools
import io
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from plait.data.formats import clips
from plait.data.formats.encodings import not_utf8, wide_encoding
from plait.errors import BadSample

IMAGE_KINDS = frozenset(
    ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "pfm", "avif", "jp2", "tga", "ico"]
)
"""Endings, in small letters, of files that are read as images."""

UNREAD_KINDS = frozenset(["heic", "heif", "svg", "psd", "eps", "pdf", "jxl", "dng", "cr2", "nef", "arw"])
"""Endings of files that hold pictures and are not read: there is no decoder for them."""

PATH_FIELDS = ("image_path", "image_file", "file_name", "filename", "file", "img")
"""Fields that name the image of a record by a path, in this order, where it has no `image`, no `images` and no column of the type image."""

TEXT_FIELDS = {"txt": "caption", "caption": "caption", "cls": "label"}
"""File extension -> the field that the text of such a file (`NAME.txt`) becomes."""


class Record(NamedTuple):
    """One sample as read: `fields` (text, JSON values) by name, encoded `images`, and the encoded `frames` of a clip, in order."""

    id: str
    fields: dict[str, Any]
    images: list[bytes]
    frames: list[bytes]


def from_members(name: str, members: Iterable[tuple[str, bytes]]) -> Record:
    """Build record `name` from files of one stem (a.jpg, a.json). `members`: (extension, bytes). Raises BadSample if one is broken.

    An image extension (`png`, `left.png`) adds an image; one named `frame...` adds a frame of a clip, and of a sample without pictures a
    video (`mp4`) gives the frames. `json` adds its keys to the fields,
    `meta.json` the field `meta`; `txt` and `caption` set `caption`, `cls` sets `label`, `prompt.txt` sets `prompt`. Others are ignored.
    Two values for one field (of a.txt and a.caption, of a.json and a.txt) are refused, unless they are equal or one of them is null; so is
    a record whose only picture has a format that is not read.
    """
    fields: dict[str, Any] = {}
    images: list[bytes] = []
    frames: list[bytes] = []
    told: dict[str, tuple[str, Any]] = {}  # field -> the member that gave it, and its value
    unread: list[str] = []
    videos: list[tuple[str, bytes]] = []
    for kind, body in members:
        first, last = _parts(kind)
        if last in IMAGE_KINDS:
            (frames if first.startswith("frame") else images).append(body)
            continue
        if last in clips.VIDEO_KINDS:
            videos.append((kind, body))
        values: dict[str, Any] = {}
        if last in UNREAD_KINDS:
            unread.append(kind)
        elif last == "json":
            value = parse_json(body, f"{name}.{kind}")
            if not first and not isinstance(value, dict):
                raise BadSample(f"{name}.{kind} holds a {type(value).__name__}, not an object of fields")
            values = {first: value} if first else value
        elif last in TEXT_FIELDS:
            values = {first or TEXT_FIELDS[last]: decode_text(body, f"{name}.{kind}")}
        for field, value in values.items():
            other, before = told.get(field, (kind, None))
            if other != kind and before is not None and value is not None and str(before).strip() != str(value).strip():
                raise BadSample(f"{name} has two values for the field {field!r}, in .{other} and .{kind}: keep one")
            if value is not None or field not in fields:
                fields[field], told[field] = value, (kind, value)
    if unread and not images and not frames:
        raise BadSample(f"{name}.{unread[0]} is a picture of a format that is not read: convert it, to JPEG or PNG")
    if videos and not images and not frames:
        frames = _video_frames(name, videos)
    return Record(name, fields, images, frames)


def _video_frames(name: str, videos: list[tuple[str, bytes]]) -> list[bytes]:
    """Return the frames of a sample's only video; for an empty one, which is not read, an empty frame.

    Raises BadSample for several videos.
    """
    if len(videos) > 1:
        raise BadSample(f"{name} has {len(videos)} videos, .{videos[0][0]} and .{videos[1][0]}: keep one")
    kind, body = videos[0]
    return clips.decode_video(io.BytesIO(body), f"{name}.{kind}") if body else [b""]


@functools.lru_cache
def _parts(kind: str) -> tuple[str, str]:
    """Return what stands before the last dot of an extension, and what after it, in small letters."""
    first, _, last = kind.rpartition(".")
    return first, last.lower()


def parse_json(body: bytes, where: str) -> Any:
    """Parse JSON. Raises BadSample, which names the file (`where`) and the place, if it is broken or gives a key twice."""
    if not body.strip(b"\0 \t\r\n"):
        zeros = body.count(0)
        raise BadSample(
            f"{where} is {zeros:,} zero bytes: it was not written whole" if zeros else f"{where} is empty: there is no JSON in it"
        )
    try:
        text = body.decode("utf-8" if body.startswith(b'{"') else json.detect_encoding(body), "surrogatepass")
        if text.startswith("{"):
            value, end = _DECODER.raw_decode(text)
            if end == len(text):
                return value
        return _DECODER.decode(text)  # which looks for white space around
    except BadSample as error:
        raise BadSample(f"{where}: {error}") from error
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise BadSample(f"{where} is not JSON: {error.msg}: {line}column {error.colno}{_cause(error)}") from error
    except UnicodeDecodeError as error:
        raise BadSample(f"{where} {not_utf8(error)}") from error
    except ValueError as error:
        raise BadSample(f"{where} is not JSON: {error}") from error
    except RecursionError as error:
        raise BadSample(f"{where} is nested too deeply to be read") from error


def _cause(error: json.JSONDecodeError) -> str:
    """Return which record or comma comes after a value that is whole, as the end of a sentence; "" for anything else."""
    if error.msg != "Extra data" or error.doc[error.pos] not in ",{[":
        return ""
    if error.doc[error.pos] == ",":
        return ": a comma follows a whole record"
    between = error.doc[len(error.doc[: error.pos].rstrip()) : error.pos]
    if "\n" in between:
        return ": several records, where one is expected"
    return ": a carriage return alone, which ends no line, stands between records" if "\r" in between else ": several records in one line"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. Raises BadSample for a key that is given twice: which of the two values is meant is not known."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
        raise BadSample(f"the key {twice!r} is given twice")
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_object)  # json.loads makes one for each text


def decode_text(body: bytes, where: str) -> str:
    """Decode UTF-8 and strip white space at both ends. Raises BadSample, which names the file (`where`), if it is not UTF-8."""
    encoding = wide_encoding(body)
    if encoding is not None:
        raise BadSample(f"{where} is not UTF-8 text: it is {encoding}")
    try:
        return body.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BadSample(f"{where} {not_utf8(error)}") from error


def as_list(value: Any) -> list[Any]:
    """Return a field's value as a list: None -> [], a list or tuple -> its items, anything else -> [value]."""
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def is_absent(value: object) -> bool:
    """Return whether a value that is to name pictures names none: null, NaN, a blank text, an empty list.

    An object is absent where its `bytes`, `path` and `url` all are, as {"bytes": null, "path": null}.
    """
    if isinstance(value, Mapping):
        parts = [value[name] for name in ("bytes", "path", "url") if name in value]
        return bool(parts) and all(map(is_absent, parts))
    blank = isinstance(value, str | list | tuple) and not (value.strip() if isinstance(value, str) else value)
    return blank or value is None or (isinstance(value, float) and math.isnan(value))


def picture_cells(value: object) -> list[Any]:
    """Return what names the pictures of one field: the value, or the items of a list; [] where it is absent.

    Raises BadSample for a list in which an item is absent: which picture a text means is not known then.
    """
    if not isinstance(value, list | tuple):
        return [] if is_absent(value) else [value]
    missing = next((number for number, cell in enumerate(value, 1) if is_absent(cell)), None)
    if missing is not None:
        raise BadSample(f"picture {missing} of its list of {len(value)} is null or blank: take it out of the list")
    return list(value)
