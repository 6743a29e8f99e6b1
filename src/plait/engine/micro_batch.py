"""How many samples fit in memory at a time: half of what does not, noted in the run directory for every later start on as many ranks."""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait import files
from plait.engine.parallel.distributed import local
from plait.errors import Stopped

NOTE = "memory.json"


@contextlib.contextmanager
def reserved(trained: Iterable[Tensor], optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Hold, while entered, what an optimizer that has not stepped yet will take for its moments."""
    missing = sum(2 * local(value).nbytes for value in trained if value not in optimizer.state)
    device = next(iter(optimizer.param_groups))["params"][0].device
    held = torch.empty(missing, dtype=torch.uint8, device=device)
    yield
    del held


def size(batch: Mapping[str, Any]) -> int:
    """How many numbers a micro-batch holds."""
    return sum(value.numel() for value in batch.values() if isinstance(value, Tensor))


def halved(micro_batch: int, said: str) -> int:
    """Half of it, rounded up. Raises Stopped when it is one sample already."""
    if micro_batch == 1:
        raise Stopped(
            f"out of memory with one sample at a time ({said}): shorten data.max_tokens, set distributed.activation_checkpointing, "
            "or shard with distributed.strategy"
        )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return -(-micro_batch // 2)


def noted(run: Path, stage: str, ranks: int) -> int | None:
    """The micro-batch that was found to fit this stage on so many ranks; None: nothing ran out so far."""
    path = run / NOTE
    return json.loads(path.read_text(encoding="utf-8")).get(f"{stage} on {ranks}") if path.is_file() else None


def note(run: Path, stage: str, ranks: int, micro_batch: int) -> None:
    """Remember it."""
    path = run / NOTE
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    files.write_json(path, known | {f"{stage} on {ranks}": micro_batch})
