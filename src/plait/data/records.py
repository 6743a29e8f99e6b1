"""A record: one sample's bytes and fields, before anything is made of them. Every reader (shards, folder, jsonl, datasets) gives these."""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from plait.errors import BadSample

IMAGE_KINDS = frozenset(
    ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "pfm", "avif", "jp2", "tga", "ico"]
)


class Record(NamedTuple):
    """`fields` is what templates see; `frames` are those of a clip beyond the images."""

    id: str
    fields: dict[str, Any]
    images: list[bytes]
    frames: list[bytes]


def from_members(name: str, members: Iterable[tuple[str, bytes]]) -> Record:
    """Make a record of the files of one stem. `members` are (extension, bytes) in order. Raises BadSample for broken JSON or text.

    Images by extension (`png`, `left.png`), those named `frame...` being frames of a clip; `json` gives fields, `meta.json` the field
    `meta`; `txt` gives `caption`, `cls` gives `label`, `prompt.txt` the field `prompt`. Other members are left alone.
    """
    fields: dict[str, Any] = {}
    images: list[bytes] = []
    frames: list[bytes] = []
    for kind, body in members:
        first, _, last = kind.rpartition(".")
        if last.lower() in IMAGE_KINDS:
            (frames if first.startswith("frame") else images).append(body)
        elif last == "json":
            value = parse_json(body, f"{name}.{kind}")
            if first:
                fields[first] = value
            elif isinstance(value, dict):
                fields.update(value)
            else:
                raise BadSample(f"{name}.{kind} holds a {type(value).__name__}, not an object of fields")
        elif last in ("txt", "cls"):
            fields[first or ("caption" if last == "txt" else "label")] = decode_text(body, f"{name}.{kind}")
    if frames and not images:
        images, frames = frames[:1], frames[1:]
    return Record(name, fields, images, frames)


def parse_json(body: bytes, where: str) -> Any:
    """Parse JSON. Raises BadSample that says where it is broken."""
    try:
        return json.loads(body)
    except ValueError as error:
        raise BadSample(f"{where} is not JSON: {error}") from error


def decode_text(body: bytes, where: str) -> str:
    """Decode UTF-8 text and strip white space at its ends. Raises BadSample."""
    try:
        return body.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BadSample(f"{where} is not UTF-8 text: {error}") from error


def as_list(value: Any) -> list[Any]:
    """Return a field that holds one thing, several or none as a list."""
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
