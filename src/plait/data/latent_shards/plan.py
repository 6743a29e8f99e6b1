"""Which pictures of a source go into which bucket: the plan of a build, from headers and captions only, before anything is encoded.

Position p of the walk is sample permute(p) of the source, so that any first part of it is a fair sample. The plan of each chunk of
positions is a pure function of the request; kept in a folder, it is made once and survives a kill.
"""

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from plait.data.aspect import Bucket, nearest
from plait.data.order import permute
from plait.data.sources.open import Sample, Source
from plait.errors import BadSample
from plait.files import write_whole

CHUNK = 4096  # positions planned at once
OTHER_BUCKET = "in a bucket that is not asked for"
NO_IMAGE, NO_CAPTION, UNREADABLE = "no image", "no caption", "unreadable"
_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)  # EXIF tag, and its values that turn a picture on its side
_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning)

Report = Callable[[str, int, int], None]
"""(what is being done, how much of it is done, of how much)."""


@dataclass(frozen=True)
class Request:
    """What to build, apart from the source and the encoders. `only`: the buckets to write, when not all."""

    buckets: tuple[Bucket, ...]
    only: tuple[Bucket, ...] | None = None
    limit: int | None = None  # positions of the walk
    seed: int = 0
    batch: int = 16  # pictures per call of an encoder: part of the result, in the last digit
    per_shard: int = 1000
    statistics: str = "measured"  # or "published": the VAE's own; or "like": those of another set


@dataclass(frozen=True)
class Skipped:
    """One sample that is not written, and why."""

    position: int
    id: str
    reason: str
    detail: str = ""


@dataclass
class Plan:
    """Positions per bucket, in the order of the walk, and what is skipped so far."""

    read: int
    positions: dict[Bucket, list[int]]
    skipped: list[Skipped] = field(default_factory=list)

    def shards(self, per_shard: int) -> Iterator[tuple[Bucket, int, list[int]]]:
        """(bucket, number of the shard in it, positions) of every shard to write."""
        for bucket, positions in self.positions.items():
            for number, start in enumerate(range(0, len(positions), per_shard)):
                yield bucket, number, positions[start : start + per_shard]


def counted(skipped: Sequence[Skipped]) -> dict[str, int]:
    """How many were skipped for each reason, the commonest first."""
    return dict(sorted(Counter(one.reason for one in skipped).items(), key=lambda item: (-item[1], item[0])))


def at(source: Source, request: Request, position: int) -> Sample:
    """The sample at a position of the walk. Errors: BadSample of the source."""
    return source[int(permute(position, len(source), request.seed, "shard"))]


def caption_of(source: Source, sample: Sample) -> str | None:
    """The template's answer if the entry has a template, else the field `caption`, else the last answer. None: there is none."""
    said = [turn["content"] for turn in sample["messages"] if turn["role"] == "assistant"]
    own = sample["fields"].get("caption")
    found = own if isinstance(own, str) and not getattr(source, "template", None) else said[-1] if said else None
    return found.strip() or None if found else None


def upright_size(data: bytes) -> tuple[int, int]:
    """Width and height of an encoded picture after its EXIF rotation, from its header. Errors: BadSample."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            return (height, width) if image.getexif().get(_ORIENTATION) in _SIDEWAYS else (width, height)
    except _ERRORS as error:
        raise BadSample(f"not a readable image ({len(data)} bytes, begins {data[:8]!r})") from error


def plan(source: Source, request: Request, *, workers: int = 2, kept: Path | None = None, report: Report = lambda *_: None) -> Plan:
    """Plan every position. `kept`: a folder where the plans of chunks are, and are put."""
    total = min(len(source), request.limit or len(source))
    made = Plan(total, {bucket: [] for bucket in request.only or request.buckets})
    with ThreadPoolExecutor(max(1, workers)) as readers:
        for start in range(0, total, CHUNK):
            file = kept / f"plan-{start // CHUNK:06d}.json" if kept else None
            rows = json.loads(file.read_bytes()) if file and file.is_file() else None
            if rows is None:
                chunk = range(start, min(start + CHUNK, total))
                rows = list(readers.map(lambda position: _place(source, request, position), chunk))
                if file:
                    write_whole(file, json.dumps(rows))
            for position, row in enumerate(rows, start):
                if isinstance(row, int):
                    made.positions[request.buckets[row]].append(position)
                else:
                    made.skipped.append(Skipped(position, *row))
            report("planned", min(start + CHUNK, total), total)
    return made


def _place(source: Source, request: Request, position: int) -> int | list[Any]:
    """The number of the bucket of one position, or [id, reason, detail]."""
    name = f"{source.name}[{permute(position, len(source), request.seed, 'shard')}]"
    try:
        sample = at(source, request, position)
        name = str(sample["id"])
        if not sample["images"]:
            return [name, NO_IMAGE, ""]
        if caption_of(source, sample) is None:
            return [name, NO_CAPTION, ""]
        bucket = nearest(*upright_size(sample["images"][0]), request.buckets)
    except BadSample as error:
        return [name, UNREADABLE, str(error)]
    if request.only and bucket not in request.only:
        return [name, OTHER_BUCKET, bucket.name]
    return request.buckets.index(bucket)
