"""How many samples a rank takes per forward pass, and what happens when they do not fit: half as many, and twice the accumulation.

A micro-batch is a slice of the global batch, never part of the answer, so the gradient is the same. What was found to fit is noted in the
run directory for every later start on as many ranks.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait import files
from plait.engine.parallel.distributed import Ranks, local
from plait.errors import Stopped

log = logging.getLogger(__name__)

NOTE = "memory.json"


class Exceeded(Exception):
    """Memory ran out on some rank while the others could still be told; raised on all ranks."""


class ExceededAlone(Exception):
    """Memory ran out on this rank while the others wait for it in a collective, where it cannot reach them."""


class MicroBatchSize:
    """A stage's micro-batch size (`samples`): as configured, or the smaller one found to fit, which RUN/memory.json keeps."""

    def __init__(self, run: Path, stage: str, ranks: Ranks, configured: int) -> None:
        self.path, self.key, self.ranks = run / NOTE, f"{stage} on {ranks.size}", ranks
        self.samples = min(configured, self._noted().get(self.key, configured))

    def fit(self, work: Callable[[], None], reset: Callable[[], None]) -> None:
        """Run `work`; on out-of-memory call `reset` (drop gradients), halve the micro-batch and retry. A failed step has changed nothing.

        Raises Stopped where one sample does not fit, and where this rank cannot reach the others, who wait in a collective: the next start
        has the smaller micro-batch.
        """
        while True:
            try:
                work()
                return
            except Exceeded as error:
                message = str(error)
            except ExceededAlone as error:
                self._halve(str(error))
                self._note()
                raise Stopped(f"out of memory ({error}); the same command continues, with micro_batch {self.samples}") from error
            reset()
            self._halve(message)
            if self.ranks.first:
                self._note()
            log.info(f"out of memory ({message}): on with micro_batch {self.samples} and more accumulation: the gradient is the same")

    def _halve(self, message: str) -> None:
        """Halve it, rounded up. Raises Stopped when it is one sample already."""
        if self.samples == 1:
            raise Stopped(
                f"out of memory with one sample at a time ({message}): shorten data.max_tokens, set distributed.activation_checkpointing, "
                "or shard with distributed.strategy"
            )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.samples = -(-self.samples // 2)

    def _noted(self) -> dict[str, int]:
        noted: dict[str, int] = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}
        return noted

    def _note(self) -> None:
        files.write_json(self.path, self._noted() | {self.key: self.samples})


@contextlib.contextmanager
def guarded(ranks: Ranks, *, meet: bool = False, collective: bool = False) -> Iterator[None]:
    """Turn out-of-memory inside the block into Exceeded, on every rank, or ExceededAlone, on this one.

    `meet`: at the block's end the ranks tell each other whether one ran out (a step's last pass without communication).
    `collective`: the block itself communicates (any pass with FSDP, DDP's last backward), so the others cannot be told.
    """
    message = None
    try:
        yield
    except torch.OutOfMemoryError as error:
        message = str(error).splitlines()[0]
    if message is not None and collective and ranks.size > 1:
        raise ExceededAlone(message)
    if message is not None:
        ranks.any(True)
        raise Exceeded(message)
    if meet and not collective and ranks.any(False):
        raise Exceeded("another rank ran out of memory")


@contextlib.contextmanager
def reserved(trained: Iterable[Tensor], optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Occupy, inside the block, the memory that AdamW's moments of `trained` will take from its first step on: for memory probes."""
    missing = sum(2 * local(value).nbytes for value in trained if value not in optimizer.state)
    device = next(iter(optimizer.param_groups))["params"][0].device
    held = torch.empty(missing, dtype=torch.uint8, device=device)
    yield
    del held


def size(batch: Mapping[str, Any]) -> int:
    """Return how many numbers the tensors of a micro-batch hold: by it the largest one is chosen for the memory probe."""
    return sum(value.numel() for value in batch.values() if isinstance(value, Tensor))
