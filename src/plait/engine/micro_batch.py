"""Decide how many samples a rank takes per forward pass. Where they do not fit: half as many, and twice the accumulation.

The gradient of the global batch does not depend on the size of its slices, the micro-batches. A size that was found to fit is noted in
the run directory, for every later start on as many ranks. A stage is a part of a run.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import torch

from plait import files
from plait.engine.parallel.distributed import Ranks
from plait.errors import Stopped

log = logging.getLogger(__name__)

NOTE = "memory.json"  # in a run directory: the sizes that were found to fit


class Exceeded(Exception):
    """Raised on all ranks where memory ran out on one that could still tell the others. All may retry with a smaller micro-batch."""


class ExceededAlone(Exception):
    """Raised on a rank that ran out of memory while the others wait for it in a collective: it cannot tell them."""


class MicroBatchSize:
    """A stage's micro-batch size, `samples`: `configured`, or the smaller one that an earlier start noted in RUN/memory.json as fitting."""

    def __init__(self, run: Path, stage: str, ranks: Ranks, configured: int) -> None:
        self.path, self.key, self.ranks = run / NOTE, f"{stage} on {ranks.size}", ranks
        self.samples = min(configured, self._noted().get(self.key, configured))

    def fit(self, work: Callable[[], None], reset: Callable[[], None]) -> None:
        """Run `work`, such as the stage's training; out of memory, call `reset` (drop gradients), halve the micro-batch and run it again.

        A failed step has changed nothing. Raises Stopped, a PlaitError, if one sample does not fit or this rank cannot tell the others, who
        wait in a collective: the next start has the smaller micro-batch.
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
        if not self.path.is_file():
            return {}
        try:
            noted = json.loads(self.path.read_bytes())
        except (ValueError, RecursionError):
            noted = None
        if isinstance(noted, dict) and all(isinstance(samples, int) and samples > 0 for samples in noted.values()):
            return noted
        log.warning(f"{self.path} does not hold micro-batch sizes and is passed over: what fits in memory is tried again, and noted anew")
        return {}

    def _note(self) -> None:
        files.write_json(self.path, self._noted() | {self.key: self.samples})


class Guarded:
    """A context that turns out-of-memory inside it into an error that says who ran out.

    Raises Exceeded on every rank where all can be told, and ExceededAlone on the rank that ran out where they cannot.
    `meet`: at the block's end the ranks tell each other whether one ran out (a step's last pass without communication).
    `collective`: the block itself communicates (any pass with FSDP, DDP's last backward), so the others cannot be told.
    """

    def __init__(self, ranks: Ranks, *, meet: bool = False, collective: bool = False) -> None:
        self.ranks, self.meet, self.collective = ranks, meet, collective

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            message = str(error).splitlines()[0]
            if self.collective and self.ranks.size > 1:
                raise ExceededAlone(message)
            self.ranks.any(True)
            raise Exceeded(message)
        if error is None and self.meet and not self.collective and self.ranks.any(False):
            raise Exceeded("another rank ran out of memory")
