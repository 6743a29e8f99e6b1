"""Checkpoints on disk: a folder of safetensors and a manifest written last, so that a folder with a manifest is complete.

    RUN/stage-1-projection/step-00001000/{weights,ema,moments}.safetensors + manifest.json

Each file holds a group of tensors by parameter name. Where the state is sharded, each rank writes its own (`sharded_files.py`); any number
of ranks can read them.

A flipped byte loads without an error in every tensor format we know, so each file's xxh3 is in the manifest and checked before use.
"""

import contextlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import xxhash
from torch import Tensor

from plait import files
from plait.engine import power_ema
from plait.engine.checkpoints import sharded_files
from plait.engine.checkpoints.sharded_files import Groups, RankFiles
from plait.engine.parallel.distributed import Ranks, StoredTensor, full_tensor
from plait.errors import PlaitError

FORMAT = "plait-checkpoint-1"
ONE_RANK = RankFiles()
_STEP = re.compile(r"step-(\d{8,})$")
_STAGE = re.compile(r"stage-(\d+)-")
_UNFINISHED = ".saving-"
_REPLACED = ".replaced-"
AVERAGES = "averages"
"""In a run directory: the folder with the post-hoc averages of deleted checkpoints."""


@dataclass(frozen=True)
class Checkpoint:
    """A finished checkpoint: its folder and its manifest."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Updates done when it was written."""
        return int(self.manifest["state"]["step"])

    def tensors(self, group: str) -> dict[str, Tensor]:
        """Return the full tensors of a group (weights, ema, moments, ...) on the CPU; empty when there are none."""
        return {name: full_tensor(value) for name, value in self.stored(group).items()}

    def stored(self, group: str) -> dict[str, StoredTensor]:
        """Return a group's tensors by name, not yet read if many ranks wrote them: `full_tensor` and `reshard_like` read rows as needed."""
        return sharded_files.read(self.folder, group, list(self.manifest["files"]))


def folder_of(run: Path, stage: int, stage_name: str, step: int) -> Path:
    """Return the folder of a checkpoint: (run, 1, "projection", 1000) -> RUN/stage-1-projection/step-00001000."""
    return run / f"stage-{stage}-{stage_name}" / f"step-{step:08d}"


def copy_out(groups: Groups, into: Groups | None = None) -> dict[str, dict[str, Tensor]]:
    """Copy tensors (by group and name) to host memory: training can go on while they are written. Empty groups are left out.

    `into`: earlier copies that are no longer read. Their memory is used again where shape and dtype fit: allocating costs more.
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


def write(folder: Path, groups: Groups, metadata: Mapping[str, Any], rank_files: RankFiles = ONE_RANK) -> Checkpoint:
    """Write a checkpoint: tensors into an unfinished folder, flushed and hashed, the manifest last, then rename the folder.

    `metadata` becomes the manifest's content. An interrupted write leaves only an unfinished folder, which the next start removes.
    A checkpoint of the same step is renamed before, and deleted after, the new one is published: one of the two always exists.
    With several ranks all call this, each with its own rows (`rank_files`); rank 0 publishes what all have flushed.
    Raises PlaitError on every rank when writing fails on one; earlier checkpoints are untouched.
    """
    unfinished, replaced = (folder.with_name(f"{prefix}{folder.name}") for prefix in (_UNFINISHED, _REPLACED))
    first = rank_files.rank == 0
    try:
        rank_files.run_on_all(lambda: _make_folder(unfinished, replaced) if first else None)
        by_rank = rank_files.run_on_all(lambda: _write_files(unfinished, groups, rank_files))
        listed = {name: entry for entries in by_rank for name, entry in entries.items()}
        manifest = {"format": FORMAT, "kind": "resumable", **metadata, "files": listed}
        manifest["xxh3"] = _manifest_hash(manifest)
        rank_files.run_on_all(lambda: _publish(folder, unfinished, replaced, manifest) if first else None)
    except Exception as error:
        if first:
            shutil.rmtree(unfinished, ignore_errors=True)
            with contextlib.suppress(OSError):
                _restore_replaced(replaced)
        if isinstance(error, OSError) or "SafetensorError" in type(error).__name__:
            raise PlaitError(
                f"checkpoint {folder} could not be written: {error}; earlier checkpoints are intact, free space or mend the disk"
            ) from error
        raise
    return Checkpoint(folder, manifest)


def _make_folder(unfinished: Path, replaced: Path) -> None:
    _restore_replaced(replaced)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)


def _write_files(unfinished: Path, groups: Groups, rank_files: RankFiles) -> dict[str, dict[str, Any]]:
    """Write this rank's files; returns the size and hash of each by name."""
    listed = {}
    for group, tensors in groups.items():
        name = rank_files.name(group)
        path = unfinished / name
        path.parent.mkdir(exist_ok=True)
        rank_files.save(path, group, tensors)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        listed[name] = {"size": path.stat().st_size, "xxh3": files.xxh3(path)}
    return listed


def _publish(folder: Path, unfinished: Path, replaced: Path, manifest: Mapping[str, Any]) -> None:
    files.write_json(unfinished / "manifest.json", manifest)
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


def _manifest_hash(manifest: Mapping[str, Any]) -> str:
    """Return the xxh3 of a manifest without its own `xxh3`."""
    body = {key: value for key, value in manifest.items() if key != "xxh3"}
    return xxhash.xxh3_64_hexdigest(json.dumps(body, sort_keys=True).encode())


def read(folder: Path) -> Checkpoint:
    """Read the manifest of the checkpoint in `folder`, without checking its files. Raises PlaitError when there is no usable one."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise PlaitError(f"{folder} is no finished checkpoint: it has no manifest.json")
    try:
        body = path.read_bytes()
        manifest = json.loads(body)
        known, listed = manifest["format"], manifest["xxh3"]
    except (ValueError, KeyError, TypeError) as error:
        raise PlaitError(f"{path} is damaged: it is not a manifest ({type(error).__name__})") from error
    if listed != _manifest_hash(manifest) or body != files.json_text(manifest).encode():
        raise PlaitError(f"{path} is damaged: its content does not match its own xxh3 {listed}")
    if known != FORMAT:
        raise PlaitError(f"{path} has format {known!r}; this plait reads {FORMAT!r}")
    return Checkpoint(folder, manifest)


def verify(folder: Path) -> list[str]:
    """Check every file of the checkpoint in `folder` against its size and xxh3; returns a line per fault, none when it is intact."""
    try:
        manifest = read(folder).manifest
    except PlaitError as error:
        return [str(error)]
    faults = []
    for name, listed in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            faults.append(f"{path} is missing")
        elif path.stat().st_size != listed["size"]:
            faults.append(f"{path} is damaged: {path.stat().st_size} bytes, the manifest says {listed['size']}")
        elif (xxh3 := files.xxh3(path)) != listed["xxh3"]:
            faults.append(f"{path} is damaged: xxh3 {xxh3}, the manifest says {listed['xxh3']}")
    return faults


def published(run: Path) -> list[Path]:
    """Return the folders of finished checkpoints of a run, newest first."""
    folders = [path.parent for path in run.glob("stage-*/step-*/manifest.json") if _order(path.parent) is not None]
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
    """Return the run directory that a run, stage or step folder belongs to."""
    if is_step(path):
        return path.parent.parent
    return path.parent if _STAGE.match(path.name) else path


def newest_intact(run: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint whose every file is intact (None: none is), and a line per fault of the newer ones."""
    faults: list[str] = []
    for folder in published(run):
        of_folder = verify(folder)
        if not of_folder:
            return read(folder), faults
        faults.extend(of_folder)
    return None, faults


def locate(path: Path) -> Checkpoint:
    """Return the intact checkpoint at `path`: that of a step folder, or the newest of a stage folder or run.

    Raises PlaitError when there is none, or when the step folder named is damaged.
    """
    if is_step(path):
        faults = verify(path)
        if faults:
            raise PlaitError(f"{faults[0]}; `plait ckpt verify {run_of(path)}` lists the intact ones")
        return read(path)
    for folder in published(run_of(path)):
        if path in folder.parents and not verify(folder):
            return read(folder)
    raise PlaitError(f"{path} holds no intact checkpoint; give a run, a stage folder or a step folder")


def clear_unfinished(run: Path) -> int:
    """Remove the unfinished folders of interrupted saves in a run, and restore what they were to replace; returns how many were removed."""
    for replaced in run.glob(f"stage-*/{_REPLACED}*"):
        _restore_replaced(replaced)
    unfinished = list(run.glob(f"*/{_UNFINISHED}*"))
    for folder in unfinished:
        shutil.rmtree(folder, ignore_errors=True)
    return len(unfinished)


def prune(stage_folder: Path, keep: int, spared: int | None = None) -> list[Path]:
    """Delete a stage's checkpoints but for the newest `keep` and that of step `spared` (the best so far); returns the deleted folders."""
    of_stage = [folder for folder in published(stage_folder.parent) if folder.parent == stage_folder]
    deleted = [folder for folder in of_stage[keep:] if folder.name != f"step-{spared or 0:08d}"]
    for folder in deleted:
        _keep_averages(folder)
        (folder / "manifest.json").unlink()
        shutil.rmtree(folder)
    return deleted


def _keep_averages(folder: Path) -> None:
    """Keep the post-hoc averages of a checkpoint that is about to be deleted, as RUN/averages/step-N with a manifest of their own."""
    checkpoint = read(folder)
    listed = checkpoint.manifest["files"].items()
    kept = {name: entry for name, entry in listed if name.split("/")[0].removesuffix(".safetensors") in power_ema.KEPT}
    if not kept:
        return
    target = folder.parent.parent / AVERAGES / folder.name
    unfinished = target.with_name(f"{_UNFINISHED}{target.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    for name in kept:
        (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            (unfinished / name).hardlink_to(folder / name)
        except OSError:  # a file system without links
            shutil.copyfile(folder / name, unfinished / name)
    manifest = {"format": FORMAT, "kind": "averages", "state": {"step": checkpoint.step}, "files": kept}
    files.write_json(unfinished / "manifest.json", {**manifest, "xxh3": _manifest_hash(manifest)})
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)


class Saver:
    """Writes checkpoints in a `background` thread, one at a time. An error on one rank is raised on all, at the next save or `wait`."""

    def __init__(self, background: bool, ranks: Ranks) -> None:
        self.background, self.ranks = background, ranks
        self._group: dist.ProcessGroup | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._copied: dict[str, dict[str, Tensor]] = {}

    def save(self, folder: Path, groups: Groups, metadata: Mapping[str, Any], *, keep: int, spared: int | None = None) -> None:
        """Copy the tensors to host memory, then write and prune in the background (or at once, without `background`).

        All ranks call this. `keep`, `spared`: see `prune`. Raises what the last write raised.
        """
        self.wait()
        if self._group is None and sharded_files.is_sharded(groups):
            self._group = dist.new_group(backend="gloo")
        rows, rank_files = sharded_files.divide(groups, self.ranks, self._group)
        writes = rank_files.ranks > 1 or self.ranks.first
        copied = self._copied = copy_out(rows, self._copied)
        metadata = json.loads(json.dumps(metadata))

        def work() -> None:
            if writes:
                write(folder, copied, metadata, rank_files)
            if self.ranks.first:
                prune(folder.parent, keep, spared)

        if not self.background:
            self._guarded(work)
            self.wait()
            return
        self._thread = threading.Thread(target=self._guarded, args=(work,), name="plait-save")
        self._thread.start()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  raised in the training thread by wait()
            self._error = error

    def wait(self) -> None:
        """Wait for the last write on all ranks, which all call this; raises what it raised on any of them."""
        self._join()
        error, self._error = self._error, None
        messages = self.ranks.gather(error and f"{error}")
        if error is not None:
            raise error
        for message in messages:
            if message is not None:
                raise PlaitError(message)

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Wait for the last write on this rank; raises what it raised. No collective: another rank may have ended."""
        self._join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
