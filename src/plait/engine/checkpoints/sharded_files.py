"""A checkpoint that many ranks write together: which rows are whose, one file per rank and group, and their rows put together again.

    step-00001000/{weights,ema,moments}/00002-of-00004.safetensors

The files are those of `torch.distributed.checkpoint` (HuggingFaceStorageWriter): plain safetensors whose header says at which row of the
whole tensor each piece begins, so that its readers and consolidation work on a group's folder. Written here and not there because every
file is hashed, the manifest comes last, and an error on one rank must reach all.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from plait.engine.parallel.distributed import LazyShardedTensor, Ranks, StoredTensor, local_row_range
from plait.errors import PlaitError

Groups = Mapping[str, Mapping[str, Tensor]]
_WHERE = "DCP_SHARDING_INFO"  # torch's key in the header: {tensor: {"saved_offsets": [first row, 0, ...]}}


@dataclass(frozen=True)
class Share:
    """What one rank writes of a checkpoint. Alone it writes everything, in one file per group."""

    rank: int = 0
    ranks: int = 1
    first_rows: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    group: dist.ProcessGroup | None = None
    """All ranks once more, for the thread that writes: its messages never mix with those of training."""

    def path(self, group: str) -> str:
        """The file of this rank for a group, inside the checkpoint's folder."""
        return f"{group}.safetensors" if self.ranks == 1 else f"{group}/{self.rank:05d}-of-{self.ranks:05d}.safetensors"

    def save(self, path: Path, group: str, tensors: Mapping[str, Tensor]) -> None:
        """Write the tensors of a group to `path`."""
        about = {"format": "pt"}
        if self.ranks > 1:
            rows = self.first_rows[group]
            where = {name: {"saved_offsets": [rows[name], *[0] * (value.ndim - 1)][: value.ndim]} for name, value in tensors.items()}
            about |= {"DCP_VERSION": "1.0", _WHERE: json.dumps(where)}
        save_file(dict(tensors), path, metadata=about)

    def together(self, action: Callable[[], Any]) -> list[Any]:
        """What `action` returns on each rank. Raises on all of them when it failed on one: the cause there, OSError elsewhere."""
        if self.ranks == 1:
            return [action()]
        result, trouble = None, None
        try:
            result = action()
        except Exception as error:  # noqa: BLE001  raised below, once the others know
            trouble = error
        answers: list[Any] = [None] * self.ranks
        dist.all_gather_object(answers, (result, trouble and f"on rank {self.rank}: {trouble}"), group=self.group)
        if trouble is not None:
            raise trouble
        for _, said in answers:
            if said is not None:
                raise OSError(said)
        return [found for found, _ in answers]


def sharded(groups: Groups) -> bool:
    """Whether any tensor is cut over ranks."""
    return any(isinstance(value, DTensor) for tensors in groups.values() for value in tensors.values())


def divide(groups: Groups, ranks: Ranks, group: dist.ProcessGroup | None) -> tuple[Groups, Share]:
    """The rows that this rank writes: its own of sharded tensors, where it holds the first copy; of whole ones all, on rank 0.

    Where nothing is sharded, rank 0 writes alone. `group`: see `Share`.
    """
    if not sharded(groups):
        return groups if ranks.first else {}, Share()
    own: dict[str, dict[str, Tensor]] = {kind: {} for kind in groups}
    rows: dict[str, dict[str, int]] = {kind: {} for kind in groups}
    for kind, tensors in groups.items():
        for name, value in tensors.items():
            start, part = _rows(value) if isinstance(value, DTensor) else (0, value if ranks.first else None)
            if part is not None:
                own[kind][name], rows[kind][name] = part, start
    return own, Share(ranks.rank, ranks.size, rows, group)


def _rows(value: DTensor) -> tuple[int, Tensor | None]:
    """The first row and the rows of a tensor that this rank is to write; None when another copy's rank does, or there are none here."""
    mesh, part = value.device_mesh, value.to_local()
    *copies, _ = mesh.get_coordinate() or ()
    assert value.placements[-1] == Shard(0), f"cut along another dimension than rows: {value.placements}"
    return local_row_range(value.shape[0], mesh)[0], None if any(copies) or not part.shape[0] else part


def read(folder: Path, group: str, listed: Sequence[str]) -> dict[str, StoredTensor]:
    """The tensors of a group, in mapped files, one or the pieces of any number of ranks. Raises PlaitError where rows are missing."""
    if f"{group}.safetensors" in listed:
        return dict(load_file(folder / f"{group}.safetensors"))
    pieces: dict[str, list[tuple[int, Tensor]]] = {}
    for name in sorted(name for name in listed if name.startswith(f"{group}/")):
        with safe_open(folder / name, "pt") as file:
            where = json.loads(file.metadata()[_WHERE])
            for key in file.keys():  # noqa: SIM118  safe_open is no mapping
                pieces.setdefault(key, []).append((sum(where[key]["saved_offsets"]), file.get_tensor(key)))
    return {name: _joined(folder, name, sorted(found, key=lambda piece: piece[0])) for name, found in sorted(pieces.items())}


def sizes(folder: Path, group: str, listed: Sequence[str]) -> dict[str, int]:
    """How many values each tensor of a group has, from the headers of its files alone."""
    found: dict[str, int] = {}
    for name in sorted(name for name in listed if name.partition("/")[0].removesuffix(".safetensors") == group):
        with safe_open(folder / name, "pt") as file:
            for key in file.keys():  # noqa: SIM118  safe_open is no mapping
                found[key] = found.get(key, 0) + math.prod(file.get_slice(key).get_shape())
    return dict(sorted(found.items()))


def _joined(folder: Path, name: str, found: Sequence[tuple[int, Tensor]]) -> StoredTensor:
    at = 0
    for start, part in found:
        if start != at:
            raise PlaitError(f"{folder}: of {name!r} the rows from {at} to {start} are in no file")
        at += part.shape[0] if part.ndim else 0
    return found[0][1] if len(found) == 1 else LazyShardedTensor(tuple(part for _, part in found))
