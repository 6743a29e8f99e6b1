"""Precomputed latents, text states and image vectors in aspect-ratio buckets, as a source of samples.

A set is a folder with `metadata.json` and one folder per bucket (`bucket_832x1216/` or `832x1216/`) of tar shards. A sample is a `.json`,
`.vae.npy` (C, H, W), `.t5h.npy` (L, D), `.t5m.npy` (L,), `.dinov3.npy` (D,), and for captions that name a side `.t5h_flip.npy` and
`.t5m_flip.npy`. sharding.py writes such sets; sets made elsewhere are read after `plait data shard SET --measure` has measured them.

Latents come out normalised by the set's own statistics (C channels: (x - mean) / std, float32), text states cut to their valid tokens.
Each bucket is one of the source's `groups`. What is wrong with a sample is a BadSample, what is wrong with the set a PlaitError.
"""

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from plait.data import paths
from plait.data.aspect import Bucket, parse
from plait.data.formats import index, npy
from plait.data.order import largest_remainder
from plait.data.records import parse_json
from plait.data.sources.metadata import read_metadata
from plait.data.sources.shards import Shards
from plait.errors import BadSample, PlaitError

OPTIONS = ("buckets", "held_out", "statistics")
_PROBES = 20  # samples looked at, at most, to check the set before the run
_NPY_HEADER_BYTES = 128  # of a one-dimensional array, as NumPy writes it
_EXPONENT_F16 = np.uint16(0x7C00)  # all ones in a float16 that is infinite or not a number

Sample = dict[str, Any]


def bucket_folders(root: Path) -> dict[Bucket, Path]:
    """The buckets of a set, the largest number of pixels first, then the widest. Errors: none, one twice, one without shards."""
    if not root.is_dir():
        raise PlaitError(f"{root} is not a folder of buckets")
    found: dict[Bucket, Path] = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        bucket = parse(folder.name)
        if bucket in found:
            raise PlaitError(f"{root} has bucket {bucket.name} twice: {found[bucket].name} and {folder.name}")
        if not any(folder.glob("*.tar")):
            raise PlaitError(f"bucket {folder} is empty: it has no .tar; remove the folder, or finish the build that made it")
        found[bucket] = folder
    if not found:
        raise PlaitError(f"{root} has no bucket, that is a folder such as bucket_1024x1024; `plait data shard` makes them")
    return dict(sorted(found.items(), key=lambda item: (-item[0].width * item[0].height, -item[0].width)))


class Latents:
    """The samples of one set. `groups[k]` are those of bucket `buckets[k]`, one after the other."""

    def __init__(
        self, path: str, options: Mapping[str, Any], *, split: str = "train", limit: int | None = None, cache: str | Path | None = None
    ) -> None:
        root = paths.local(path)
        self.name = f"latents:{root.name}"
        chosen, held_out = _checked(options)
        folders = _chosen(bucket_folders(root), chosen, root)
        self.metadata = read_metadata(root)
        told = read_metadata(paths.local(str(options["statistics"]))) if "statistics" in options else self.metadata
        self._shapes(told)
        self._sets = [Shards(paths.files(str(folder), ".tar", split=None), cache, {}) for folder in folders.values()]
        spans = [_part(len(shards), held_out, split) for shards in self._sets]
        kept = [(bucket, shards, span) for bucket, shards, span in zip(folders, self._sets, spans, strict=True) if len(span)]
        if limit is not None and limit < sum(len(span) for _, _, span in kept):
            counts = largest_remainder([len(span) / sum(len(s) for _, _, s in kept) for _, _, span in kept], limit)
            kept = [(bucket, shards, span[:count]) for (bucket, shards, span), count in zip(kept, counts, strict=True) if count]
        if not kept:
            raise PlaitError(f"options.held_out {held_out} leaves no sample for {split} in {root}: every bucket has one sample")
        self.buckets = [bucket for bucket, _, _ in kept]
        self._sets, self._spans = [shards for _, shards, _ in kept], [span for _, _, span in kept]
        self.groups = [len(span) for span in self._spans]
        self._ends = list(accumulate(self.groups))
        facts = [[b.name, s.digest, span.start, span.stop] for b, s, span in kept] + [told["latents"]["mean"], told["latents"]["std"]]
        self.fingerprint = xxhash.xxh3_64(json.dumps(facts).encode()).hexdigest()
        self._probe()

    def _probe(self) -> None:
        """A set whose first samples are all unusable is the wrong set, and should not wait for step 1."""
        first = None
        for i in range(min(_PROBES, len(self))):
            try:
                self[i]
                return
            except BadSample as error:
                first = first or error
        raise PlaitError(f"none of the first {min(_PROBES, len(self))} samples can be used: {first}")

    def _shapes(self, told: Mapping[str, Any]) -> None:
        latents = told["latents"]
        if latents["channels"] != self.metadata["latents"]["channels"]:
            raise PlaitError(f"options.statistics is of {latents['channels']} channels, the set of {self.metadata['latents']['channels']}")
        self.channels, self.downsample = int(latents["channels"]), int(latents["downsample"])
        self._mean = np.asarray(latents["mean"], np.float32).reshape(-1, 1, 1)
        self._scale = 1 / np.asarray(latents["std"], np.float32).reshape(-1, 1, 1)
        self.text_width, self.image_width = int(self.metadata["texts"]["width"]), int(self.metadata["images"]["width"])

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, i: int) -> Sample:
        """Sample `i`: its caption as an assistant turn, `fields` from its json, `arrays` vae, t5h, dinov3 and perhaps t5h_flip."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        group = bisect_right(self._ends, i)
        bucket, span = self.buckets[group], self._spans[group]
        stem, members = self._sets[group].members(span[i - (self._ends[group] - self.groups[group])])
        name, found = f"{bucket.name}/{stem}", dict(members)
        fields = parse_json(_member(found, "json", name), f"{name}.json")
        if not isinstance(fields, dict) or not isinstance(fields.get("caption"), str):
            raise BadSample(f"{name}.json has no caption")
        arrays = {"vae": self._latents(found, bucket, name), "t5h": self._text(found, "", name), "dinov3": self._vector(found, name)}
        if "t5h_flip.npy" in found:
            arrays["t5h_flip"] = self._text(found, "_flip", name)
        said = [{"role": "assistant", "content": fields["caption"]}]
        return {"id": name, "images": [], "messages": said, "fields": fields, "arrays": arrays}

    def _latents(self, found: Mapping[str, bytes], bucket: Bucket, name: str) -> np.ndarray:
        array = npy.parse(_member(found, "vae.npy", name), f"{name}.vae.npy")
        wanted = (self.channels, bucket.height // self.downsample, bucket.width // self.downsample)
        if array.shape != wanted or array.dtype.kind != "f":
            raise BadSample(f"{name}.vae.npy is {array.dtype} {array.shape}, bucket {bucket.name} needs floats {wanted}")
        normal = array.astype(np.float32)
        normal -= self._mean
        normal *= self._scale
        if not np.isfinite(normal.sum(dtype=np.float64)):  # one infinity or NaN makes the sum one
            raise BadSample(f"{name}.vae.npy holds values that are not finite")
        return normal

    def _text(self, found: Mapping[str, bytes], twin: str, name: str) -> np.ndarray:
        states = npy.parse(_member(found, f"t5h{twin}.npy", name), f"{name}.t5h{twin}.npy")
        mask = npy.parse(_member(found, f"t5m{twin}.npy", name), f"{name}.t5m{twin}.npy")
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

    def _vector(self, found: Mapping[str, bytes], name: str) -> np.ndarray:
        vector = npy.parse(_member(found, "dinov3.npy", name), f"{name}.dinov3.npy")
        if vector.shape != (self.image_width,) or vector.dtype.kind != "f":
            raise BadSample(f"{name}.dinov3.npy is {vector.dtype} {vector.shape}, the set has floats ({self.image_width},)")
        if not _finite(vector):
            raise BadSample(f"{name}.dinov3.npy holds values that are not finite")
        return vector.astype(np.float32)

    def table(self, global_batch: int) -> list[dict[str, Any]]:
        """Per bucket: samples, text tokens, whole batches of one epoch, and the samples left over, which the next epoch takes up."""
        counts = zip(self.buckets, self.groups, map(self._tokens, range(len(self.groups))), strict=True)
        return [
            {"bucket": b.name, "samples": n, "tokens": tokens, "batches": n // global_batch, "left_over": n % global_batch}
            for b, n, tokens in counts
        ]

    def _tokens(self, group: int) -> int:
        """Stored tokens, from the sizes of the masks in the index: one byte per token, nothing is read."""
        sizes = []
        for shard in self._sets[group].shards:
            arrays = index.map_arrays(shard.head)
            kind = next((k for k, name in enumerate(shard.head.facts["extensions"]) if name == "t5m.npy"), -1)
            masks = np.where(arrays["kind"] == kind, arrays["size"] - _NPY_HEADER_BYTES, 0)
            sizes.append(np.add.reduceat(masks, arrays["first"][:-1]))
        span = self._spans[group]
        return int(np.concatenate(sizes)[span.start : span.stop].sum())


def _checked(options: Mapping[str, Any]) -> tuple[list[Bucket] | None, float]:
    unknown = next((name for name in options if name not in OPTIONS), None)
    if unknown is not None:
        near = get_close_matches(unknown, OPTIONS, 1)
        raise PlaitError(f"no option {unknown!r}; " + (f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(OPTIONS)}"))
    share = options.get("held_out", 0.0)
    if not isinstance(share, int | float) or not 0 <= share < 1:
        raise PlaitError(f"options.held_out is {share!r}: it is the share of each bucket kept for validation, from 0 to below 1")
    chosen = options.get("buckets")
    if chosen is not None and (not isinstance(chosen, list) or not chosen):
        raise PlaitError(f"options.buckets is {chosen!r}: list the buckets to read, such as [1024x1024, 832x1216]")
    return None if chosen is None else [parse(str(name)) for name in chosen], float(share)


def _chosen(folders: dict[Bucket, Path], chosen: Sequence[Bucket] | None, root: Path) -> dict[Bucket, Path]:
    """The folders of the buckets asked for, in their order in the set."""
    missing = next((bucket for bucket in chosen or () if bucket not in folders), None)
    if missing is not None:
        raise PlaitError(f"{root} has no bucket {missing.name}; it has {', '.join(bucket.name for bucket in folders)}")
    return {bucket: folder for bucket, folder in folders.items() if chosen is None or bucket in chosen}


def _part(samples: int, held_out: float, split: str) -> range:
    """The indices of a bucket that `split` reads. The last ones are held out: sets are shuffled when they are made."""
    kept = min(samples - 1, max(1, round(held_out * samples))) if held_out else 0
    if not held_out:
        return range(samples)
    return range(samples - kept) if split == "train" else range(samples - kept, samples)


def _member(found: Mapping[str, bytes], kind: str, name: str) -> bytes:
    if kind not in found:
        raise BadSample(f"{name} has no .{kind}; it has .{', .'.join(sorted(found)) or 'nothing'}")
    return found[kind]


def _finite(array: np.ndarray) -> bool:
    """float16 by its bits, which is many times faster than numpy.isfinite."""
    if array.dtype == np.float16:
        return not bool(((array.view(np.uint16) & _EXPONENT_F16) == _EXPONENT_F16).any())
    return bool(np.isfinite(array).all())
