"""Save in the background: tensors are copied to host memory, then written and pruned (checkpoint.py) while training continues."""

import functools
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from plait.engine.checkpoints import checkpoint, failed_writes, kept_averages, sharded_files
from plait.engine.checkpoints.sharded_files import Groups
from plait.engine.parallel.distributed import Ranks
from plait.errors import PlaitError


def copy_out(groups: Groups, into: Groups | None = None) -> dict[str, dict[str, Tensor]]:
    """Copy the tensors of a checkpoint, {"weights": {name: tensor}, "ema": ..., ...}, to host memory; empty groups are left out.

    Training can continue while the copies are written. `into`: earlier copies, whose memory is reused where it fits.
    """
    old = into or {}

    def copy(group: str, name: str, value: Tensor) -> Tensor:
        buffer = old.get(group, {}).get(name)
        if buffer is not None and buffer.shape == value.shape and buffer.dtype == value.dtype:
            return buffer.copy_(value.detach())
        return value.detach().to("cpu", copy=True).contiguous()

    copied = {group: {name: copy(group, name, value) for name, value in tensors.items()} for group, tensors in groups.items() if tensors}
    if any(value.is_cuda for tensors in groups.values() for value in tensors.values()):
        torch.cuda.synchronize()
    return copied


class Saver:
    """Writes checkpoints in a thread, one at a time; `background`: while training goes on. An error on one rank is raised on all by `wait`.

    A write that fails (a full disk) is logged and tried again after pauses, for the last time when the next save or the end waits for it.
    `mark`: called with a name before that last try, on all ranks, for the watchdog: a slow disk is no hang.
    """

    def __init__(self, background: bool, ranks: Ranks, mark: Callable[[str], None]) -> None:
        self.background, self.ranks, self.mark = background, ranks, mark
        self._group: dist.ProcessGroup | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._waiting = failed_writes.Waiting()
        self._copied: dict[str, dict[str, Tensor]] = {}

    def save(
        self, folder: Path, groups: Groups, metadata: Mapping[str, Any], *, keep: int, spared: int | None = None, config: str = ""
    ) -> None:
        """Wait for the last write and raise its error, then copy the tensors to host memory, to write them to `folder`.

        They are written, and old ones pruned, in the background. All ranks call this. `groups`: {group: {name: tensor}}; `metadata`: JSON
        values for the manifest. Of the stage's checkpoints the newest `keep` stay (0: all), and that of step `spared`. `config`: the run's
        configuration as YAML, of which the folder gets a copy.
        """
        self.wait()
        if self._group is None and sharded_files.any_sharded(groups):
            self._group = dist.new_group(backend="gloo")
        rows, rank_files = sharded_files.divide(groups, self.ranks, self._group)
        writes = rank_files.ranks > 1 or self.ranks.first
        copied, waiting = copy_out(rows, self._copied), failed_writes.Waiting()
        self._copied, self._waiting = copied, waiting
        metadata = json.loads(json.dumps(metadata))

        def work() -> None:
            if writes:
                write = functools.partial(checkpoint.write, folder, copied, metadata, rank_files, config)
                try:
                    write()
                except Exception as error:  # noqa: BLE001  raised there, unless a later try succeeds
                    failed_writes.until_written(write, error, rank_files, waiting, background=self.background)
            if self.ranks.first:
                try:
                    checkpoint.prune(folder.parent, keep, spared, kept_averages.keep)
                except OSError as error:
                    failed_writes.tell_unpruned(folder.parent, error)

        self._thread = threading.Thread(target=self._guarded, args=(work,), name="plait-save")
        self._thread.start()
        if not self.background:
            self.wait()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  raised in the training thread by wait()
            self._error = error
        finally:
            self._waiting.settled.set()

    def wait(self) -> None:
        """Wait for the last write on all ranks. All ranks call this; `save` begins with it.

        Raises the write's error on its rank, and PlaitError with the same message on the others.
        """
        self._settle()
        self.ranks.barrier()
        self._join()
        error, self._error = self._error, None
        messages = self.ranks.gather(error and f"{error}")
        if error is not None:
            raise error
        for message in messages:
            if message is not None:
                raise PlaitError(message)

    def _settle(self) -> None:
        """Wait for the write, but not for its last try."""
        self._waiting.awaited.set()
        if self._thread is not None:
            self._waiting.settled.wait()

    def _join(self) -> None:
        self.mark("write")
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """Wait for the last write on this rank alone, at the run's end or after an error: other ranks may be gone. Raises its error."""
        self._settle()
        self._join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
