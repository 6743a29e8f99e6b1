"""Small latent sets for tests, packed by hand: independent of what builds them in the product."""

import io
import json
from pathlib import Path

import numpy as np

from tests.data.packing import pack

CHANNELS, DOWNSAMPLE, WIDTH, VECTOR = 4, 8, 6, 5


def npy(array) -> bytes:
    body = io.BytesIO()
    np.save(body, array)
    return body.getvalue()


def members(bucket: tuple[int, int], number: int, *, tokens: int = 3, twin: bool = False) -> dict[str, bytes]:
    """The files of one good sample; its latents are all `number`, plus noise that its number decides."""
    rng = np.random.default_rng(number)
    width, height = bucket
    latent = number + rng.standard_normal((CHANNELS, height // DOWNSAMPLE, width // DOWNSAMPLE))
    found = {
        "json": json.dumps({"caption": f"picture {number}", "image_id": str(number), "number": number}).encode(),
        "vae.npy": npy(latent.astype(np.float16)),
        "t5h.npy": npy(rng.standard_normal((tokens, WIDTH)).astype(np.float16)),
        "t5m.npy": npy(np.ones(tokens, np.uint8)),
        "dinov3.npy": npy(rng.standard_normal(VECTOR).astype(np.float32)),
    }
    if twin:
        found |= {"t5h_flip.npy": npy(np.ones((tokens, WIDTH), np.float16)), "t5m_flip.npy": npy(np.ones(tokens, np.uint8))}
    return found


def shard(folder: Path, number: int, samples: dict[str, dict[str, bytes]]) -> Path:
    return pack(
        folder / f"shard-{number:06d}.tar", [(f"{stem}.{kind}", body) for stem, kinds in samples.items() for kind, body in kinds.items()]
    )


def metadata(root: Path, *, mean: float = 0.0, std: float = 1.0) -> None:
    latents = {"channels": CHANNELS, "downsample": DOWNSAMPLE, "mean": [mean] * CHANNELS, "std": [std] * CHANNELS}
    (root / "metadata.json").write_text(json.dumps({"latents": latents, "texts": {"width": WIDTH}, "images": {"width": VECTOR}}))


def make(root: Path, counts: dict[str, int], *, per_shard: int = 4, **statistics) -> Path:
    """A set with so many samples in each bucket folder; sample numbers go on from bucket to bucket."""
    number = 0
    for name, count in counts.items():
        size = tuple(int(side) for side in name.removeprefix("bucket_").split("x"))
        made = {f"{number + k:04d}": members(size, number + k) for k in range(count)}
        for start in range(0, count, per_shard):
            shard(root / name, start // per_shard, dict(list(made.items())[start : start + per_shard]))
        number += count
    metadata(root, **statistics)
    return root
