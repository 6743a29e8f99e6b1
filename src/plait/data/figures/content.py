"""Hash what a sample holds for training, so that samples that hold the same are found.

That is its pictures, clip, arrays and all its conversations. A future beside a sample (data/rollouts/) is no part of it: it is computed
of the sample's picture.
"""

from collections.abc import Iterable

import xxhash

from plait.data.sources.contract import Sample


def picture_hash(body: bytes) -> str:
    """Return the hash (xxh3-128, hex) of an encoded picture."""
    return xxhash.xxh3_128_hexdigest(body)


def clip_hash(sample: Sample) -> str | None:
    """Return a hash of the frames of a sample, in their order; None for one without a clip."""
    frames = sample.get("frames") or ()
    return xxhash.xxh3_128_hexdigest(_joined(map(picture_hash, frames))) if frames else None


def content_hash(sample: Sample) -> str | None:
    """Return a hash of all that a sample holds for training; None for one without text, pictures, frames and arrays."""
    arrays = sorted(sample.get("arrays", {}).items())
    if not (sample["messages"] or sample["images"] or sample.get("frames") or arrays):
        return None
    conversations = [item["messages"] for item in sample.get("annotations", ())] or [sample["messages"]]
    texts = [[(turn["role"], turn["content"]) for turn in conversation] for conversation in conversations]
    digest = xxhash.xxh3_128(repr(texts).encode("utf-8", "surrogatepass"))
    digest.update(_joined(map(picture_hash, sample["images"])))
    digest.update(f"clip {clip_hash(sample)}".encode())
    for name, array in arrays:
        digest.update(repr((name, array.dtype.str, array.shape)).encode() + array.tobytes())
    return digest.hexdigest()


def _joined(hashes: Iterable[str]) -> bytes:
    return " ".join(hashes).encode()
