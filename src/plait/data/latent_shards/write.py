"""Pictures with captions to a set of bucketed latent shards (latents.py reads them): crop, encode, write, measure.

Every shard is a pure function of (source, request, encoders, its positions), so a build that was killed goes on where it was, and ends in
the same bytes as one that was not. Work in progress lives in `.building/` of the set; `metadata.json`, written last, makes it complete.
"""

import fcntl
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from plait import __version__, files
from plait.data import captions, images
from plait.data.aspect import Bucket
from plait.data.formats import npy
from plait.data.latent_shards.plan import UNREADABLE, Plan, Report, Request, Skipped, at, caption_of, counted, plan, upright_size
from plait.data.latent_shards.statistics import Moments, Tally, merged
from plait.data.sources.metadata import METADATA
from plait.data.sources.open import Sample, Source
from plait.errors import BadSample, PlaitError

FORMAT = 1
NOT_FINITE = "encoded to values that are not finite"
_WORK = ".building"


class LatentEncoder(Protocol):
    """What the build needs of a VAE. `published`: its own mean and deviation per channel."""

    pin: dict[str, Any]
    channels: int
    downsample: int
    published: tuple[list[float], list[float]] | None

    def encode(self, images: Tensor, /) -> Tensor: ...


class TextEncoder(Protocol):
    """Captions to (states (L, width), tokens before truncation)."""

    pin: dict[str, Any]
    width: int
    max_tokens: int

    def encode(self, captions: list[str], /) -> list[tuple[np.ndarray, int]]: ...


class ImageEncoder(Protocol):
    """Pictures to vectors (B, width)."""

    pin: dict[str, Any]
    width: int

    def encode(self, images: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Encoders:
    """The three that make a set."""

    latents: LatentEncoder
    texts: TextEncoder
    images: ImageEncoder

    def facts(self) -> dict[str, Any]:
        """What the metadata says about them."""
        return {
            "latents": {**self.latents.pin, "channels": self.latents.channels, "downsample": self.latents.downsample},
            "texts": {**self.texts.pin, "width": self.texts.width, "max_tokens": self.texts.max_tokens},
            "images": {**self.images.pin, "width": self.images.width},
        }


@dataclass(frozen=True)
class _Crop:
    """One picture ready to encode. `size`: its own width and height."""

    position: int
    sample: Sample
    caption: str
    pixels: Tensor
    size: tuple[int, int]


def build(
    source: Source,
    encoders: Encoders,
    out: Path,
    request: Request,
    *,
    like: Mapping[str, Any] | None = None,
    workers: int = 2,
    report: Report,
) -> dict[str, Any]:
    """Make the set at `out`, or finish it; returns its metadata. `like`: the metadata of the set whose statistics this one shares.

    Raises PlaitError when `out` holds another build, when another process builds there, or when nothing can be written.
    """
    asked = _asked(source, encoders, request, like)
    done = _finished(out, asked)
    if done is not None:
        return done
    work = out / _WORK
    work.mkdir(parents=True, exist_ok=True)
    with _locked(work):
        _same(work / "request.json", asked, out)
        planned = plan(source, request, workers=workers, kept=work, report=report)
        shards = list(planned.shards(request.per_shard))
        if not shards:
            raise PlaitError(f"there is nothing to write: of {planned.read} samples read, {said(counted(planned.skipped))}")
        total, written = sum(len(positions) for *_, positions in shards), 0
        reports = []
        for bucket, number, positions in shards:
            place = work / f"{bucket.name}-{number:06d}.json"
            if not place.is_file():
                files.write_json(place, _shard(source, encoders, request, out, bucket, number, positions, workers))
            reports.append(json.loads(place.read_bytes()))
            report("written", written := written + len(positions), total)
        metadata = _metadata(encoders, request, asked, planned, reports)
        skipped = [*map(asdict, planned.skipped), *(row for one in reports for row in one["skipped"])]
        rows = sorted(skipped, key=lambda row: row["position"])
        files.write_whole(out / "skipped.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        files.write_json(out / METADATA, metadata)
    shutil.rmtree(work)
    return metadata


def _asked(source: Source, encoders: Encoders, request: Request, like: Mapping[str, Any] | None) -> dict[str, Any]:
    """Everything that the bytes of the set depend on, as plain data."""
    step = 2 * encoders.latents.downsample  # of which a transformer's patch of 2 latent cells leaves no half
    for bucket in request.buckets:
        if bucket.width % step or bucket.height % step:
            raise PlaitError(f"bucket {bucket.name}: both sides must be multiples of {step} with encoder {encoders.latents.pin['name']}")
    if request.only and (unknown := next((b for b in request.only if b not in request.buckets), None)):
        raise PlaitError(f"there is no bucket {unknown.name} to write; the buckets are {', '.join(b.name for b in request.buckets)}")
    if request.statistics == "published" and encoders.latents.published is None:
        raise PlaitError(f"encoder {encoders.latents.pin['name']} publishes no statistics; take the measured ones")
    if like is not None and (theirs := like.get("encoders", {})) != encoders.facts():
        other = next(kind for kind, facts in encoders.facts().items() if theirs.get(kind) != facts)
        raise PlaitError(
            f"the other set has {other} of {theirs.get(other)}, this one of {encoders.facts()[other]}: they cannot share statistics"
        )
    names = {"buckets": [b.name for b in request.buckets], "only": [b.name for b in request.only] if request.only else None}
    told = like["latents"] if like else None
    return {
        "plait": __version__,
        "format": FORMAT,
        "source": {"name": source.name, "samples": len(source), "fingerprint": source.fingerprint},
        "encoders": encoders.facts(),
        **{name: value for name, value in asdict(request).items() if name not in names},
        **names,
        "like": {"mean": told["mean"], "std": told["std"]} if told else None,
    }


def _finished(out: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """The metadata of a complete set that is the one asked for."""
    if not (out / METADATA).is_file():
        return None
    found = json.loads((out / METADATA).read_bytes())
    _compare(found.get("request", {}), asked, out)
    shutil.rmtree(out / _WORK, ignore_errors=True)
    return found


def _same(place: Path, asked: dict[str, Any], out: Path) -> None:
    """Keep the request of a new build, or refuse to mix two."""
    if place.is_file():
        _compare(json.loads(place.read_bytes()), asked, out)
    else:
        files.write_json(place, asked)


def _compare(before: Mapping[str, Any], now: Mapping[str, Any], out: Path) -> None:
    plain = json.loads(json.dumps(now))
    other = next((name for name in plain if before.get(name) != plain[name]), None)
    if other is not None:
        was, wanted = (str(value)[:160] for value in (before.get(other), plain[other]))
        raise PlaitError(f"{out} holds a set made with {other} {was}, not {wanted}; give another folder, or remove this one")


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    with open(work / "lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise PlaitError(f"another process is building in {work.parent}") from error
        yield


# One shard


def _shard(
    source: Source, encoders: Encoders, request: Request, out: Path, bucket: Bucket, number: int, positions: Sequence[int], workers: int
) -> dict[str, Any]:
    """Encode and write one shard; returns what the metadata needs of it. A sample that fails on the way is skipped and listed."""
    file = out / f"bucket_{bucket.name}" / f"shard-{number:06d}.tar"
    tally = Tally(bucket, file.name, Moments.of(encoders.latents.channels))
    file.parent.mkdir(exist_ok=True)
    beside = file.with_name(f".{file.name}.tmp")
    with open(beside, "wb") as raw:
        with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for crops in _crops(source, request, bucket, positions, workers, tally.skipped):
                for crop, members in zip(crops, _encode(encoders, crops, tally), strict=True):
                    if members is None:
                        tally.skipped.append(Skipped(crop.position, str(crop.sample["id"]), NOT_FINITE))
                        continue
                    for kind, body in members.items():
                        _add(tar, f"{crop.position:09d}.{kind}", body)
        raw.flush()
        os.fsync(raw.fileno())
    if tally.samples:
        os.replace(beside, file)
        files.sync_folder(file.parent)
    else:
        beside.unlink()
    return tally.facts(files.xxh3(file) if tally.samples else "")


def _add(tar: tarfile.TarFile, name: str, body: bytes) -> None:
    member = tarfile.TarInfo(name)  # time 0, mode 0644, no owner: the same bytes whoever packs, whenever
    member.size = len(body)
    tar.addfile(member, io.BytesIO(body))


def _crops(
    source: Source, request: Request, bucket: Bucket, positions: Sequence[int], workers: int, skipped: list[Skipped]
) -> Iterator[list[_Crop]]:
    """Batches of decoded and cropped pictures, one batch ahead of the encoders."""

    def prepare(position: int) -> _Crop | Skipped:
        name = f"position {position}"
        try:
            sample = at(source, request, position)
            name, caption = str(sample["id"]), caption_of(source, sample)
            assert caption is not None, "the plan holds captioned samples only"
            pixels = images.decode(sample["images"][0], at_least=(bucket.height, bucket.width))
            return _Crop(position, sample, caption, images.cover(pixels, bucket.height, bucket.width), upright_size(sample["images"][0]))
        except BadSample as error:
            return Skipped(position, name, UNREADABLE, str(error))

    starts = range(0, len(positions), request.batch)
    with ThreadPoolExecutor(max(1, workers)) as readers:
        waiting = [[readers.submit(prepare, p) for p in positions[s : s + request.batch]] for s in starts[:1]]
        for following in [*starts[1:], None]:
            jobs = waiting.pop()
            if following is not None:
                waiting.append([readers.submit(prepare, p) for p in positions[following : following + request.batch]])
            ready = [job.result() for job in jobs]
            skipped += [one for one in ready if isinstance(one, Skipped)]
            if crops := [one for one in ready if isinstance(one, _Crop)]:
                yield crops


def _encode(encoders: Encoders, crops: Sequence[_Crop], tally: Tally) -> list[dict[str, bytes] | None]:
    """The members of each crop, counted; None where an encoder gave what float16 cannot hold."""
    pixels = torch.stack([crop.pixels for crop in crops])
    latents = encoders.latents.encode(pixels).to(torch.float16).numpy()
    vectors = encoders.images.encode(pixels).to(torch.float32).numpy()
    texts = encoders.texts.encode([crop.caption for crop in crops])
    sided = [k for k, crop in enumerate(crops) if captions.names_side(crop.caption)]
    twins = dict(zip(sided, encoders.texts.encode([captions.swap(crops[k].caption) for k in sided]) if sided else [], strict=True))
    made: list[dict[str, bytes] | None] = []
    for k, (crop, latent, vector, (states, tokens)) in enumerate(zip(crops, latents, vectors, texts, strict=True)):
        arrays = {"vae": latent, "dinov3": vector, "t5h": _half(states)} | ({"t5h_flip": _half(twins[k][0])} if k in twins else {})
        if not all(np.isfinite(array).all() for array in arrays.values()):
            made.append(None)
            continue
        masks = {name.replace("t5h", "t5m"): np.ones(len(array), np.uint8) for name, array in arrays.items() if name.startswith("t5h")}
        tally.add(latent, crop.size, (len(states), tokens), k in twins)
        own = {"caption": crop.caption, "image_id": str(crop.sample["id"]), "width": crop.size[0], "height": crop.size[1]}
        own |= {"bucket": tally.bucket.name, "tokens": len(states), "truncated": tokens > len(states)}
        members = {"json": tally.fields(crop.sample["fields"], own)}
        made.append(members | {f"{name}.npy": npy.dump(array) for name, array in sorted((arrays | masks).items())})
    return made


def _half(states: np.ndarray) -> np.ndarray:
    """To float16; what it cannot hold becomes infinite, and is looked for."""
    return torch.from_numpy(states).to(torch.float16).numpy()


def _metadata(
    encoders: Encoders, request: Request, asked: Mapping[str, Any], planned: Plan, reports: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    chosen = None
    if asked["like"]:
        chosen = {**asked["like"], "from": "another set"}
    elif request.statistics == "published" and encoders.latents.published is not None:
        mean, std = encoders.latents.published
        chosen = {"mean": mean, "std": std, "from": "published with the encoder"}
    if not sum(one["samples"] for one in reports):
        raise PlaitError(f"none of the {planned.read} samples read could be written; the first: {reports[0]['skipped'][0]}")
    skipped = counted([*planned.skipped, *(Skipped(**row) for one in reports for row in one["skipped"])])
    written = sum(one["samples"] for one in reports)
    assert planned.read == written + sum(skipped.values()), "every sample read is written or skipped"
    return {
        "plait": __version__,
        "request": dict(asked),
        "counts": {"read": planned.read, "written": written, "skipped": skipped},
        "encoders": encoders.facts(),
        **merged(reports, [bucket.name for bucket in planned.positions], encoders.facts(), chosen),
    }


def said(counts: Mapping[str, int]) -> str:
    """Counts by reason in words."""
    return ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "none"
