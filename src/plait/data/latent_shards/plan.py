"""Assign the images of a source (a data set) to aspect-ratio buckets, from image headers and captions only, before anything is encoded.

A build visits the source in a shuffled order, the walk: position p of it is sample permute(p), so that any first part is a random sample.
The plan of each chunk of positions is a pure function of the request; kept in a folder, it is made once and survives a kill.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from plait.data import image_files, text
from plait.data.aspect import Bucket, nearest
from plait.data.order import permute
from plait.data.records import as_list
from plait.data.sources.contract import Sample, Source, read
from plait.errors import BadSample, sample_errors
from plait.files import write_whole

CHUNK = 4096
"""Positions planned at once."""
OTHER_BUCKET = "in a bucket that is not asked for"
"""Reason of samples that are not written because their bucket is not among `Request.only`."""
NO_IMAGE, NO_CAPTION, TOO_SMALL, UNREADABLE = "no image", "no caption", "a side is too short", "unreadable"
SEVERAL, CONVERSATIONS = "with several pictures, where one makes a sample", "with several conversations, where one makes a sample"

Report = Callable[[str, int, int], None]
"""Called with (activity, such as "planned"; how many samples are done; of how many)."""


@dataclass(frozen=True)
class Request:
    """The parameters of a build of latent shards (encoded images). `buckets`: crop sizes; `only`: those of them to write (None: all).

    `limit`: at most so many samples are looked at, in an order shuffled by `seed`. `batch`: pictures per call of an encoder, which may
    change the last digit of its result. `per_shard`: samples in a file. `statistics`: those that latents are normalised by: "measured",
    "published" (the VAE's own) or "like" (those of another set).
    `min_side`: pictures with a shorter side, in pixels, are skipped. `uncaptioned`: pictures without a caption are written, not skipped.
    """

    buckets: tuple[Bucket, ...]
    only: tuple[Bucket, ...] | None = None
    limit: int | None = None
    seed: int = 0
    batch: int = 16
    per_shard: int = 1000
    statistics: str = "measured"
    min_side: int | None = None
    uncaptioned: bool = False


@dataclass(frozen=True)
class Skipped:
    """One sample that is not written. `position`: in the shuffled order, `reason`: such as "no caption", `detail`: the text of an error."""

    position: int
    id: str
    reason: str
    detail: str = ""


@dataclass
class Plan:
    """Which positions of the walk (shuffled order) go to each bucket, and which are skipped; `read`: how many were looked at."""

    read: int
    positions: dict[Bucket, list[int]]
    skipped: list[Skipped] = field(default_factory=list)

    def shards(self, per_shard: int) -> Iterator[tuple[Bucket, int, list[int]]]:
        """Yield (bucket, number of the shard in it, from 0, its positions) for every shard to write; each has up to `per_shard`."""
        for bucket, positions in self.positions.items():
            for number, start in enumerate(range(0, len(positions), per_shard)):
                yield bucket, number, positions[start : start + per_shard]


def count_reasons(skipped: Sequence[Skipped]) -> dict[str, int]:
    """Count the skipped samples by reason, the commonest first: {"no caption": 12, "unreadable": 1}."""
    return dict(sorted(Counter(row.reason for row in skipped).items(), key=lambda item: (-item[1], item[0])))


def sample_at(source: Source, request: Request, position: int) -> Sample:
    """Return the sample at a position of the walk (the shuffled order, by `request.seed`); without messages where its text is absent.

    Raises BadSample if it cannot be read, BrokenSource if it is no sample.
    """
    index = int(permute(position, len(source), request.seed, "shard"))
    try:
        return read(source, index)
    except text.NoText:
        return source.peek(index)


def captions_of(source: Source, sample: Sample) -> list[str]:
    """Return the captions of a sample, [] if it has none; duplicates and blank ones are left out.

    They are the texts in the fields `captions` (a list) and `caption` (a text or a list) of the record; where both are without text, or
    the source has a template (a configured pattern that makes messages of a record), the sample's last assistant message.
    """
    answers = [turn["content"] for turn in sample["messages"] if turn["role"] == "assistant"][-1:]
    given = [] if source.has_template else _own_captions(sample)
    found = given or answers
    return list(dict.fromkeys(caption.strip() for caption in found if not text.blank(caption)))


def _own_captions(sample: Sample) -> list[str]:
    return [one for name in ("captions", "caption") for one in as_list(sample["fields"].get(name)) if isinstance(one, str)]


def plan(source: Source, request: Request, *, workers: int = 2, kept: Path | None = None, report: Report = lambda *_: None) -> Plan:
    """Assign every position of the walk (the shuffled order) to a bucket, or skip it: unreadable, too small, ..., with `workers` threads.

    `kept`: folder that keeps the plan of each finished chunk for a restart (None: none). `report`: called with ("planned", done, total).
    """
    total = min(len(source), request.limit or len(source))
    result = Plan(total, {bucket: [] for bucket in request.only or request.buckets})
    with ThreadPoolExecutor(max(1, workers)) as readers:
        for start in range(0, total, CHUNK):
            file = kept / f"plan-{start // CHUNK:06d}.json" if kept else None
            rows = json.loads(file.read_bytes()) if file and file.is_file() else None
            if rows is None:
                chunk = range(start, min(start + CHUNK, total))
                rows = list(readers.map(partial(_plan_position, source, request), chunk))
                if file:
                    write_whole(file, json.dumps(rows))
            for position, row in enumerate(rows, start):
                if isinstance(row, int):
                    result.positions[request.buckets[row]].append(position)
                else:
                    result.skipped.append(Skipped(position, *row))
            report("planned", min(start + CHUNK, total), total)
    return result


def _plan_position(source: Source, request: Request, position: int) -> int | list[str]:
    """Return the number of the bucket of one position, or [id, reason, detail] when it is skipped."""
    name = f"{source.name}[{permute(position, len(source), request.seed, 'shard')}]"
    try:
        with sample_errors:
            sample = sample_at(source, request, position)
            name = str(sample["id"])
            if not sample["images"]:
                return [name, NO_IMAGE, ""]
            if len(sample["images"]) > 1:
                return [name, SEVERAL, f"{len(sample['images'])} pictures; make each that is to be learned a sample of its own"]
            if len(sample.get("annotations", ())) > 1 and not _own_captions(sample):
                return [name, CONVERSATIONS, f"{len(sample['annotations'])} conversations; make each a sample of its own"]
            if not request.uncaptioned and not captions_of(source, sample):
                return [name, NO_CAPTION, ""]
            size = image_files.size(sample["images"][0])
            if min(size) < (request.min_side or 0):
                return [name, TOO_SMALL, f"{size[0]}x{size[1]}"]
            bucket = nearest(*size, request.buckets)
    except BadSample as error:
        return [error.sample or name, UNREADABLE, str(error)]
    if request.only and bucket not in request.only:
        return [name, OTHER_BUCKET, bucket.name]
    return request.buckets.index(bucket)
