"""The kind `latents`: precomputed latents, text states and image vectors in aspect-ratio buckets.

A set is a folder with `metadata.json` and one folder per bucket (`bucket_832x1216/` or `832x1216/`) of tar shards. A sample is a `.json`,
`.vae.npy` (C, H, W), `.t5h.npy` (L, D), `.t5m.npy` (L,), `.dinov3.npy` (D,), and for captions that name a side (left, right)
`.t5h_flip.npy` and `.t5m_flip.npy`. Further captions have `.t5h_2.npy` and so on, and a picture without a caption has no text states; in
training one of the captions is drawn anew each time. latent_shards/ writes such sets; sets made elsewhere must first be measured by
`plait data shard SET --measure`.

Latents come out normalised by the set's own statistics (C channels: (x - mean) / std, float32), text states cut to their valid tokens.
Each bucket is one of the source's `groups`. A faulty sample raises BadSample, a faulty set PlaitError.
"""

import functools
import json
import logging
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from plait.config.schema import SourceEntry
from plait.data import paths
from plait.data.aspect import Bucket, parse
from plait.data.formats import index, npy
from plait.data.order import largest_remainder
from plait.data.records import parse_json
from plait.data.sources.contract import Sample, Source
from plait.data.sources.kind import Opening, SourceKind, path_of
from plait.data.sources.metadata import read_metadata
from plait.data.sources.shards import Shards
from plait.errors import BadSample, PlaitError
from plait.keys import rng

log = logging.getLogger(__name__)

_PROBES = 20  # samples looked at, at most, to check the set before the run
_NPY_HEADER_BYTES = 128  # of a one-dimensional array, as NumPy writes it
_EXPONENT_F16 = np.uint16(0x7C00)  # all ones in a float16 that is infinite or not a number


@dataclass(frozen=True)
class _Part:
    """One bucket of the set, and the range of its samples that the source gives."""

    bucket: Bucket
    reader: Shards
    span: range


def bucket_folders(root: Path) -> dict[Bucket, Path]:
    """Return the folder of each bucket of the latent shards in folder `root`, sorted by pixels, then width, largest first.

    Buckets without shards are left out with a warning. Raises PlaitError if there is no bucket, or one twice.
    """
    if not root.is_dir():
        raise PlaitError(f"{root} is not a folder of buckets")
    folders: dict[Bucket, Path] = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        bucket = parse(folder.name)
        if bucket in folders:
            raise PlaitError(f"{root} has bucket {bucket.name} twice: {folders[bucket].name} and {folder.name}")
        if any(folder.glob("*.tar")):
            folders[bucket] = folder
        else:
            _warn(f"bucket {folder} has no .tar, and so no picture")
    if not folders:
        raise PlaitError(f"{root} has no bucket, that is a folder such as bucket_1024x1024; `plait data shard` makes them")
    return dict(sorted(folders.items(), key=lambda item: (-item[0].width * item[0].height, -item[0].width)))


class Latents(Source):
    """The samples of one set of latent shards. `groups[k]` of them are in bucket `buckets[k]`, one bucket after the other.

    `options`: `buckets` (names of those to read), `held_out` (fraction of each bucket kept for validation), `statistics` (path of another
    set, whose mean and std to normalise by). `split`: train leaves out what is held out, any other reads that alone. `limit`: samples
    in all, the first of each bucket in proportion to its size. `cache`: folder of the shards' indices. Raises PlaitError for wrong options,
    and for a set that is unfinished or damaged.
    """

    def __init__(
        self, path: str, options: Mapping[str, Any], *, split: str = "train", limit: int | None = None, cache: str | Path | None = None
    ) -> None:
        root = paths.local(path)
        self.name = f"latents:{root.name}"
        if wrong := check_options(options):
            raise PlaitError(f"options.{wrong[0]} {wrong[1]}")
        wanted = [parse(str(name)) for name in options["buckets"]] if options.get("buckets") is not None else None
        held_out = float(options.get("held_out", 0.0))
        folders = _wanted_folders(bucket_folders(root), wanted, root)
        self.metadata = read_metadata(root)
        statistics = read_metadata(paths.local(str(options["statistics"]))) if "statistics" in options else self.metadata
        self._read_shapes(statistics["latents"])
        parts = []
        for bucket, folder in folders.items():
            shards = Shards(paths.files(str(folder), ".tar", split=None), cache, {})
            if span := _span_of_split(len(shards), held_out, split):
                parts.append(_Part(bucket, shards, span))
        if limit is not None and limit < (total := sum(len(part.span) for part in parts)):
            counts = largest_remainder([len(part.span) / total for part in parts], limit)
            parts = [replace(part, span=part.span[:count]) for part, count in zip(parts, counts, strict=True) if count]
        if not parts:
            raise PlaitError(f"options.held_out {held_out} leaves no sample for {split} in {root}: every bucket has one sample")
        self._parts = parts
        self.buckets = [part.bucket for part in parts]
        self.groups = tuple(len(part.span) for part in parts)
        self._ends = list(accumulate(self.groups))
        content: list[Any] = [[part.bucket.name, part.reader.digest, part.span.start, part.span.stop] for part in parts]
        content += [statistics["latents"]["mean"], statistics["latents"]["std"]]
        self.fingerprint = xxhash.xxh3_64(json.dumps(content).encode()).hexdigest()
        self._probe()

    def _probe(self) -> None:
        """Raise PlaitError when the first samples are all unusable: the wrong set should not wait for step 1."""
        probes, first_error = min(_PROBES, len(self)), None
        for i in range(probes):
            try:
                self[i]
                return
            except BadSample as error:
                first_error = first_error or error
        raise PlaitError(f"none of the first {probes} samples can be used: {first_error}")

    def _read_shapes(self, latents: Mapping[str, Any]) -> None:
        """Take shapes from the set's metadata, and mean and deviation per channel from `latents`, which may be another set's."""
        if latents["channels"] != self.metadata["latents"]["channels"]:
            raise PlaitError(f"options.statistics is of {latents['channels']} channels, the set of {self.metadata['latents']['channels']}")
        self.channels, self.downsample = int(latents["channels"]), int(latents["downsample"])
        self._mean = np.asarray(latents["mean"], np.float32).reshape(-1, 1, 1)
        self._scale = 1 / np.asarray(latents["std"], np.float32).reshape(-1, 1, 1)
        self.text_width, self.image_width = int(self.metadata["texts"]["width"]), int(self.metadata["images"]["width"])

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, i: int) -> Sample:
        """Return sample `i`: its first caption as an assistant turn, `fields` from its .json, `arrays` {vae, dinov3, t5h[, t5h_flip]}.

        Raises BadSample for missing members, other shapes than the set's and values that are not finite.
        """
        return self._sample(i, lambda count: 0)

    def draw(self, i: int, sample_key: int) -> Sample:
        """Return sample `i` with one of its captions as an assistant message, chosen by `sample_key`; indexing takes the first.

        `arrays`: `vae` (C, H, W), normalised latents; `dinov3` (D,), the image's vector; and of the caption, if there is one, `t5h` (L, D),
        its text states, and `t5h_flip`, those of the caption of the mirrored picture, if it names a side. Raises BadSample for members
        that are missing, damaged or of another shape.
        """
        return self._sample(i, lambda count: int(rng(sample_key, "caption").integers(count)) if count > 1 else 0)

    def _sample(self, i: int, choose: Callable[[int], int]) -> Sample:
        """Return sample `i` with the caption whose number `choose` gives for their count."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        number = bisect_right(self._ends, i)
        part = self._parts[number]
        stem, pairs = part.reader.members(part.span[i - (self._ends[number] - len(part.span))])
        name, members = f"{part.bucket.name}/{stem}", dict(pairs)
        fields = parse_json(_member(members, "json", name), f"{name}.json")
        arrays = {"vae": self._latents(members, part.bucket, name), "dinov3": self._vector(members, name)}
        texts, messages = _captions(fields, name, encoded="t5h.npy" in members), []
        if texts:
            chosen = choose(len(texts))
            suffix = suffix_of(chosen)
            arrays["t5h"] = self._text(members, suffix, name)
            if f"t5h_flip{suffix}.npy" in members:
                arrays["t5h_flip"] = self._text(members, f"_flip{suffix}", name)
            messages = [{"role": "assistant", "content": texts[chosen]}]
        return {"id": name, "images": [], "messages": messages, "fields": fields, "arrays": arrays}

    def _latents(self, members: Mapping[str, bytes], bucket: Bucket, name: str) -> np.ndarray:
        """Return the normalised latents (C, H, W), float32."""
        array = npy.parse(_member(members, "vae.npy", name), f"{name}.vae.npy")
        shape = (self.channels, bucket.height // self.downsample, bucket.width // self.downsample)
        if array.shape != shape or array.dtype.kind != "f":
            raise BadSample(f"{name}.vae.npy is {array.dtype} {array.shape}, bucket {bucket.name} needs floats {shape}")
        normal = array.astype(np.float32)
        normal -= self._mean
        normal *= self._scale
        if not np.isfinite(normal.sum(dtype=np.float64)):  # one infinity or NaN makes the sum one
            raise BadSample(f"{name}.vae.npy holds values that are not finite")
        return normal

    def _text(self, members: Mapping[str, bytes], twin: str, name: str) -> np.ndarray:
        """Return the text states (L, D) of the valid tokens. `twin`: the suffix of another or a mirrored caption's members, or empty."""
        states = npy.parse(_member(members, f"t5h{twin}.npy", name), f"{name}.t5h{twin}.npy")
        mask = npy.parse(_member(members, f"t5m{twin}.npy", name), f"{name}.t5m{twin}.npy")
        if states.ndim != 2 or states.shape[1] != self.text_width or states.dtype.kind != "f":
            raise BadSample(f"{name}.t5h{twin}.npy is {states.dtype} {states.shape}, the set has floats (tokens, {self.text_width})")
        if mask.shape != (len(states),) or mask.dtype.kind not in "ub":
            raise BadSample(f"{name}.t5m{twin}.npy is a mask of {mask.dtype} {mask.shape} for {len(states)} tokens")
        valid = mask.astype(bool)
        if not valid.any():
            raise BadSample(f"{name}.t5m{twin}.npy leaves no token valid")
        kept = states.copy() if valid.all() else states[valid]
        if not _finite(kept):
            raise BadSample(f"{name}.t5h{twin}.npy holds values that are not finite")
        return kept

    def _vector(self, members: Mapping[str, bytes], name: str) -> np.ndarray:
        """Return the image vector (D,), float32."""
        vector = npy.parse(_member(members, "dinov3.npy", name), f"{name}.dinov3.npy")
        if vector.shape != (self.image_width,) or vector.dtype.kind != "f":
            raise BadSample(f"{name}.dinov3.npy is {vector.dtype} {vector.shape}, the set has floats ({self.image_width},)")
        if not _finite(vector):
            raise BadSample(f"{name}.dinov3.npy holds values that are not finite")
        return vector.astype(np.float32)

    def table(self, global_batch: int) -> list[Mapping[str, Any]]:
        """Return a dict per bucket: name `bucket`, `samples`, text `tokens`, whole `batches` of `global_batch`, `left_over` samples."""
        return [
            {
                "bucket": part.bucket.name,
                "samples": (samples := len(part.span)),
                "tokens": _stored_tokens(part),
                "batches": samples // global_batch,
                "left_over": samples % global_batch,
            }
            for part in self._parts
        ]


def _stored_tokens(part: _Part) -> int:
    """Count the text tokens of a bucket from the sizes of the masks in the index, one byte per token. No sample is read."""
    sizes = []
    for shard in part.reader.shards:
        arrays = index.map_arrays(shard.head)
        mask_kind = next((k for k, extension in enumerate(shard.head.facts["extensions"]) if extension == "t5m.npy"), -1)
        masks = np.where(arrays["kind"] == mask_kind, arrays["size"] - _NPY_HEADER_BYTES, 0)
        sizes.append(np.add.reduceat(masks, arrays["first"][:-1]))
    return int(np.concatenate(sizes)[part.span.start : part.span.stop].sum())


def check_options(options: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return (name, what is wrong, as "must list ...") of a `latents` source's first invalid option; None if all are valid."""
    fraction, names = options.get("held_out", 0.0), options.get("buckets")
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 <= fraction < 1:
        return "held_out", f"is the share of each bucket kept for validation, from 0 to below 1, got {fraction!r}"
    if names is not None and (not isinstance(names, list) or not names):
        return "buckets", f"must list the buckets to read, such as [1024x1024, 832x1216], got {names!r}"
    try:
        wanted = [parse(str(name)) for name in names or ()]
    except PlaitError as error:
        return "buckets", f"must list sizes: {error}"
    twice = [bucket.name for number, bucket in enumerate(wanted) if bucket in wanted[:number]]
    return ("buckets", f"lists {twice[0]} twice") if twice else None


def _wanted_folders(folders: dict[Bucket, Path], wanted: Sequence[Bucket] | None, root: Path) -> dict[Bucket, Path]:
    """Return the folders of the buckets to read, in their order in the set; warn of those that hold no picture.

    Raises PlaitError where none of them does.
    """
    found = {bucket: folder for bucket, folder in folders.items() if wanted is None or bucket in wanted}
    having = ", ".join(bucket.name for bucket in folders)
    if not found:
        raise PlaitError(f"{root} has no bucket {', '.join(bucket.name for bucket in wanted or ())}; it has {having}")
    missing = ", ".join(bucket.name for bucket in wanted or () if bucket not in folders)
    if missing:
        _warn(f"options.buckets lists {missing}, of which {root} has no picture; it has {having}")
    return found


@functools.lru_cache(maxsize=64)
def _warn(line: str) -> None:
    """Log a warning once in a process, however often a set is opened."""
    log.warning(line)


def _span_of_split(samples: int, held_out: float, split: str) -> range:
    """Return the indices of a bucket that `split` reads. The last ones are held out: sets are shuffled when they are made."""
    if not held_out:
        return range(samples)
    kept = min(samples - 1, max(1, round(held_out * samples)))
    return range(samples - kept) if split == "train" else range(samples - kept, samples)


def _captions(fields: Any, name: str, *, encoded: bool) -> list[str]:
    """Return a sample's captions, [] for a picture without any. `encoded`: it has text states. Raises BadSample where that disagrees."""
    caption = fields.get("caption") if isinstance(fields, dict) else None
    if not encoded and isinstance(fields, dict) and caption in (None, ""):
        return []
    if not isinstance(caption, str):
        raise BadSample(f"{name}.json has no caption")
    several = fields.get("captions")
    return several if isinstance(several, list) and several and all(isinstance(text, str) for text in several) else [caption]


def suffix_of(number: int) -> str:
    """Return the suffix in names of files for a picture's caption `number` (from 0), as in t5h, t5h_2, t5h_3: "", "_2", "_3"."""
    return f"_{number + 1}" if number else ""


def _member(members: Mapping[str, bytes], extension: str, name: str) -> bytes:
    if extension not in members:
        raise BadSample(f"{name} has no .{extension}; it has .{', .'.join(sorted(members)) or 'nothing'}")
    return members[extension]


def _finite(array: np.ndarray) -> bool:
    """Return whether all values are finite; of float16 by its bits, which is many times faster than numpy.isfinite."""
    if array.dtype == np.float16:
        return not bool(((array.view(np.uint16) & _EXPONENT_F16) == _EXPONENT_F16).any())
    return bool(np.isfinite(array).all())


def _open(entry: SourceEntry, opening: Opening) -> Source:
    return Latents(path_of(entry), entry.options, split=entry.split or opening.split, limit=entry.limit, cache=opening.cache)


KIND = SourceKind(
    "latents",
    own_text="latents carry their own captions; take out `template` and `columns`",
    options=("buckets", "held_out", "statistics"),
    paths=("statistics",),
    check=check_options,
    open=_open,
)
