"""Find checkpoints that are intact: every file in the manifest is there, with its size and hash. A stage is a part of a run."""

import logging
import shutil
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from plait import files
from plait.engine.checkpoints import stored_files
from plait.engine.checkpoints.checkpoint import Checkpoint, is_step, published, read, run_of, size_fault, step_of
from plait.errors import PlaitError, command

log = logging.getLogger(__name__)


def verify(folder: Path) -> list[str]:
    """Check every file of the checkpoint in `folder` against its size and xxh3. Returns a line per fault, none when it is intact."""
    return _verified(folder)[1]


def _verified(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the checkpoint in `folder`, None where its manifest cannot be read, and a line per fault."""
    try:
        found = read(folder)
    except PlaitError as error:
        return None, [str(error)]
    listed_files = {folder / name: listed for name, listed in found.manifest["files"].items()}
    return found, [fault for path, listed in listed_files.items() if (fault := size_fault(path, listed) or _content_fault(path, listed))]


def _content_fault(path: Path, listed: Mapping[str, Any]) -> str | None:
    """Return what reading a file shows: an error of the disk, another hash, or a header that is none of safetensors."""
    try:
        xxh3 = files.xxh3(path)
        if xxh3 != listed["xxh3"]:
            return f"{path} is damaged: xxh3 {xxh3}, the manifest says {listed['xxh3']}"
        stored_files.check_header(path)
    except (OSError, SafetensorError) as error:
        return f"{path} cannot be read: {error}"
    return None


def newest_intact(run: Path, unread: Mapping[Path, str] = types.MappingProxyType({})) -> tuple[Checkpoint | None, list[str]]:
    """Return (the newest intact checkpoint of the run directory, or None; a line per fault of the newer, damaged ones).

    `unread`: {folder of a checkpoint: why it counts as damaged without being read}.
    """
    faults: list[str] = []
    for folder in published(run):
        found, of_folder = (None, [unread[folder]]) if folder in unread else _verified(folder)
        if not of_folder:
            return found, faults
        faults.extend(of_folder)
    return None, faults


def set_aside_damaged(run: Path, intact: Checkpoint) -> list[Path]:
    """Rename the checkpoints newer than `intact`, all damaged, to `damaged-step-N`, so that none counts as kept; returns the new paths."""
    aside = []
    for folder in published(run):
        if folder == intact.folder:
            break
        target = folder.with_name(f"damaged-{folder.name}")
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)
        aside.append(target)
    return aside


def locate(path: Path) -> Checkpoint:
    """Return the intact checkpoint at a step folder, or the newest in a stage folder or run. Raises PlaitError if there is none."""
    if is_step(path):
        found, faults = _verified(path)
        if found is None or faults:
            raise PlaitError(f"{faults[0]}; `{command('ckpt', 'verify', run_of(path))}` says which are intact")
        return found
    folders = [folder for folder in published(run_of(path)) if path in folder.parents]
    first_fault = ""
    for folder in folders:
        found, faults = _verified(folder)
        if found is not None and not faults:
            if first_fault:
                log.warning(f"passed over: {first_fault}; this is of {folder}")
            return found
        first_fault = first_fault or faults[0]
    if folders:
        raise PlaitError(none_intact(path, folders, first_fault))
    raise PlaitError(f"{path} holds no checkpoint; give a run, a stage folder or a step folder")


def none_intact(path: Path, damaged: Sequence[Path], fault: str) -> str:
    """Return the message that all checkpoints of a run or stage, the folder `path`, are damaged, and what to do.

    `damaged`: the checkpoints' folders, newest first. `fault`: a line that says what is wrong with the newest.
    """
    run, count, last = run_of(path), len(damaged), step_of(damaged[0])
    lost = f"{count} checkpoints, up to step {last}, and none is" if count > 1 else f"1 checkpoint, of step {last}, and it is not"
    anew = f"mend the disk or copy them back, or `{command('train', run, '--restart')}` begins anew and keeps this run aside"
    look = f"`{command('ckpt', 'verify', run)}`"
    cure = f"{anew}; {look} lists every fault" if path == run else f"{look} says what other stages have"
    return f"{path} has {lost} intact: {fault}; {cure}"
