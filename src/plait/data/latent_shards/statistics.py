"""Counts and per-channel statistics of latent shards, and the `metadata.json` of a set of shards, which sums them up.

Sums are float64 and over the values as they are stored, so that what is read back has mean 0 and deviation 1. Shapes: C channels, H
height, W width of a latent.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from plait import __version__, files
from plait.data import paths
from plait.data.aspect import Bucket
from plait.data.formats import npy
from plait.data.latent_shards.plan import Skipped
from plait.data.sources.latents import bucket_folders
from plait.data.sources.metadata import METADATA
from plait.data.sources.shards import Shards
from plait.errors import BadSample, PlaitError


@dataclass
class Moments:
    """Running sums of values (`sum`) and of their squares per channel, (C,) each, and the `count` of values per channel added."""

    sum: np.ndarray
    squares: np.ndarray
    count: int = 0

    @classmethod
    def of(cls, channels: int) -> Self:
        """Return sums of zero for this number of channels."""
        return cls(np.zeros(channels), np.zeros(channels))

    def add(self, latent: np.ndarray) -> None:
        """Add the values of one latent (C, H, W) to the sums."""
        values = latent.astype(np.float64).reshape(len(latent), -1)
        self.sum += values.sum(1)
        self.squares += (values * values).sum(1)
        self.count += values.shape[1]

    def merge(self, sums: Mapping[str, Any]) -> None:
        """Add the sums of another `Moments` in place; `sums` is what its `as_json` returned."""
        self.sum += sums["sum"]
        self.squares += sums["squares"]
        self.count += sums["count"]

    def as_json(self) -> dict[str, Any]:
        """Return {"sum", "squares", "count"} as lists and a number, which JSON can hold."""
        return {"sum": self.sum.tolist(), "squares": self.squares.tolist(), "count": self.count}

    def statistics(self) -> dict[str, Any]:
        """Return {"mean", "std": a list each, per channel; "values_per_channel"; "constant_channels": indices, whose std is given as 1}."""
        mean = self.sum / self.count
        variance = np.maximum(self.squares / self.count - mean**2, 0)
        constant = variance <= 1e-12 * np.maximum(self.squares / self.count, 1e-12)
        std = np.where(constant, 1.0, np.sqrt(variance))
        return {
            "mean": mean.tolist(),
            "std": std.tolist(),
            "values_per_channel": self.count,
            "constant_channels": np.flatnonzero(constant).tolist(),
        }


@dataclass
class Tally:
    """The counts and statistics of one shard of a bucket (a picture size), updated while it is written.

    `file`: the shard's name; `samples`: how many it has; `moments`: sums over their latents.
    `skipped`: samples that could not be written, each with its reason; they are in none of the counts.
    `captions`: how many; `uncaptioned`: samples without any; `tokens`: text tokens stored; `truncated`: captions that lost some; `sided`:
    captions that name left or right; `enlarged`: images smaller than the bucket; `widths`, `heights`: [least, most] of the originals;
    `left_out`: fields that JSON cannot hold.
    """

    bucket: Bucket
    file: str
    moments: Moments
    samples: int = 0
    captions: int = 0
    uncaptioned: int = 0
    tokens: int = 0
    truncated: int = 0
    sided: int = 0
    enlarged: int = 0
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    left_out: set[str] = field(default_factory=set)
    skipped: list[Skipped] = field(default_factory=list)

    def add(self, latent: np.ndarray, size: tuple[int, int], tokens: Sequence[tuple[int, int]], sided: int) -> None:
        """Count one sample: latent (C, H, W), image size (width, height), `tokens`, (stored, in all) of each caption.

        `sided`: how many of its captions name left or right.
        """
        self.moments.add(latent)
        self.samples += 1
        self.captions += len(tokens)
        self.uncaptioned += not tokens
        self.tokens += sum(stored for stored, _ in tokens)
        self.truncated += sum(whole > stored for stored, whole in tokens)
        self.sided += sided
        self.enlarged += size[0] < self.bucket.width or size[1] < self.bucket.height
        self.widths = [min([*self.widths, size[0]]), max([*self.widths, size[0]])]
        self.heights = [min([*self.heights, size[1]]), max([*self.heights, size[1]])]

    def fields(self, source_fields: Mapping[str, Any], build_fields: Mapping[str, Any]) -> bytes:
        """Return a sample's `.json` file: the source's fields that JSON can hold, overridden by `build_fields` (caption, bucket, ...).

        The names of those that it cannot hold are added to `left_out`.
        """
        kept: dict[str, Any] = {}
        for name, value in source_fields.items():
            try:
                json.dumps(value, allow_nan=False)
                kept[name] = value
            except (TypeError, ValueError):
                self.left_out.add(name)
        return json.dumps(kept | dict(build_fields), ensure_ascii=False, sort_keys=True).encode(errors="backslashreplace")

    def report(self, xxh3: str) -> dict[str, Any]:
        """Return these counts as JSON values by name, for `merge_reports`. `xxh3`: the hash of the finished shard file ("": no file)."""
        plain = {name: value for name, value in vars(self).items() if name not in ("bucket", "moments", "left_out", "skipped")}
        rest = {"bucket": self.bucket.name, "moments": self.moments.as_json(), "xxh3": xxh3, "left_out": sorted(self.left_out)}
        return plain | rest | {"skipped": [asdict(row) for row in self.skipped]}


def merge_reports(
    reports: Sequence[Mapping[str, Any]], buckets: Sequence[str], encoders: Mapping[str, Any], chosen: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the sections of `metadata.json` that sum up the shards, by name.

    `latents`: channels, downsample and what `Moments.statistics` returns, or `chosen` with that as "measured"; `texts`: width, max_tokens,
    counts of captions and tokens; `images`: width; `pictures`: [least, most] width and height, how many were enlarged; `buckets`: by name
    {"samples", "tokens", "shards"}; `fields_left_out`: names. `reports`: of `Tally.report`, one per shard. `buckets`: names of the crop
    sizes. `encoders`: the shapes of what each makes, as `Encoders.facts` returns. `chosen`: {"mean", "std": a list each, per channel;
    "from": a text} by which a reader normalises latents; None: the measured ones.
    """
    moments = Moments.of(encoders["latents"]["channels"])
    for report in reports:
        moments.merge(report["moments"])
    shapes = {name: encoders["latents"][name] for name in ("channels", "downsample")}
    measured = moments.statistics()
    latents = {**shapes, **measured, "from": "measured"}
    if chosen is not None:
        latents = {**shapes, **chosen, "measured": measured}
    counted = ("captions", "uncaptioned", "tokens", "truncated", "sided", "enlarged")
    whole = {name: sum(report[name] for report in reports) for name in counted}
    texts = {
        **{name: encoders["texts"][name] for name in ("width", "max_tokens")},
        **{name: whole[name] for name in ("captions", "uncaptioned", "tokens", "truncated")},
        "truncated_share": whole["truncated"] / max(1, whole["captions"]),
        "naming_a_side": whole["sided"],
    }
    return {
        "latents": latents,
        "texts": texts,
        "images": {"width": encoders["images"]["width"]},
        "pictures": {**{side: _range(reports, f"{side}s") for side in ("width", "height")}, "enlarged": whole["enlarged"]},
        "buckets": {name: _bucket([report for report in reports if report["bucket"] == name]) for name in buckets},
        "fields_left_out": sorted({name for report in reports for name in report["left_out"]}),
    }


def _range(reports: Sequence[Mapping[str, Any]], sides: str) -> list[int]:
    lengths = [length for report in reports for length in report[sides]]
    return [min(lengths), max(lengths)]


def _bucket(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    shards = [{name: report[name] for name in ("file", "samples", "xxh3")} for report in reports if report["samples"]]
    return {
        "samples": sum(report["samples"] for report in reports),
        "tokens": sum(report["tokens"] for report in reports),
        "shards": shards,
    }


def measure(root: Path, report: Callable[[str, int, int], None] = lambda *_: None) -> dict[str, Any]:
    """Write and return the `metadata.json` of a set in folder `root` made by another tool: latent statistics, widths of the vectors.

    It has a folder of tar shards per bucket (`832x1216` or `bucket_832x1216`), whose samples have members `.vae.npy` (C, H, W),
    `.dinov3.npy` (D,) and, but for pictures without a caption, `.t5h.npy` (L, D). Samples whose latents are missing, not finite or of
    another shape, or whose image vector is missing, are counted as unusable. Raises PlaitError when none is left, when none has text
    states, and when the set has metadata already. `report` is called with ("measured", samples done, of how many).
    """
    if (root / METADATA).exists():
        raise PlaitError(f"{root} has a {METADATA}; remove it to measure the set again")
    sets = {bucket: Shards(paths.files(str(folder), ".tar", split=None), None, {}) for bucket, folder in bucket_folders(root).items()}
    total, read, bad = sum(map(len, sets.values())), 0, 0
    first: _FirstSample | None = None
    text_width = None
    for bucket, shards in sets.items():
        for i in range(len(shards)):
            read += 1
            arrays = _read_arrays(shards, i)
            if arrays is None:
                bad += 1
                continue
            latent, width, image_width = arrays
            text_width = text_width or width
            if first is None:
                first = _FirstSample(max(1, bucket.height // latent.shape[1]), image_width, Moments.of(len(latent)))
            if latent.shape == (len(first.moments.sum), bucket.height // first.downsample, bucket.width // first.downsample):
                first.moments.add(latent)
            else:
                bad += 1
        report("measured", read, total)
    if first is None or not first.moments.count or text_width is None:
        raise PlaitError(f"no sample of {root} has .vae.npy, .t5h.npy and .dinov3.npy that can be used: {read} tried, {bad} bad")
    metadata = {
        "plait": __version__,
        "made": "elsewhere, and measured here",
        "latents": {"channels": len(first.moments.sum), "downsample": first.downsample, **first.moments.statistics(), "from": "measured"},
        "texts": {"width": text_width},
        "images": {"width": first.image_width},
        "buckets": {bucket.name: {"samples": len(shards)} for bucket, shards in sets.items()},
        "counts": {"read": read, "unusable": bad},
    }
    files.write_json(root / METADATA, metadata)
    return metadata


@dataclass(frozen=True)
class _FirstSample:
    """The shapes of a set's first good sample, and the sums over those that have the same."""

    downsample: int
    image_width: int
    moments: Moments


def _read_arrays(shards: Shards, i: int) -> tuple[np.ndarray, int | None, int] | None:
    """Return (latents (C, H, W), width of text states or None, width of image vector) of a sample. None if it cannot be used."""
    name, pairs = shards.members(i)
    members = dict(pairs)
    try:
        latent, vector = (npy.parse(members.get(f"{kind}.npy", b""), f"{name}.{kind}.npy") for kind in ("vae", "dinov3"))
        text = npy.parse(members["t5h.npy"], f"{name}.t5h.npy") if "t5h.npy" in members else None
    except BadSample:
        return None
    usable = latent.ndim == 3 and (text is None or text.ndim == 2) and vector.ndim == 1 and bool(np.isfinite(latent).all())
    return (latent, None if text is None else text.shape[1], vector.shape[0]) if usable else None
