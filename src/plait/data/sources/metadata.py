"""The metadata of a set of latent shards (precomputed VAE latents): their statistics, widths of text and image states, and the encoders."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from plait.errors import PlaitError, command

METADATA = "metadata.json"


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata.json of a set of latent shards: {`latents`, `texts`, `images`, ...}. `path`: its folder, or the file.

    Raises PlaitError if it is missing or damaged.
    """
    file = path / METADATA if path.is_dir() else path
    if not file.is_file():
        raise PlaitError(
            f"there is no {file}: finish the build with the same `plait data shard` command, or measure a set made elsewhere with"
            f" `{command('data', 'shard', file.parent, '--measure')}`"
        )
    try:
        metadata: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        latents = metadata["latents"]
        if not (len(latents["mean"]) == len(latents["std"]) == latents["channels"] and latents["downsample"] >= 1):
            raise ValueError(f"{latents['channels']} channels have {len(latents['mean'])} means and {len(latents['std'])} deviations")
        if not (all(np.isfinite(latents["mean"])) and all(0 < std < np.inf for std in latents["std"])):
            raise ValueError("its statistics are not finite and positive")
        if not (metadata["texts"]["width"] >= 1 and metadata["images"]["width"] >= 1):
            raise ValueError("its widths are not positive")
    except (ValueError, KeyError, TypeError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise PlaitError(f"{file} is damaged ({reason}); delete it and measure the set again with --measure") from error
    return metadata
