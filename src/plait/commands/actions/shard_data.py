"""What `plait data shard` does: encode pictures with captions, from any source (dataset), into tar shards of latents and features.

A bucket is a crop size; a set is the folder that is written, with a folder of tar shards per bucket and metadata.json.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from plait.config import reading
from plait.config.schema import SourceEntry
from plait.data import addresses, aspect, paths
from plait.data.latent_shards import statistics, write
from plait.data.latent_shards.plan import Plan, Report, Request, count_reasons, plan
from plait.data.records import IMAGE_KINDS
from plait.data.sources import folder
from plait.data.sources.metadata import read_metadata
from plait.data.sources.open import open_source
from plait.errors import PlaitError
from plait.nn import encoders

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardOptions:
    """How a set of latent shards is made. `buckets`: crop sizes, "WIDTHxHEIGHT,..."; `bucket`: those of them to write (empty: all).

    `latents`, `texts`, `images`: encoders, each a folder, a Hub repository[/part][@revision] or "tiny" (random), run on `device`. `split`:
    of the source. `max_tokens`: captions are cut there (None: the encoder's own limit). `min_side`: skip smaller pictures (pixels);
    `uncaptioned`: write pictures without a caption; `limit`: samples to read; `seed`: of their order; `batch`: pictures per call of an
    encoder; `per_shard`: samples in a tar file. `statistics`: normalise latents by "measured" or "published" mean and standard deviation;
    `like`: by those of this other set. `workers`: decoding threads. `dry_run`: write nothing.
    """

    split: str = "train"
    buckets: str = ",".join(bucket.name for bucket in aspect.STANDARD)
    bucket: Sequence[str] = ()
    latents: str | None = None
    texts: str | None = None
    images: str | None = None
    max_tokens: int | None = None
    min_side: int | None = None
    uncaptioned: bool = False
    limit: int | None = None
    seed: int = 0
    batch: int = 16
    per_shard: int = 1000
    statistics: str = "measured"
    like: Path | None = None
    workers: int = 2
    device: str = "cpu"
    dry_run: bool = False


_KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".tar": "shards",
    **dict.fromkeys((".csv", ".tsv", ".parquet", ".arrow"), "datasets"),
}
"""The kind of source that reads a file, by its ending."""
_HUB = "hf://datasets/"
_TEXTS = ("template", "columns")
"""Sections of an entry whose settings are texts, such as `{label}`, which as YAML would be a mapping."""
_PICTURES = frozenset(f".{kind}" for kind in IMAGE_KINDS)
OPTIONS = frozenset(ShardOptions.__dataclass_fields__)
"""The names of its fields."""


def shard(what: str, out: Path | None, options: ShardOptions, settings: Sequence[str] = ()) -> None:
    """Encode the source `what` into the set at `out`, or finish one that was interrupted. With `dry_run` only print what it would hold.

    `what`: "scenes" (drawn), a .jsonl, tar shards, or a folder of pictures. `out`: None only with `dry_run`. `settings`: of the source,
    such as "options.size=[64,64]". Raises PlaitError for a wrong argument, source or setting.
    """
    if not 1 <= options.per_shard <= 1000:
        raise PlaitError(f"--per-shard={options.per_shard}: a shard holds 1 to 1000 samples")
    if options.batch < 1 or (options.limit is not None and options.limit < 1):
        raise PlaitError("--batch and --limit are at least 1")
    request = Request(
        buckets=tuple(aspect.parse(name) for name in options.buckets.split(",")),
        only=tuple(aspect.parse(name) for name in options.bucket) or None,
        limit=options.limit,
        seed=options.seed,
        batch=options.batch,
        per_shard=options.per_shard,
        statistics=options.statistics,
        min_side=options.min_side,
        uncaptioned=options.uncaptioned,
    )
    if unknown := next((bucket for bucket in request.only or () if bucket not in request.buckets), None):
        raise PlaitError(f"--bucket={unknown.name} is none of the buckets {options.buckets}; name them all with --buckets=A,B,...")
    wanted = entry(what, [*settings, "allow_blank=true"] if options.uncaptioned else settings)
    source = open_source(wanted, seed=options.seed, split=options.split)
    if options.dry_run:
        with show_progress() as report:
            planned = plan(source, request, workers=options.workers, report=report)
        log.info("\n".join(_planned(planned)))
        _warn_of_empty(options, {bucket.name: len(positions) for bucket, positions in planned.positions.items()})
        return
    if out is None:
        raise PlaitError("name the folder to write after the source, or give --dry-run")
    chosen = _encoders(options)
    like = read_metadata(options.like) if options.like else None
    log.info(f"{source.name}: {len(source)} samples; encoders: " + ", ".join(f"{k} {v['name']}" for k, v in chosen.facts().items()))
    with show_progress() as report:
        metadata = write.build(source, chosen, out, request, like=like, workers=options.workers, report=report)
    log.info("\n".join([*_made(metadata), str(out)]))
    _warn_of_empty(options, {name: row["samples"] for name, row in metadata["buckets"].items()})


def _encoders(options: ShardOptions) -> write.Encoders:
    """Open the three encoders that the options name. Raises PlaitError where one is not named: there is none that suits any data."""
    named = {"latents": options.latents, "texts": options.texts, "images": options.images}
    if missing := [name for name, value in named.items() if value is None]:
        raise PlaitError(
            f"name the encoder for --{', --'.join(missing)}: a folder, a Hub repository[/part][@revision], or `tiny`, which is random "
            "and only for trying things out"
        )
    return write.Encoders(
        encoders.open_latents(str(options.latents), options.device),
        encoders.open_texts(str(options.texts), options.max_tokens, options.device),
        encoders.open_images(str(options.images), options.device),
    )


def measure(path: Path) -> None:
    """Write `path`/metadata.json, with statistics of the latents, for a set made by another tool, and print what was read.

    Raises PlaitError for a folder without shards.
    """
    with show_progress() as report:
        metadata = statistics.measure(path, report)
    counts = metadata["counts"]
    log.info(
        f"{path}: {counts['read']} samples read, {counts['unusable']} unusable; statistics of {metadata['latents']['channels']} channels"
    )


def entry(what: str, settings: Sequence[str]) -> SourceEntry:
    """Return an item of `data.train` for `what`: "scenes" (drawn), or a path or address of data.

    Records (JSON, CSV, parquet, Arrow), tar shards, a folder of pictures or of these, or hf://datasets/OWNER/NAME.

    `settings`: such as "options.size=[64,64]". Raises PlaitError for anything else, and for a setting that a source does not have.
    """
    values: dict[str, Any] = {"source": "scenes"} if what == "scenes" else {"source": _kind(what), "path": what}
    if what.startswith(_HUB) and what.removeprefix(_HUB).rstrip("/").count("/") == 1:
        values = {"source": "datasets", "name": what.removeprefix(_HUB).rstrip("/")}
    for setting in settings:
        name, _, text = setting.partition("=")
        *above, last = name.split(".")
        section = values
        for key in above:
            section = section.setdefault(key, {})
            if not isinstance(section, dict):
                raise PlaitError(f"--{name}: {key} is not a section")
        try:
            value = reading.scalar(text)
        except yaml.YAMLError as error:
            raise PlaitError(f"--{name}={text} is not a value: {str(error).splitlines()[0]}") from error
        section[last] = text if above and above[0] in _TEXTS and not isinstance(value, str) else value
    try:
        return SourceEntry.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        known = ", ".join(name for name in SourceEntry.model_fields if name != "source")
        raise PlaitError(f"--{'.'.join(map(str, first['loc']))}: {first['msg']}; a source takes {known}") from error


def _kind(what: str) -> str:
    ending = PurePosixPath(addresses.shown(what)).suffix.lower()
    if ending in _KINDS:
        return "datasets" if _KINDS[ending] == "jsonl" and addresses.is_remote(what) else _KINDS[ending]
    path = paths.local(what)
    beside = {file.suffix.lower() for file in path.iterdir() if not file.name.startswith(".")} if path.is_dir() else set[str]()
    if addresses.is_remote(what) or ".tar" in beside:
        return "shards"
    if path.is_dir():
        saved = any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
        pictured = any((path / name).is_file() for name in folder.METADATA)
        rows = {_KINDS[ending] for ending in beside & _KINDS.keys()}
        return "datasets" if saved or ("datasets" in rows and not pictured and not beside & _PICTURES) else "folder"
    raise PlaitError(f"{what!r} is no folder of pictures, .jsonl, .json, .csv, .parquet, tar shards or `scenes`")


def _planned(planned: Plan) -> list[str]:
    """Return the lines of a dry run: samples per bucket, and what would be read, written and skipped."""
    total = sum(map(len, planned.positions.values()))
    lines = [f"{bucket.name:>11}  {len(positions):>9} samples" for bucket, positions in planned.positions.items()]
    return [*lines, f"read {planned.read}, to write {total}, skipped: {write.reasons_text(count_reasons(planned.skipped))}"]


def _made(metadata: Mapping[str, Any]) -> list[str]:
    """Return the lines of a finished build: contents of each bucket, samples skipped, captions cut, pictures enlarged."""
    counts, texts, pictures = metadata["counts"], metadata["texts"], metadata["pictures"]
    lines = [
        f"{name:>11}  {row['samples']:>9} samples  {row['tokens']:>10} tokens  {len(row['shards']):>5} shards"
        for name, row in metadata["buckets"].items()
    ]
    lines.append(f"read {counts['read']}, written {counts['written']}, skipped: {write.reasons_text(counts['skipped'])}")
    lines.append(f"captions: {texts['captions']} of {counts['written'] - texts['uncaptioned']} pictures, {texts['uncaptioned']} have none")
    lines.append(f"captions: {texts['truncated_share']:.1%} cut at {texts['max_tokens']} tokens, {texts['naming_a_side']} name a side")
    if pictures["enlarged"]:
        lines.append(f"{pictures['enlarged']} pictures are smaller than their bucket and were enlarged")
    return lines


def _warn_of_empty(options: ShardOptions, samples: Mapping[str, int]) -> None:
    """Warn of buckets that were asked for by name and got no picture. `samples`: of each bucket, by its name."""
    empty = [name for name, count in samples.items() if not count]
    if empty and options.buckets != ShardOptions.buckets:
        log.warning(f"no picture went into {', '.join(empty)}: none has nearly its shape, or all that have are smaller than --min-side")


@contextlib.contextmanager
def show_progress() -> Iterator[Report]:
    """Yield a progress callback: a bar on a terminal, elsewhere one line per tenth."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield report


class _Lines:
    """Writes a line to standard error whenever another tenth is done."""

    def __init__(self) -> None:
        self._tenths: dict[str, int] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        tenth = 10 * done // max(total, 1)
        if tenth > self._tenths.get(what, 0):
            self._tenths[what] = tenth
            sys.stderr.write(f"{what} {done} of {total}\n")
