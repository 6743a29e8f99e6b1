"""Push checkpoints to the Hub (`hub:`) and copy them to a mirror (`checkpoint.mirror`) while a run trains.

A hook puts what is pushed into a queue, and a process beside the run sends it, and keeps the mirror. The hook links files, which takes no
time; the loop never waits for a network. When the run has ended, what is left is waited for.
"""

import contextlib
import logging
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plait.commands.actions.publishing import contents, outbox
from plait.config import signed
from plait.config.resolved import Resolved
from plait.config.sections.hub import Hub
from plait.engine.checkpoints import checkpoint
from plait.engine.checkpoints.checkpoint import Checkpoint
from plait.engine.loop import Hook
from plait.engine.monitoring.beside.process import SideProcess, Words
from plait.engine.state import State
from plait.errors import PlaitError, command

log = logging.getLogger(__name__)

_CLOCK_NS = 50_000_000
"""Within which two changes of a folder may have the same time."""
_left: list["subprocess.Popen[bytes]"] = []
"""Processes that send on after a run was stopped, kept here as Python warns of those that are dropped."""


class Pushes:
    """A hook of the loop that puts checkpoints into the queue of a run, and looks after the process that sends it.

    `hub`: None: nothing is pushed, and the process keeps the mirror alone. Of the checkpoints that are there at its first call, the newest
    counts as new, if it was not sent before.
    """

    def __init__(self, run: Path, resolved: Resolved, hub: Hub | None) -> None:
        self.run, self.resolved, self.hub = run, resolved, hub
        self.mirror = resolved.config.checkpoint.mirror
        self._seen: set[tuple[Path, int]] | None = None
        """The `_key` of each checkpoint that was looked at."""
        self._looked_ns = 0
        self._side: SideProcess | None = None

    def __call__(self, state: State, row: Mapping[str, Any]) -> None:
        """Put new checkpoints into the queue, and log what the process has said."""
        changed_ns = self._changed_ns()
        if changed_ns != self._looked_ns:
            self._look()
            self._looked_ns = changed_ns if time.time_ns() - changed_ns > _CLOCK_NS else 0
        if self._side is None:
            self._side = self._start()
        self._side.look()

    def _changed_ns(self) -> int:
        """Return when a folder of checkpoints was last changed, 0 without any: as long as that is the same, there is no other one."""
        return max((folder.stat().st_mtime_ns for folder in self.run.glob("stage-*")), default=0)

    def _look(self) -> None:
        """Put the checkpoints that were not there before into the queue, oldest first."""
        if self.hub is None:
            return
        folders = {_key(folder): folder for folder in reversed(checkpoint.published(self.run))}
        if self._seen is None:
            self._seen = set(list(folders)[:-1])
        for key in [key for key in folders if key not in self._seen]:
            self._seen.add(key)
            found = _read(folders[key])
            if found is not None and _is_wanted(self.hub, found):
                self._add(found, self.hub)

    def _add(self, found: Checkpoint, hub: Hub) -> None:
        """Put a checkpoint into the queue; what goes wrong is a warning, and the run goes on."""
        try:
            job = contents.job_of(found, self.resolved, hub.repo, private=hub.private, replace=False)
            if not outbox.waits(self.run, job) and not outbox.was_sent(self.run, job):
                contents.add(found, job)
            for dropped in outbox.shorten(self.run):
                log.warning(f"{dropped.title} is not pushed: {outbox.LONGEST} newer ones wait for {dropped.repo}")
        except (OSError, PlaitError) as error:
            log.warning(f"step {found.step} is not pushed: {error}; `{command('push', self.run)}` does so, if it is still there")

    def _start(self) -> SideProcess:
        kept = f"pushes wait in {self.run / outbox.FOLDER}, and checkpoints are where they were"
        words = Words("sends checkpoints", kept, "not all was sent", "not all was sent: the same command sends the rest")
        settings = {"run": str(self.run.absolute()), "hub": self.hub is not None, "mirror": self.mirror}
        settings |= {"patience_s": outbox.PATIENCE_S, "untaken_s": min(outbox.UNTAKEN_S, outbox.PATIENCE_S)}
        settings["keep"] = {f"stage-{view.index}-{view.name}": view.config.checkpoint.keep for view in self.resolved.stages}
        return SideProcess("plait.commands.actions.publishing.uploader", settings, words, {"HF_HUB_DISABLE_PROGRESS_BARS": "1"})

    def finish(self) -> None:
        """Put the last checkpoints into the queue, and wait until all is sent, or nothing was taken for some minutes (uploader.py)."""
        if not (self.run / signed.NAME).is_file():
            return
        self._look()
        count = len(outbox.waiting(self.run)) if self.hub is not None else 0
        if count or self.mirror is not None:
            self._side = self._side or self._start()
        if count and self.hub is not None:
            log.info(f"waiting for {count} push{'es' if count > 1 else ''} to {self.hub.repo}; Ctrl-C leaves the rest to `{self._again}`")
        if self._side is not None:
            try:
                self._side.close(patient=True)
            except KeyboardInterrupt:
                self._side.kill()
                log.warning(f"not all was sent: `{command('train', self.run)}` sends the rest")

    def leave(self) -> None:
        """Put the last checkpoints into the queue, and let the process send it without waiting for it: the run was stopped."""
        waiting = outbox.waiting(self.run) if self.hub is not None else []
        if self._side is None and not waiting:  # a start that failed
            return
        self._look()
        self._side = self._side or self._start()
        _left.append(self._side.leave())
        log.info(f"process {_left[-1].pid} sends the last checkpoints; if it is killed, the same command does")

    @property
    def _again(self) -> str:
        return command("push", self.run)


def _key(folder: Path) -> tuple[Path, int]:
    """Return what tells a checkpoint from others, and from one that was saved again in its place: its folder, and when that was made."""
    try:
        return folder, (folder / "manifest.json").stat().st_mtime_ns
    except OSError:
        return folder, 0


def _is_wanted(hub: Hub, found: Checkpoint) -> bool:
    """Return whether a checkpoint is one of those that are pushed."""
    state, best = found.manifest["state"], found.manifest["state"]["best"]
    if hub.push == "best":
        return best is not None and best["step"] == found.step
    return hub.push == "every_save" or state["stage_done"] is not None


def _read(folder: Path) -> Checkpoint | None:
    try:
        return checkpoint.read(folder)
    except PlaitError:
        return None


@contextlib.contextmanager
def pushed(resolved: Resolved) -> Iterator[tuple[Hook, ...]]:
    """Yield hooks that push checkpoints of a run while the block trains it, and wait at its end for what is left.

    () without `hub:` and `checkpoint.mirror`, and on every rank but the first.
    """
    hub = resolved.config.hub
    if (hub is None and resolved.config.checkpoint.mirror is None) or os.environ.get("RANK", "0") != "0":
        yield ()
        return
    pushes = Pushes(Path(str(resolved.config.run)), resolved, hub)
    try:
        yield (pushes,)
    except BaseException:  # such as a signal, after which a launcher allows some seconds
        pushes.leave()
        raise
    pushes.finish()
