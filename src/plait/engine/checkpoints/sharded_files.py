"""Files of a checkpoint that many ranks write together: one per rank and tensor group, each with that rank's rows.

    step-00001000/{weights,ema,moments}/00002-of-00004.safetensors

The files are those of `torch.distributed.checkpoint` (HuggingFaceStorageWriter): plain safetensors whose header says at which row of the
full tensor each part begins, so that torch's readers and consolidation work on a group's folder. Written here and not there because every
file is hashed, the manifest comes last, and an error on one rank must reach all. They are read by stored_files.py.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from plait.engine.checkpoints.writing import tensor_file
from plait.engine.parallel.distributed import Ranks, local_row_range

Result = TypeVar("Result")
Groups = Mapping[str, Mapping[str, Tensor]]
"""Tensors by group (weights, ema, moments, ...) and name."""
OFFSETS = "DCP_SHARDING_INFO"  # torch's key in the header: {tensor: {"saved_offsets": [first row, 0, ...]}}


@dataclass(frozen=True)
class RankFiles:
    """Names and writes the files of a checkpoint that are this rank's. A single rank writes everything, in one file per group."""

    rank: int = 0
    ranks: int = 1
    first_rows: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By group and tensor: the row of the full tensor at which this rank's part begins."""
    process_group: dist.ProcessGroup | None = None
    """A second process group of all ranks, for the thread that writes: its messages never mix with those of training."""

    def name(self, group: str) -> str:
        """Return this rank's file for a group: "weights.safetensors" of one rank, of four "weights/00002-of-00004.safetensors"."""
        return f"{group}.safetensors" if self.ranks == 1 else f"{group}/{self.rank:05d}-of-{self.ranks:05d}.safetensors"

    def save(self, path: Path, group: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Write this rank's tensors (or rows of them) of a group to the file `path`; returns its size and hash.

        The header says where rows belong. At the return the file is on the disk.
        """
        header = {"format": "pt"}
        if self.ranks > 1:
            rows = self.first_rows[group]
            offsets = {name: {"saved_offsets": [rows[name], *[0] * (value.ndim - 1)][: value.ndim]} for name, value in tensors.items()}
            header |= {"DCP_VERSION": "1.0", OFFSETS: json.dumps(offsets)}
        return tensor_file.write(path, tensors, header)

    def run_on_all(self, action: Callable[[], Result]) -> list[Result]:
        """Run `action` on each rank, all of which call this, and return the results of all ranks, in rank order.

        If `action` fails on one rank, all of them raise: that rank the cause, the others OSError.
        """
        if self.ranks == 1:
            return [action()]
        result, failure = None, None
        try:
            result = action()
        except Exception as error:  # noqa: BLE001  raised below, once the other ranks know
            failure = error
        outcomes: list[tuple[Result, str | None]] = [None] * self.ranks  # type: ignore[list-item]  # all are filled by the collective
        dist.all_gather_object(outcomes, (result, failure and f"on rank {self.rank}: {failure}"), group=self.process_group)
        if failure is not None:
            raise failure
        for _, message in outcomes:
            if message is not None:
                raise OSError(message)
        return [value for value, _ in outcomes]


def any_sharded(groups: Groups) -> bool:
    """Return whether any tensor is sharded over ranks, so that every rank writes a part of the checkpoint."""
    return any(isinstance(value, DTensor) for tensors in groups.values() for value in tensors.values())


def divide(groups: Groups, ranks: Ranks, process_group: dist.ProcessGroup | None) -> tuple[Groups, RankFiles]:
    """Return the tensors that this rank writes, {group: {name: tensor}}, and the files they go into.

    Of a sharded tensor it writes its own rows, where several ranks hold the same rows only the first of them; rank 0 writes full tensors.
    Where nothing is sharded, rank 0 writes alone and the others get {}. `process_group`: of all ranks, for the thread that writes.
    """
    if not any_sharded(groups):
        return groups if ranks.first else {}, RankFiles()
    rows: dict[str, dict[str, Tensor]] = {group: {} for group in groups}
    first_rows: dict[str, dict[str, int]] = {group: {} for group in groups}
    for group, tensors in groups.items():
        for name, value in tensors.items():
            first, part = _rows(value) if isinstance(value, DTensor) else (0, value if ranks.first else None)
            if part is not None:
                rows[group][name], first_rows[group][name] = part, first
    return rows, RankFiles(ranks.rank, ranks.size, first_rows, process_group)


def _rows(value: DTensor) -> tuple[int, Tensor | None]:
    """Return the first row and the rows that this rank writes of a tensor. None where it has none, or another copy's rank writes them."""
    mesh, part = value.device_mesh, value.to_local()
    *copies, _ = mesh.get_coordinate() or ()
    assert value.placements[-1] == Shard(0), f"sharded along another dimension than rows: {value.placements}"
    return local_row_range(value.shape[0], mesh)[0], None if any(copies) or not part.shape[0] else part
