"""Make the files of a sample in a tar shard: pictures, text and JSON, as webdataset and the source `shards` read them.

    KEY.jpg (KEY.0.jpg, KEY.1.png, ... of several; KEY.frame1.jpg, ... of a clip)   KEY.txt, the caption   KEY.json, all fields

Read again without a template, they give the same conversations. The members of a shard that is packed anew are taken as they are.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import numpy as np

from plait.data import image_files, text
from plait.data.records import IMAGE_KINDS, TEXT_FIELDS
from plait.data.shard_sets import encoding
from plait.data.sources.contract import Sample, Source, read
from plait.data.sources.conversations import Conversations
from plait.data.sources.filtered import Filtered
from plait.data.sources.part import Part
from plait.data.sources.shards import Shards
from plait.data.streaming.reader import StreamedShards
from plait.errors import BadSample

Member = tuple[str, bytes]
"""The extension of a file of a sample, such as "jpg" or "0.jpg", and its content."""
_DECODED = (256, 256)  # a JPEG of four times that is decoded smaller to find out whether it is whole
_OURS = "record_"
"""What comes before the name of a field of the record that has the name of one of ours, and another value."""


class TooSmall(BadSample):
    """A sample with a picture whose shorter side is below the limit."""


class Empty(BadSample):
    """A sample without pictures and text."""


@dataclass(frozen=True)
class Pictures:
    """What becomes of pictures. `max_side`: larger ones are scaled down to it; `min_side`: samples with a shorter side are skipped.

    `encode`: the format in which all are encoded anew, None: only those that are scaled, as JPEG. `quality`: of JPEG and WebP. Pixels.
    """

    max_side: int | None = None
    min_side: int | None = None
    encode: encoding.Kind | None = None
    quality: int = 95

    @property
    def changes(self) -> bool:
        """Return whether any picture may be encoded anew."""
        return self.max_side is not None or self.encode is not None


@dataclass
class Packed:
    """The files of one sample, and what is counted of it. `sizes`: (width, height) of each picture as packed.

    `before`: bytes of the pictures as read; `answers`: texts of the assistant; `lost`: fields that JSON cannot hold, by name.
    """

    members: list[Member]
    sizes: list[tuple[int, int]] = field(default_factory=list)
    before: int = 0
    encoded: int = 0
    answers: list[str] = field(default_factory=list)
    caption: bool = False
    lost: Counter[str] = field(default_factory=Counter)


def pack(source: Source, index: int, key: str, wanted: Pictures) -> Packed:
    """Return the files of sample `index` of a source, named by `key`. Raises BadSample for a sample that cannot be used."""
    shards, others = _members(source, index)
    sample = read(source, index)
    try:
        return _pack(source, sample, shards, others, key, wanted)
    except BadSample as error:
        error.sample = error.sample or str(sample["id"])
        raise


def _members(source: Source, index: int) -> tuple[Shards | StreamedShards | None, list[Member]]:
    """Return the reader of the tar shards that a source reads, and the files of sample `index` in them; (None, []) for any other source."""
    whole = source
    while isinstance(whole, Part | Filtered):
        whole = whole.whole
    if not (isinstance(whole, Conversations) and isinstance(whole.reader, Shards | StreamedShards)):
        return None, []
    return whole.reader, whole.reader.members(int(source.places(np.array([index]))[0]))[1]


def _pack(
    source: Source, sample: Sample, shards: Shards | StreamedShards | None, others: list[Member], key: str, wanted: Pictures
) -> Packed:
    if not (sample["images"] or sample["messages"] or sample.get("arrays")):
        raise Empty("it has neither a picture nor a text")
    if sample.get("arrays"):
        raise BadSample(f"it holds arrays ({', '.join(sample['arrays'])}), for which plain shards have no place")
    packed = Packed([], answers=_answers(sample))
    pictures = [_picture(body, wanted, packed) for body in sample["images"]]
    frames = [_picture(body, wanted, packed) for body in sample.get("frames", ())]
    if shards is not None and not (source.has_template or shards.columns or wanted.changes):
        packed.members = others
        packed.caption = any(kind == "txt" for kind, _ in packed.members)
        return packed
    several = len(pictures) > 1
    packed.members += [(f"{number}.{kind}" if several else kind, body) for number, (kind, body) in enumerate(pictures)]
    packed.members += [(f"frame{number}.{kind}", body) for number, (kind, body) in enumerate(frames, 1)]
    packed.members += _texts(sample, key, packed)
    packed.members += [member for member in others if not _is_read(member[0])]
    return packed


def _is_read(extension: str) -> bool:
    """Return whether a member of a shard is part of the sample: a picture, a text or fields."""
    last = extension.rpartition(".")[2].lower()
    return last in IMAGE_KINDS or last in TEXT_FIELDS or last == "json"


def _picture(body: bytes, wanted: Pictures, packed: Packed) -> Member:
    """Return (format, file) of a picture as it is packed, and count it. Raises BadSample if it is damaged or too small."""
    packed.before += len(body)
    size = image_files.size(body)
    if wanted.min_side is not None and min(size) < wanted.min_side:
        raise TooSmall(f"{size[0]}x{size[1]}")
    if wanted.encode is not None or (wanted.max_side is not None and max(size) > wanted.max_side):
        kind = wanted.encode or "jpg"
        body, size = encoding.encode(body, kind, wanted.quality, side=wanted.max_side)
        packed.encoded += 1
        packed.sizes.append(size)
        return kind, body
    image_files.decode_rgb(body, at_least=_DECODED)
    packed.sizes.append(size)
    return encoding.kind(body), body


def _answers(sample: Sample) -> list[str]:
    conversations = [item["messages"] for item in sample.get("annotations", ())] or [sample["messages"]]
    return [turn["content"] for conversation in conversations for turn in conversation if turn["role"] == "assistant"]


def _texts(sample: Sample, key: str, packed: Packed) -> list[Member]:
    """Return the caption, where the text is one, and the fields as JSON, from which the same conversations are read."""
    fields = {name: _plain(value, name, packed.lost) for name, value in sample["fields"].items()}
    fields = {name: value for name, value in fields.items() if value is not _LOST}
    own: dict[str, Any] = {"key": key, "id": str(sample["id"])}
    if packed.sizes:
        own |= {"width": packed.sizes[0][0], "height": packed.sizes[0][1]}
    annotations = sample.get("annotations")
    if annotations is None and float(sample.get("weight", 1.0)) != 1.0:
        annotations = [{"messages": sample["messages"], "weight": float(sample["weight"])}]
    caption = None
    if annotations is not None:
        own["annotations"] = _plain(annotations, "annotations", packed.lost)
    else:
        caption = _caption(sample["messages"])
    fields = {f"{_OURS}{name}" if name in own and str(own[name]) != str(value) else name: value for name, value in fields.items()}
    if annotations is None and text.has_annotations(fields):
        fields[f"{_OURS}annotations"] = fields.pop("annotations")
    told = {**own, **fields}
    if caption is not None and str(told.get("caption") or caption).strip() != caption:
        caption = None
    if annotations is None and not _reads_as(told, caption, sample["messages"]):
        told["messages"] = sample["messages"]
    packed.caption = caption is not None
    body = json.dumps(told, ensure_ascii=False).encode(errors="backslashreplace")
    return [*([] if caption is None else [("txt", caption.encode())]), ("json", body)]


def _caption(conversation: Sequence[Mapping[str, str]]) -> str | None:
    """Return the text of a conversation that is one answer to a user who says nothing, as a file can hold it; None for any other."""
    roles = [turn["role"] for turn in conversation]
    if roles != ["user", "assistant"] or conversation[0]["content"].replace(text.IMAGE_MARK, "").strip():
        return None
    answer = conversation[1]["content"]
    return answer if answer.strip() == answer and answer and "\ufeff" not in answer[:1] else None


def _reads_as(fields: Mapping[str, Any], caption: str | None, conversation: Sequence[Mapping[str, str]]) -> bool:
    """Return whether the source `shards` makes this very conversation of the fields and the caption beside them."""
    try:
        return text.messages(fields if caption is None else {**fields, "caption": caption}, None, allow_blank=True) == conversation
    except BadSample:
        return False


_LOST = object()
"""Stands for a value that JSON cannot hold."""


def _plain(value: Any, name: str, lost: Counter[str]) -> Any:
    """Return a field's value as JSON holds it: dates as text, arrays as lists. Bytes and the like are _LOST, and counted."""
    if value is None or isinstance(value, str | int | float):  # also bool
        return value
    if isinstance(value, Mapping):
        items = {str(key): _plain(item, f"{name}.{key}", lost) for key, item in value.items()}
        return {key: item for key, item in items.items() if item is not _LOST}
    if isinstance(value, list | tuple):
        return [item for item in (_plain(item, name, lost) for item in value) if item is not _LOST]
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist(), name, lost)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    lost[name] += 1
    return _LOST
