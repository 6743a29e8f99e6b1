"""Build a set of bucketed latent shards from pictures with captions: crop, encode, write, measure. sources/latents.py reads them.

A bucket is a crop size; a shard is a tar file of up to 1,000 samples of one bucket, each with its VAE latents, text states and image
vector. Every shard is a pure function of (source, request, encoders, its positions), so a build that was killed continues where it was,
and ends in the same bytes as one that was not. Unfinished work is in `.building/` of the set; `metadata.json` is written last.
"""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from plait import __version__, files
from plait.data import captions, cropping, image_files, images
from plait.data.aspect import Bucket
from plait.data.formats import npy
from plait.data.latent_shards.plan import UNREADABLE, Plan, Report, Request, Skipped, captions_of, count_reasons, plan, sample_at
from plait.data.latent_shards.statistics import Moments, Tally, merge_reports
from plait.data.shard_sets import work_folder
from plait.data.sources.contract import Sample, Source
from plait.data.sources.latents import suffix_of
from plait.data.sources.metadata import METADATA
from plait.errors import BadSample, PlaitError, sample_errors

FORMAT = 1
NOT_FINITE = "encoded to values that are not finite"
_WORK = ".building"


class LatentEncoder(Protocol):
    """An encoder of images to latents, such as a VAE's. `channels`: of its latents; `downsample`: pixels per latent, along a side.

    `pin`: {"name", "revision", "xxh3"}, which identify its weights. `published`: the mean and the standard deviation of each latent channel
    that come with the weights, or None if none do.
    """

    pin: dict[str, Any]
    channels: int
    downsample: int
    published: tuple[list[float], list[float]] | None

    def encode(self, images: Tensor, /) -> Tensor:
        """Return the latents (B, C, h, w) of uint8 images (B, 3, H, W), not normalised."""


class TextEncoder(Protocol):
    """An encoder of captions to one state per token, such as T5. Captions are truncated to `max_tokens`.

    `pin`: {"name", "revision", "xxh3"}, which identify its weights; `width`: features of a state.
    """

    pin: dict[str, Any]
    width: int
    max_tokens: int

    def encode(self, captions: list[str], /) -> list[tuple[np.ndarray, int]]:
        """Return (states (L, width), tokens before truncation) of each caption; L is its number of tokens, at most `max_tokens`."""


class ImageEncoder(Protocol):
    """An encoder of each image to one feature vector, such as DINO: the condition that a model is trained to follow.

    `pin`: {"name", "revision", "xxh3"}, which identify its weights; `width`: features of a vector.
    """

    pin: dict[str, Any]
    width: int

    def encode(self, images: Tensor, /) -> Tensor:
        """Return vectors (B, width), one per image, of uint8 images (B, 3, H, W)."""


@dataclass(frozen=True)
class Encoders:
    """The encoders that a set of latent shards is made with: of pictures to latents, captions to token states, pictures to vectors."""

    latents: LatentEncoder
    texts: TextEncoder
    images: ImageEncoder

    def facts(self) -> dict[str, Any]:
        """Return {"latents", "texts", "images"}: a dict of each encoder's pin and shapes, as recorded in metadata.json.

        All have `name`, `revision`, `xxh3`; latents `channels` and `downsample`, texts `width` and `max_tokens`, images `width`.
        """
        return {
            "latents": {**self.latents.pin, "channels": self.latents.channels, "downsample": self.latents.downsample},
            "texts": {**self.texts.pin, "width": self.texts.width, "max_tokens": self.texts.max_tokens},
            "images": {**self.images.pin, "width": self.images.width},
        }


@dataclass(frozen=True)
class _Crop:
    """One image cropped to its bucket, ready to encode. `captions`: any number of them; `size`: width and height of the original."""

    position: int
    sample: Sample
    captions: list[str]
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
    """Build the set of latent shards in folder `out`, or continue an interrupted build; return its metadata.

    `like`: metadata of another set, whose mean and std this set's metadata names for normalising (None: those that `request` asks for).
    `workers`: threads that read and crop. `report`: called with (activity, number done, total). Raises PlaitError if `out` holds another
    build, another process builds there, the encoders cannot meet the request, or no sample can be written.
    """
    signature = _signature(source, encoders, request, like)
    finished = _finished(out, signature)
    if finished is not None:
        return finished
    work = out / _WORK
    work.mkdir(parents=True, exist_ok=True)
    with work_folder.locked(work):
        work_folder.check_request(work / "request.json", signature, out)
        planned = plan(source, request, workers=workers, kept=work, report=report)
        shards = list(planned.shards(request.per_shard))
        if not shards:
            raise PlaitError(f"there is nothing to write: of {planned.read} samples read, {reasons_text(count_reasons(planned.skipped))}")
        total, written = sum(len(positions) for *_, positions in shards), 0
        reports = []
        for bucket, number, positions in shards:
            file = work / f"{bucket.name}-{number:06d}.json"
            if not file.is_file():
                files.write_json(
                    file, _shard(source, encoders, request, out=out, bucket=bucket, number=number, positions=positions, workers=workers)
                )
            reports.append(json.loads(file.read_bytes()))
            report("written", written := written + len(positions), total)
        metadata = _metadata(encoders, request, signature, planned, reports)
        skipped = [*map(asdict, planned.skipped), *(row for shard_report in reports for row in shard_report["skipped"])]
        rows = sorted(skipped, key=lambda row: row["position"])
        files.write_whole(out / "skipped.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        files.write_json(out / METADATA, metadata)
    shutil.rmtree(work)
    return metadata


def _signature(source: Source, encoders: Encoders, request: Request, like: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return everything that the bytes of the set depend on, as plain data. Raises PlaitError for a request that cannot be met."""
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
    statistics = like["latents"] if like else None
    return {
        "plait": __version__,
        "format": FORMAT,
        "source": {"name": source.name, "samples": len(source), "fingerprint": source.fingerprint},
        "encoders": encoders.facts(),
        **{name: value for name, value in asdict(request).items() if name not in names},
        **names,
        "like": {"mean": statistics["mean"], "std": statistics["std"]} if statistics else None,
    }


def _finished(out: Path, signature: dict[str, Any]) -> dict[str, Any] | None:
    """Return the metadata of the set if it is complete. Raises PlaitError if it is that of another request."""
    if not (out / METADATA).is_file():
        return None
    metadata: dict[str, Any] = json.loads((out / METADATA).read_bytes())
    work_folder.compare(metadata.get("request", {}), signature, out)
    shutil.rmtree(out / _WORK, ignore_errors=True)
    return metadata


# One shard


def _shard(
    source: Source,
    encoders: Encoders,
    request: Request,
    *,
    out: Path,
    bucket: Bucket,
    number: int,
    positions: Sequence[int],
    workers: int,
) -> dict[str, Any]:
    """Encode and write one shard; returns its report for the metadata. A sample that fails on the way is skipped and listed."""
    file = out / f"bucket_{bucket.name}" / f"shard-{number:06d}.tar"
    tally = Tally(bucket, file.name, Moments.of(encoders.latents.channels))
    file.parent.mkdir(exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp")
    with temporary.open("wb") as raw:
        with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for crops in _crops(source, request, bucket, positions, workers, tally.skipped):
                for crop, members in zip(crops, _encode(encoders, crops, tally), strict=True):
                    if members is None:
                        tally.skipped.append(Skipped(crop.position, str(crop.sample["id"]), NOT_FINITE))
                        continue
                    for extension, body in members.items():
                        _add(tar, f"{crop.position:09d}.{extension}", body)
        raw.flush()
        os.fsync(raw.fileno())
    if tally.samples:
        temporary.replace(file)
        files.sync_folder(file.parent)
    else:
        temporary.unlink()
    return tally.report(files.xxh3(file) if tally.samples else "")


def _add(tar: tarfile.TarFile, name: str, body: bytes) -> None:
    member = tarfile.TarInfo(name)  # time 0, mode 0644, no owner: the same bytes whoever packs, whenever
    member.size = len(body)
    tar.addfile(member, io.BytesIO(body))


def _crops(
    source: Source, request: Request, bucket: Bucket, positions: Sequence[int], workers: int, skipped: list[Skipped]
) -> Iterator[list[_Crop]]:
    """Yield batches of decoded and cropped images, one batch ahead of the encoders."""

    def crop(position: int) -> _Crop | Skipped:
        name = f"position {position}"
        try:
            with sample_errors:
                sample = sample_at(source, request, position)
                name = str(sample["id"])
                pixels = images.decode(sample["images"][0], at_least=(bucket.height, bucket.width))
                cropped = cropping.cover(pixels, bucket.height, bucket.width)
                return _Crop(position, sample, captions_of(source, sample), cropped, image_files.size(sample["images"][0]))
        except BadSample as error:
            return Skipped(position, name, UNREADABLE, str(error))

    starts = range(0, len(positions), request.batch)
    with ThreadPoolExecutor(max(1, workers)) as readers:
        waiting = [[readers.submit(crop, p) for p in positions[s : s + request.batch]] for s in starts[:1]]
        for following in [*starts[1:], None]:
            jobs = waiting.pop()
            if following is not None:
                waiting.append([readers.submit(crop, p) for p in positions[following : following + request.batch]])
            results = [job.result() for job in jobs]
            skipped += [result for result in results if isinstance(result, Skipped)]
            if crops := [result for result in results if isinstance(result, _Crop)]:
                yield crops


def _encode(encoders: Encoders, crops: Sequence[_Crop], tally: Tally) -> list[dict[str, bytes] | None]:
    """Return the members of each crop and count them in `tally`; None where an encoder gave values that float16 cannot hold."""
    pixels = torch.stack([crop.pixels for crop in crops])
    latents = encoders.latents.encode(pixels).to(torch.float16).numpy()
    vectors = encoders.images.encode(pixels).to(torch.float32).numpy()
    texts = _text_arrays(encoders.texts, crops)
    encoded: list[dict[str, bytes] | None] = []
    for crop, latent, vector, (states, lengths) in zip(crops, latents, vectors, texts, strict=True):
        arrays = {"vae": latent, "dinov3": vector, **states}
        if not all(np.isfinite(array).all() for array in arrays.values()):
            encoded.append(None)
            continue
        masks = {name.replace("t5h", "t5m"): np.ones(len(array), np.uint8) for name, array in arrays.items() if name.startswith("t5h")}
        tally.add(latent, crop.size, lengths, sum(name.startswith("t5h_flip") for name in arrays))
        caption = crop.captions[0] if crop.captions else ""
        build_fields = {"caption": caption, "image_id": str(crop.sample["id"]), "width": crop.size[0], "height": crop.size[1]}
        build_fields |= {"captions": crop.captions} if len(crop.captions) > 1 else {}
        kept, whole = lengths[0] if lengths else (0, 0)
        build_fields |= {"bucket": tally.bucket.name, "tokens": kept, "truncated": whole > kept}
        members = {"json": tally.fields(crop.sample["fields"], build_fields)}
        encoded.append(members | {f"{name}.npy": npy.dump(array) for name, array in sorted((arrays | masks).items())})
    return encoded


def _text_arrays(encoder: TextEncoder, crops: Sequence[_Crop]) -> list[tuple[dict[str, np.ndarray], list[tuple[int, int]]]]:
    """Return, per crop, its captions' states by name, and (tokens kept, tokens before truncation) of each caption.

    States are t5h, t5h_2, ... in the order of the captions; a caption that names a side has t5h_flip, t5h_flip_2, ... of its mirror image.
    """
    jobs = [(k, suffix_of(n), text) for k, crop in enumerate(crops) for n, text in enumerate(crop.captions)]
    twins = [(k, f"_flip{suffix}", captions.swap(text)) for k, suffix, text in jobs if captions.names_side(text)]
    result: list[tuple[dict[str, np.ndarray], list[tuple[int, int]]]] = [({}, []) for _ in crops]
    for group in (jobs, twins):
        encoded = encoder.encode([text for *_, text in group]) if group else []
        for (k, suffix, _), (states, tokens) in zip(group, encoded, strict=True):
            result[k][0][f"t5h{suffix}"] = _half(states)
            if group is jobs:
                result[k][1].append((len(states), tokens))
    return result


def _half(states: np.ndarray) -> np.ndarray:
    """Convert to float16; values that it cannot hold become infinite, which the caller checks for."""
    return torch.from_numpy(states).to(torch.float16).numpy()


def _metadata(
    encoders: Encoders, request: Request, signature: Mapping[str, Any], planned: Plan, reports: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the metadata of a finished set. Raises PlaitError when nothing was written."""
    chosen = None
    if signature["like"]:
        chosen = {**signature["like"], "from": "another set"}
    elif request.statistics == "published" and encoders.latents.published is not None:
        mean, std = encoders.latents.published
        chosen = {"mean": mean, "std": std, "from": "published with the encoder"}
    written = sum(report["samples"] for report in reports)
    if not written:
        raise PlaitError(f"none of the {planned.read} samples read could be written; the first: {reports[0]['skipped'][0]}")
    skipped = count_reasons([*planned.skipped, *(Skipped(**row) for report in reports for row in report["skipped"])])
    assert planned.read == written + sum(skipped.values()), "every sample read is written or skipped"
    return {
        "plait": __version__,
        "request": dict(signature),
        "counts": {"read": planned.read, "written": written, "skipped": skipped},
        "encoders": encoders.facts(),
        **merge_reports(reports, [bucket.name for bucket in planned.positions], encoders.facts(), chosen),
    }


def reasons_text(counts: Mapping[str, int]) -> str:
    """Return counts by reason as one text: {"no caption": 12, "unreadable": 1} -> "12 no caption, 1 unreadable"; "none" if empty."""
    return ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "none"
