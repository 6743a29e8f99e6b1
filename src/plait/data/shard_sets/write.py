"""Pack the samples of any source into plain tar shards: a set that webdataset, img2dataset's readers and the source `shards` read.

    000012.tar      samples 120,000 to 129,999 of the source, less those that cannot be used (of 10,000 each)
    skipped.jsonl   those, with the reason of each
    shards.json     the request, counts, statistics, and the samples, bytes and xxh3 of each shard; written last

Every shard is a function of source, request and number, so a set that was killed is finished in the same bytes, by any number of processes.
Unfinished work is in `.packing/`.
"""

import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from plait import __version__, files
from plait.config.secrets import masked
from plait.data.formats import tar_writing
from plait.data.order import permute
from plait.data.shard_sets import work_folder
from plait.data.shard_sets.members import Empty, Packed, Pictures, TooSmall, pack
from plait.data.shard_sets.report import ShardReport, merged
from plait.data.sources.contract import Source
from plait.data.text import NoText
from plait.errors import BadSample, PlaitError, sample_errors

MANIFEST = "shards.json"
WORK = ".packing"
FORMAT = 1
UNREADABLE, TOO_SMALL, EMPTY, NO_TEXT = "unreadable", "a side is too short", "neither picture nor text", "no text"
_AHEAD = 4  # samples read ahead by each thread
_TICK = 256  # samples between two reports

Tick = Callable[[int], None]
"""Called with the number of samples that were done since the call before."""


@dataclass(frozen=True)
class Request:
    """How a set is packed. `per_shard`: samples of the source in a shard; `shuffled`: in a random order by `seed`, not the source's.

    `limit`: only the first so many in that order; `pictures`: what becomes of them.
    """

    per_shard: int = 10_000
    shuffled: bool = False
    seed: int = 0
    limit: int | None = None
    pictures: Pictures = field(default_factory=Pictures)

    def total(self, source: Source) -> int:
        """Return how many samples of a source are read."""
        return len(source) if self.limit is None else min(self.limit, len(source))


@dataclass(frozen=True)
class Shard:
    """One shard to write: its `number` and the folder `out` of the set."""

    source: Source
    request: Request
    out: Path
    number: int

    @property
    def positions(self) -> range:
        """Return the places of its samples in the order of the set."""
        per_shard = self.request.per_shard
        return range(self.number * per_shard, min((self.number + 1) * per_shard, self.request.total(self.source)))

    @property
    def report_file(self) -> Path:
        """Return the path of its counts, written when it is whole, until the set is."""
        return self.out / WORK / f"{self.number:06d}.json"

    def write(self, threads: int, tick: Tick) -> None:
        """Write its tar file, unless no sample can be used, and then its counts. `threads`: that read and encode."""
        report = ShardReport()
        file = self.out / f"{self.number:06d}.tar"
        tar_writing.write(file, self._members(report, threads, tick))
        counts = report.plain()
        if counts["samples"]:
            counts |= {"file": file.name, "size": file.stat().st_size, "xxh3": files.xxh3(file)}
        files.write_json(self.report_file, counts)

    def _members(self, report: ShardReport, threads: int, tick: Tick) -> Iterator[tuple[str, bytes]]:
        """Yield (name, bytes) of the files of its samples, in order."""
        done = 0
        with ThreadPoolExecutor(max(1, threads)) as readers:
            waiting: deque[tuple[int, Future[Packed | tuple[str, str, str]]]] = deque()
            left = iter(self.positions)
            while True:
                while len(waiting) < _AHEAD * max(1, threads) and (position := next(left, None)) is not None:
                    waiting.append((position, readers.submit(self._pack, position)))
                if not waiting:
                    break
                position, job = waiting.popleft()
                packed = job.result()
                if isinstance(packed, Packed):
                    report.add(packed)
                    yield from ((f"{position:09d}.{kind}", body) for kind, body in packed.members)
                else:
                    report.skip(position, *packed)
                done += 1
                if done % _TICK == 0:
                    tick(_TICK)
        tick(done % _TICK)

    def _pack(self, position: int) -> Packed | tuple[str, str, str]:
        """Return the files of one sample, or (id, reason, detail) where it is skipped."""
        shuffled = self.request.shuffled
        index = int(permute(position, len(self.source), self.request.seed, "pack")) if shuffled else position
        try:
            with sample_errors:
                return pack(self.source, index, f"{position:09d}", self.request.pictures)
        except BadSample as error:
            cause = error if isinstance(error, TooSmall | Empty) else error.__cause__
            reason = TOO_SMALL if isinstance(cause, TooSmall) else EMPTY if isinstance(cause, Empty) else UNREADABLE
            reason = NO_TEXT if isinstance(error, NoText) else reason
            return error.sample or f"{self.source.name}[{index}]", reason, "" if reason == EMPTY else masked(str(error))


Run = Callable[[list[Shard], Tick], None]
"""Writes shards, in this process or others."""


def build(source: Source, out: Path, request: Request, *, run: Run, report: Callable[[str, int, int], None]) -> dict[str, Any]:
    """Pack the source into the folder `out`, or finish a set that was begun there; return what shards.json holds.

    `run`: writes the shards that are missing; `report`: called with ("packed", samples done, of how many). Raises PlaitError if the folder
    holds another set or something else, if another process packs there, and if no sample can be used.
    """
    signature = _signature(source, request)
    if (out / MANIFEST).is_file():
        manifest: dict[str, Any] = json.loads((out / MANIFEST).read_bytes())
        work_folder.compare(manifest.get("request", {}), signature, out)
        shutil.rmtree(out / WORK, ignore_errors=True)
        return manifest
    work = out / WORK
    if not work.is_dir() and out.is_dir() and any(out.iterdir()):
        raise PlaitError(f"{out} is not empty: name a new folder")
    work.mkdir(parents=True, exist_ok=True)
    with work_folder.locked(work):
        work_folder.check_request(work / "request.json", signature, out)
        shards = [Shard(source, request, out, number) for number in range(-(-request.total(source) // request.per_shard))]
        done = sum(len(shard.positions) for shard in shards if shard.report_file.is_file())

        def tick(count: int) -> None:
            nonlocal done
            done += count
            report("packed", done, request.total(source))

        run([shard for shard in shards if not shard.report_file.is_file()], tick)
        reports = [json.loads(shard.report_file.read_bytes()) for shard in shards]
        manifest = _manifest(source, request, signature, reports)
        rows = [row for shard_report in reports for row in shard_report["skipped_samples"]]
        files.write_whole(out / "skipped.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        files.write_json(out / MANIFEST, manifest)
    shutil.rmtree(work)
    return manifest


def _signature(source: Source, request: Request) -> dict[str, Any]:
    """Return all that the bytes of the set depend on, as plain data."""
    return {
        "plait": __version__,
        "format": FORMAT,
        "source": {"name": source.name, "samples": len(source), "fingerprint": source.fingerprint},
        **asdict(request),
    }


def _manifest(source: Source, request: Request, signature: Mapping[str, Any], reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what shards.json holds. Raises PlaitError where no sample could be used."""
    counts = merged(reports)
    if not counts["samples"]:
        first = reports[0]["skipped_samples"][0]
        why = f"{first['id']}: {first['reason']}{': ' * bool(first['detail'])}{first['detail']}"
        raise PlaitError(f"none of the {request.total(source):,} samples of {source.name} can be packed; the first: {why}")
    assert counts["samples"] + sum(counts["skipped"].values()) == request.total(source), "every sample is packed or skipped"
    shards = {row["file"]: {name: row[name] for name in ("samples", "size", "xxh3")} for row in reports if "file" in row}
    return {"request": dict(signature), "read": request.total(source), **counts, "shards": shards}
