"""Checkpoints on disk: a folder of safetensors and a manifest written last, so that a folder with a manifest is complete.

    RUN/stage-1-projection/step-00001000/{weights,ema,moments}.safetensors + manifest.json

A stage is a part of a run with its own settings. Each file holds a group (kind) of tensors by parameter name. Where the state is sharded,
each rank writes its own (`sharded_files.py`); any number of ranks can read them.

A flipped byte loads without an error in every tensor format we know, so each file's xxh3 is in the manifest and checked before use.
"""

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from torch import Tensor

from plait import files
from plait.config import signed
from plait.engine.checkpoints import disk_errors, stored_files
from plait.engine.checkpoints.sharded_files import Groups, RankFiles
from plait.engine.parallel.distributed import StoredTensor, full_tensor
from plait.errors import PlaitError

log = logging.getLogger(__name__)

FORMAT = "plait-checkpoint-1"  # `format` in manifest.json
ONE_RANK = RankFiles()  # for a run of one process, which writes all files
_STEP = re.compile(r"step-(\d{8,})$")
_STAGE = re.compile(r"stage-(\d+)-")
UNFINISHED = ".saving-"
_REPLACED = ".replaced-"
_HUB_BLOBS = "blobs"
"""The folder of the Hub's cache in which the files of a snapshot are: a snapshot itself holds links to them, and nothing else may."""
_FORMER = {"world": "ranks"}
_FORMER_STATE = {"judged": "evaluated_step"}
"""Keys of a manifest, and of its `state`, in older checkpoints -> their names now."""
AVERAGES = "averages"
"""In a run directory: the folder with the post-hoc averages of deleted checkpoints."""


@dataclass(frozen=True)
class Checkpoint:
    """A finished checkpoint: its folder, and its manifest.json as a dict (`state`, `files` with size and hash, and more)."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Number of optimizer updates, over all stages of the run, that it holds."""
        return int(self.manifest["state"]["step"])

    def tensors(self, group: str) -> dict[str, Tensor]:
        """Return the full tensors of a group (weights, ema, moments, ...) on the CPU; empty when there are none."""
        return {name: full_tensor(value) for name, value in self.stored(group).items()}

    def stored(self, group: str) -> dict[str, StoredTensor]:
        """Return a group's tensors by name, memory-mapped; those in several ranks' files are LazyShardedTensors, read by rows on demand."""
        return stored_files.read(self.folder, group, list(self.manifest["files"]))


def folder_of(run: Path, stage: int, stage_name: str, step: int) -> Path:
    """Return the folder of a checkpoint: (run, 1, "projection", 1000) -> RUN/stage-1-projection/step-00001000."""
    return run / f"stage-{stage}-{stage_name}" / f"step-{step:08d}"


def write(folder: Path, groups: Groups, metadata: Mapping[str, Any], rank_files: RankFiles = ONE_RANK, config: str = "") -> Checkpoint:
    """Write a checkpoint: tensors into an unfinished folder, flushed and hashed, the manifest last, then rename the folder.

    `groups`: {group: {name: tensor}}; empty ones have no file. `metadata`: JSON values, such as `state`; `rank_files`: names and writes
    this rank's files; `config`: the run's configuration as YAML, to be copied beside the tensors. An interrupted write leaves only an
    unfinished folder, which the next start removes. A checkpoint of the same step is deleted only once the new one is in place. With
    several ranks all call this, each with its own rows; rank 0 renames the folder once all have flushed. Raises PlaitError on every rank if
    writing fails on one; earlier checkpoints are untouched.
    """
    unfinished, replaced = (folder.with_name(f"{prefix}{folder.name}") for prefix in (UNFINISHED, _REPLACED))
    first = rank_files.rank == 0
    try:
        rank_files.run_on_all(lambda: _make_folder(unfinished, replaced) if first else None)
        by_rank = rank_files.run_on_all(lambda: _write_files(unfinished, groups, rank_files))
        listed = {name: entry for entries in by_rank for name, entry in entries.items()}
        manifest = {"format": FORMAT, "kind": "resumable", **metadata, "files": listed}
        manifest["xxh3"] = manifest_hash(manifest)
        rank_files.run_on_all(lambda: _publish(folder, unfinished, replaced, manifest, config) if first else None)
    except Exception as error:
        if first:
            shutil.rmtree(unfinished, ignore_errors=True)
            with contextlib.suppress(OSError):
                _restore_replaced(replaced)
        if isinstance(error, OSError):
            held = "earlier checkpoints are intact" if disk_errors.has_checkpoint(folder.parent.parent) else "no checkpoint exists yet"
            raise PlaitError(f"checkpoint {folder} could not be written: {error}; {held}, free space or mend the disk") from error
        raise
    return Checkpoint(folder, manifest)


def _make_folder(unfinished: Path, replaced: Path) -> None:
    _restore_replaced(replaced)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(exist_ok=True)  # not the run directory: where that has gone, a checkpoint would be stranded
    unfinished.mkdir()


def _write_files(unfinished: Path, groups: Groups, rank_files: RankFiles) -> dict[str, dict[str, Any]]:
    """Write this rank's files; returns the size and hash of each by name."""
    listed = {}
    for group, tensors in ((group, tensors) for group, tensors in groups.items() if tensors):
        name = rank_files.name(group)
        path = unfinished / name
        path.parent.mkdir(exist_ok=True)
        listed[name] = rank_files.save(path, group, tensors)
    return listed


def _publish(folder: Path, unfinished: Path, replaced: Path, manifest: Mapping[str, Any], config: str) -> None:
    if config:  # without `parents`: where the run has gone meanwhile, half a checkpoint would be stranded in its place
        files.write_whole(unfinished / signed.COPY, signed.sign(config), parents=False)
    files.write_whole(unfinished / "manifest.json", files.json_text(manifest), parents=False)
    if folder.exists():
        folder.rename(replaced)
    unfinished.rename(folder)
    files.sync_folder(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _restore_replaced(replaced: Path) -> None:
    """Give a checkpoint that was to be replaced its name back, or delete it when its successor was published."""
    if not replaced.exists():
        return
    folder = replaced.with_name(replaced.name.removeprefix(_REPLACED))
    if folder.exists():
        shutil.rmtree(replaced)
    else:
        replaced.rename(folder)


def manifest_hash(manifest: Mapping[str, Any]) -> str:
    """Return the xxh3 of a manifest without its own `xxh3`."""
    body = {key: value for key, value in manifest.items() if key != "xxh3"}
    return xxhash.xxh3_64_hexdigest(json.dumps(body, sort_keys=True).encode())


def read(folder: Path) -> Checkpoint:
    """Read the manifest of the checkpoint in `folder`, not its files. Raises PlaitError if it is missing, damaged or of another format."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise PlaitError(f"{folder} is no finished checkpoint: it has no manifest.json")
    try:
        body = path.read_bytes()
        manifest = json.loads(body)
        known, listed = manifest["format"], manifest["xxh3"]
        _check_structure(manifest, folder)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise PlaitError(f"{path} is damaged: it is not a manifest ({type(error).__name__}: {str(error)[:100]})") from error
    if listed != manifest_hash(manifest) or body != files.json_text(manifest).encode():
        raise PlaitError(f"{path} is damaged: its content does not match its own xxh3 {listed}")
    if known != FORMAT:
        raise PlaitError(f"{path} has format {known!r}; this plait reads {FORMAT!r}")
    for part, names in ((manifest, _FORMER), (manifest["state"], _FORMER_STATE)):
        part.update({name: part.pop(former) for former, name in names.items() if former in part})
    return Checkpoint(folder, manifest)


def _check_structure(manifest: Mapping[str, Any], folder: Path) -> None:
    """Raise ValueError, KeyError or TypeError where a manifest lacks what readers rely on, or names a file outside of its folder."""
    for name, entry in manifest["files"].items():
        if name != os.path.normpath(name) or name.startswith(("/", "..")):
            raise ValueError(f"it names {name!r}, which is not inside the folder")
        if not isinstance(entry["size"], int) or not isinstance(entry["xxh3"], str):
            raise TypeError(f"size and xxh3 of {name!r} are not a number and a text")
    state, named = manifest["state"], _order(folder)
    if not isinstance(state["step"], int) or state["step"] < 0:
        raise ValueError(f"its step is {state['step']!r}")
    if named is not None and manifest["kind"] == "resumable" and state.get("stage", named[1]) != named[1]:
        raise ValueError(f"its stage is {state['stage']!r} in a folder of stage {named[1]}")


def size_fault(path: Path, listed: Mapping[str, Any]) -> str | None:
    """Return a line if a file is missing, no regular one, or not of `listed["size"]` bytes, as its manifest says; else None."""
    if not path.is_file() or (path.is_symlink() and path.resolve().parent.name != _HUB_BLOBS):
        return f"{path} is {'no regular file' if path.exists() else 'missing'}"
    size = path.stat().st_size
    return None if size == listed["size"] else f"{path} is damaged: {size} bytes, the manifest says {listed['size']}"


def _looks_whole(folder: Path) -> bool:
    """Return whether a checkpoint has all its files in their sizes; their content is not read."""
    try:
        listed = read(folder).manifest["files"]
    except PlaitError:
        return False
    return not any(size_fault(folder / name, entry) for name, entry in listed.items())


def published(run: Path) -> list[Path]:
    """Return the folders (RUN/stage-*/step-*) of the checkpoints of the run directory `run`, newest first.

    A folder gets this name when it is whole: one without a manifest is a damaged checkpoint, not an unfinished one.
    """
    folders = [path for path in run.glob("stage-*/step-*") if path.is_dir() and _order(path) is not None]
    return sorted(folders, key=lambda folder: _order(folder) or (0, 0), reverse=True)


def _order(folder: Path) -> tuple[int, int] | None:
    """Return (step, stage) from the names of a checkpoint's folders, or None where they are named otherwise."""
    step, stage = _STEP.match(folder.name), _STAGE.match(folder.parent.name)
    return (int(step.group(1)), int(stage.group(1))) if step and stage else None


def step_of(folder: Path) -> int:
    """Return the step in the name of a checkpoint's folder: step-00001000 -> 1000."""
    return int(folder.name.removeprefix("step-"))


def is_step(path: Path) -> bool:
    """Return whether a path is named as a checkpoint's folder: step- and at least eight digits. Reads nothing."""
    return _STEP.match(path.name) is not None


def run_of(path: Path) -> Path:
    """Return the run directory of a path in it: RUN, RUN/stage-1-projection and RUN/stage-1-projection/step-00001000 all give RUN."""
    if is_step(path):
        return path.parent.parent
    return path.parent if _STAGE.match(path.name) else path


def clear_unfinished(run: Path) -> int:
    """Remove the folders of interrupted saves in a run, and restore the checkpoints they were to replace; returns how many were removed."""
    for replaced in run.glob(f"stage-*/{_REPLACED}*"):
        _restore_replaced(replaced)
    unfinished = list(run.glob(f"*/{UNFINISHED}*"))
    for folder in unfinished:
        shutil.rmtree(folder, ignore_errors=True)
    return len(unfinished)


def prune(stage_folder: Path, keep: int, spared: int | None = None, before: Callable[[Path], object] = lambda _: None) -> list[Path]:
    """Delete a stage's checkpoints except the newest `keep` (0: all of them) and that of step `spared`; returns the deleted folders.

    `spared`: the step with the best evaluation, or None. `before`: called with each folder before it is deleted. A checkpoint with a
    missing or wrongly sized file is neither counted nor deleted.
    """
    of_stage = [folder for folder in published(stage_folder.parent) if folder.parent == stage_folder and _looks_whole(folder)]
    deleted = [folder for folder in of_stage[keep or len(of_stage) :] if folder.name != f"step-{spared or 0:08d}"]
    for folder in deleted:
        delete(folder, before)
    return deleted


def delete(folder: Path, before: Callable[[Path], object]) -> None:
    """Delete a checkpoint, after `before` was called with its folder. What a kill leaves of it is swept, and counts as no checkpoint."""
    before(folder)
    unwanted = folder.with_name(f"{UNFINISHED}{folder.name}")
    if unwanted.exists():
        shutil.rmtree(unwanted)
    folder.rename(unwanted)
    shutil.rmtree(unwanted)
