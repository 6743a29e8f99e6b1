"""Read the files of a checkpoint's tensors, whether one process wrote them or many ranks a part each (sharded_files.py)."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from plait.engine.checkpoints.sharded_files import OFFSETS
from plait.engine.parallel.distributed import LazyShardedTensor, StoredTensor
from plait.errors import PlaitError


def read(folder: Path, group: str, listed: Sequence[str]) -> dict[str, StoredTensor]:
    """Return a group's tensors by name, memory-mapped, from the manifest's file names `listed`. Raises PlaitError if rows are missing."""
    if f"{group}.safetensors" in listed:
        return dict(load_file(folder / f"{group}.safetensors"))
    parts: dict[str, list[tuple[int, Tensor]]] = {}
    for name in sorted(name for name in listed if name.startswith(f"{group}/")):
        with safe_open(folder / name, "pt") as file:
            offsets = json.loads(file.metadata()[OFFSETS])
            for key in file.keys():  # noqa: SIM118  safe_open is no mapping
                parts.setdefault(key, []).append((sum(offsets[key]["saved_offsets"]), file.get_tensor(key)))
    return {name: _join(folder, name, sorted(of_tensor, key=lambda part: part[0])) for name, of_tensor in sorted(parts.items())}


def check_header(path: Path) -> None:
    """Raise SafetensorError where a file's safetensors header cannot be parsed, or does not fit the file's size."""
    with safe_open(path, "pt") as file:
        file.keys()


def sizes(folder: Path, group: str, listed: Sequence[str]) -> dict[str, int]:
    """Return {name: number of elements} of a group's full tensors in the checkpoint `folder`, from headers of its files.

    `listed`: the names of all files in its manifest, of which those of other groups are ignored.
    """
    counts: dict[str, int] = {}
    for name in sorted(name for name in listed if name.partition("/")[0].removesuffix(".safetensors") == group):
        with safe_open(folder / name, "pt") as file:
            for key in file.keys():  # noqa: SIM118  safe_open is no mapping
                counts[key] = counts.get(key, 0) + math.prod(file.get_slice(key).get_shape())
    return dict(sorted(counts.items()))


def _join(folder: Path, name: str, parts: Sequence[tuple[int, Tensor]]) -> StoredTensor:
    """Join (first row, rows) parts, sorted by first row. Raises PlaitError for a gap between two."""
    rows = 0
    for first, part in parts:
        if first != rows:
            raise PlaitError(f"{folder}: of {name!r} the rows from {rows} to {first} are in no file")
        rows += part.shape[0] if part.ndim else 0
    return parts[0][1] if len(parts) == 1 else LazyShardedTensor(tuple(part for _, part in parts))
