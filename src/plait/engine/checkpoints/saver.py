"""Save in the background: tensors are copied (writing/copying.py), written and pruned (checkpoint.py) while training goes on."""

import functools
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from plait.engine.checkpoints import checkpoint, failed_writes, kept_averages, sharded_files
from plait.engine.checkpoints.sharded_files import Groups
from plait.engine.checkpoints.writing import copying
from plait.engine.parallel.distributed import Ranks
from plait.errors import PlaitError


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
        self._copying = copying.Copying() if background else None

    def save(
        self, folder: Path, groups: Groups, metadata: Mapping[str, Any], *, keep: int, spared: int | None = None, config: str = ""
    ) -> Callable[[], None]:
        """Wait for the last write and raise its error; then write copies of the tensors to `folder`, and prune old checkpoints.

        Returns a function that waits for the copy: call it before the tensors are changed in place; it raises the copy's error. All ranks
        call this. `groups`: {group: {name: tensor}}; `metadata`: JSON values for the manifest. Of the stage's checkpoints the newest `keep`
        stay (0: all), and that of step `spared`. `config`: the run's configuration as YAML, of which the folder gets a copy.
        """
        self.wait()
        if self._group is None and sharded_files.any_sharded(groups):
            self._group = dist.new_group(backend="gloo")
        rows, rank_files = sharded_files.divide(groups, self.ranks, self._group)
        writes = rank_files.ranks > 1 or self.ranks.first
        copy, copied = self._copying.begin(rows) if self._copying is not None else (lambda: rows, lambda: None)
        self._waiting = waiting = failed_writes.Waiting()
        metadata = json.loads(json.dumps(metadata))

        def work() -> None:
            copies = copy()
            if self.background and not waiting.awaited.is_set():
                copying.give_way()
            if writes:
                write = functools.partial(checkpoint.write, folder, copies, metadata, rank_files, config)
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
        return copied

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
            if self.background:
                copying.hurry(self._thread)
            self._waiting.settled.wait()

    def _join(self) -> None:
        self.mark("write")
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """Wait for the last write on this rank alone, at the run's end or after an error: other ranks may be gone. Raises its error."""
        self._settle()
        self._join()
        if self._copying is not None:
            self._copying.release()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
