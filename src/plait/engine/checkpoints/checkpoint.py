"""Checkpoints on disk: a folder of safetensors and a manifest written last, so that what has a manifest is whole.

    RUN/stage-1-projection/step-00001000/{weights,ema,moments}.safetensors + manifest.json

Where the state is cut over ranks, each writes its own part (`pieces.py`); which ranks there are when it is read does not matter.

A flipped byte loads without an error in every tensor format we know, so each file's xxh3 is in the manifest and checked before use.
"""

import contextlib
import json
import os
import re
import shutil
import threading
from collections.abc import Mapping
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
from plait.engine.checkpoints.sharded_files import Groups, Share
from plait.engine.parallel.distributed import Ranks, StoredTensor, full_tensor
from plait.errors import PlaitError

FORMAT = "plait-checkpoint-1"
ALONE = Share()
_STEP = re.compile(r"step-(\d{8,})$")
_STAGE = re.compile(r"stage-(\d+)-")
_UNFINISHED = ".saving-"
_REPLACED = ".replaced-"
AVERAGES = "averages"
"""The folder of a run where deleted checkpoints leave their post-hoc averages."""


@dataclass(frozen=True)
class Checkpoint:
    """One published folder and its manifest."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Updates done when it was written."""
        return int(self.manifest["state"]["step"])

    def tensors(self, group: str) -> dict[str, Tensor]:
        """The tensors of weights, ema or moments on the CPU, each whole; empty when it holds none."""
        return {name: full_tensor(value) for name, value in self.saved(group).items()}

    def saved(self, group: str) -> dict[str, StoredTensor]:
        """The same as they lie in files: what many ranks wrote is put together by who asks, as far as it is asked for."""
        return sharded_files.read(self.folder, group, list(self.manifest["files"]))


def folder_of(run: Path, stage: int, stage_name: str, step: int) -> Path:
    """Where the checkpoint of this moment lies."""
    return run / f"stage-{stage}-{stage_name}" / f"step-{step:08d}"


def copy_out(groups: Groups, into: Groups | None = None) -> dict[str, dict[str, Tensor]]:
    """The tensors copied to host memory, so that training may go on while they are written. Groups without tensors are left out.

    `into`: earlier copies that nobody reads any more. Those that fit are filled again: fresh memory costs more than the copying does.
    """
    old = into or {}

    def copied_value(group: str, name: str, value: Tensor) -> Tensor:
        home = old.get(group, {}).get(name)
        if home is not None and home.shape == value.shape and home.dtype == value.dtype:
            return home.copy_(value.detach())
        return value.detach().to("cpu", copy=True).contiguous()

    copied = {
        group: {name: copied_value(group, name, value) for name, value in tensors.items()} for group, tensors in groups.items() if tensors
    }
    if any(value.is_cuda for tensors in groups.values() for value in tensors.values()):
        torch.cuda.synchronize()
    return copied


def write(folder: Path, groups: Groups, facts: Mapping[str, Any], share: Share = ALONE) -> Checkpoint:
    """Write one checkpoint: tensors into an unfinished folder beside, flushed and hashed, the manifest last, then one rename.

    `facts` becomes the manifest's own content. An interrupted write leaves only an unfinished folder, which the next run clears.
    A checkpoint of the same moment is moved aside before, and deleted after, the rename: at every instant one of the two is whole.
    Ranks that write it together call this together, each with its own part; rank 0 publishes what all have flushed.
    Raises PlaitError on every rank when the disk refuses one; earlier checkpoints are untouched.
    """
    beside, aside = (folder.with_name(f"{mark}{folder.name}") for mark in (_UNFINISHED, _REPLACED))
    first = share.rank == 0
    try:
        share.together(lambda: _prepare(beside, aside) if first else None)
        parts = share.together(lambda: _write_files(beside, groups, share))
        listed = {name: known for part in parts for name, known in part.items()}
        manifest = {"format": FORMAT, "kind": "resumable", **facts, "files": listed}
        manifest["xxh3"] = _own_hash(manifest)
        share.together(lambda: _publish(folder, beside, aside, manifest) if first else None)
    except Exception as error:
        if first:
            shutil.rmtree(beside, ignore_errors=True)
            with contextlib.suppress(OSError):
                _bring_back(aside)
        if isinstance(error, OSError) or "SafetensorError" in type(error).__name__:
            raise PlaitError(
                f"checkpoint {folder} could not be written: {error}; earlier checkpoints are intact, free space or mend the disk"
            ) from error
        raise
    return Checkpoint(folder, manifest)


def _prepare(beside: Path, aside: Path) -> None:
    _bring_back(aside)
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)


def _write_files(beside: Path, groups: Groups, share: Share) -> dict[str, dict[str, Any]]:
    """Size and hash of each file that this rank wrote."""
    listed = {}
    for group, tensors in groups.items():
        name = share.path(group)
        path = beside / name
        path.parent.mkdir(exist_ok=True)
        share.save(path, group, tensors)
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
        listed[name] = {"size": path.stat().st_size, "xxh3": files.xxh3(path)}
    return listed


def _publish(folder: Path, beside: Path, aside: Path, manifest: Mapping[str, Any]) -> None:
    files.write_json(beside / "manifest.json", manifest)
    if folder.exists():
        os.rename(folder, aside)
    os.rename(beside, folder)
    files.sync_folder(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _bring_back(aside: Path) -> None:
    """A checkpoint that was moved aside returns to its place, or goes when its successor is there."""
    if aside.exists():
        folder = aside.with_name(aside.name.removeprefix(_REPLACED))
        shutil.rmtree(aside) if folder.exists() else os.rename(aside, folder)


def _own_hash(manifest: Mapping[str, Any]) -> str:
    body = {key: value for key, value in manifest.items() if key != "xxh3"}
    return xxhash.xxh3_64_hexdigest(json.dumps(body, sort_keys=True).encode())


def read(folder: Path) -> Checkpoint:
    """The checkpoint in `folder` by its manifest, its files unchecked. Raises PlaitError when there is no usable manifest."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise PlaitError(f"{folder} is no finished checkpoint: it has no manifest.json")
    try:
        body = path.read_bytes()
        manifest = json.loads(body)
        known, listed = manifest["format"], manifest["xxh3"]
    except (ValueError, KeyError, TypeError) as error:
        raise PlaitError(f"{path} is damaged: it is not a manifest ({type(error).__name__})") from error
    if listed != _own_hash(manifest) or body != files.json_text(manifest).encode():
        raise PlaitError(f"{path} is damaged: its content does not match its own xxh3 {listed}")
    if known != FORMAT:
        raise PlaitError(f"{path} has format {known!r}; this plait reads {FORMAT!r}")
    return Checkpoint(folder, manifest)


def verify(folder: Path) -> list[str]:
    """Every fault of the checkpoint in `folder`, one line each, by size and xxh3 of each file; empty when it is intact."""
    try:
        manifest = read(folder).manifest
    except PlaitError as error:
        return [str(error)]
    faults = []
    for name, facts in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            faults.append(f"{path} is missing")
        elif path.stat().st_size != facts["size"]:
            faults.append(f"{path} is damaged: {path.stat().st_size} bytes, the manifest says {facts['size']}")
        elif (found := files.xxh3(path)) != facts["xxh3"]:
            faults.append(f"{path} is damaged: xxh3 {found}, the manifest says {facts['xxh3']}")
    return faults


def published(run: Path) -> list[Path]:
    """The folders of finished checkpoints of a run, newest first."""
    found = [path.parent for path in run.glob("stage-*/step-*/manifest.json") if _order(path.parent) is not None]
    return sorted(found, key=lambda folder: _order(folder) or (0, 0), reverse=True)


def _order(folder: Path) -> tuple[int, int] | None:
    step, stage = _STEP.match(folder.name), _STAGE.match(folder.parent.name)
    return (int(step.group(1)), int(stage.group(1))) if step and stage else None


def step_of(folder: Path) -> int:
    """The step that the name of a checkpoint's folder tells."""
    return int(folder.name.removeprefix("step-"))


def is_step(path: Path) -> bool:
    """Whether the path is named as one checkpoint."""
    return _STEP.match(path.name) is not None


def run_of(path: Path) -> Path:
    """The run that a run, stage or step folder belongs to."""
    if is_step(path):
        return path.parent.parent
    return path.parent if _STAGE.match(path.name) else path


def newest_intact(run: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose every file is intact, and the faults of the newer ones that were passed over."""
    faults: list[str] = []
    for folder in published(run):
        found = verify(folder)
        if not found:
            return read(folder), faults
        faults.extend(found)
    return None, faults


def locate(path: Path) -> Checkpoint:
    """The intact checkpoint that `path` means: a step folder, or the newest of a stage folder or run.

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
    """Remove what interrupted saves left behind in this run, and bring back what they had moved aside; returns how many were removed."""
    for aside in run.glob(f"stage-*/{_REPLACED}*"):
        _bring_back(aside)
    left = list(run.glob(f"*/{_UNFINISHED}*"))
    for folder in left:
        shutil.rmtree(folder, ignore_errors=True)
    return len(left)


def prune(stage_folder: Path, keep: int, spared: int | None = None) -> list[Path]:
    """Delete the oldest checkpoints of a stage beyond the newest `keep`, but not that of step `spared`; returns what was deleted."""
    own = [folder for folder in published(stage_folder.parent) if folder.parent == stage_folder]
    gone = [folder for folder in own[keep:] if folder.name != f"step-{spared or 0:08d}"]
    for folder in gone:
        _leave_averages(folder)
        (folder / "manifest.json").unlink()
        shutil.rmtree(folder)
    return gone


def _leave_averages(folder: Path) -> None:
    """Keep the post-hoc averages of a checkpoint that is about to be deleted, as RUN/averages/step-N with a manifest of their own."""
    found = read(folder)
    kept = {
        name: facts for name, facts in found.manifest["files"].items() if name.split("/")[0].removesuffix(".safetensors") in power_ema.KEPT
    }
    if not kept:
        return
    home = folder.parent.parent / AVERAGES / folder.name
    beside = home.with_name(f"{_UNFINISHED}{home.name}")
    shutil.rmtree(beside, ignore_errors=True)
    for name in kept:
        (beside / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(folder / name, beside / name)
        except OSError:  # a file system without links
            shutil.copyfile(folder / name, beside / name)
    manifest = {"format": FORMAT, "kind": "averages", "state": {"step": found.step}, "files": kept}
    files.write_json(beside / "manifest.json", {**manifest, "xxh3": _own_hash(manifest)})
    shutil.rmtree(home, ignore_errors=True)
    os.rename(beside, home)


class Saver:
    """Writes checkpoints in the background, one at a time. An error on one rank is raised on all, at the next save or `wait`."""

    def __init__(self, background: bool, ranks: Ranks | None = None):
        self.background, self.ranks = background, ranks or Ranks(0, 1, torch.device("cpu"))
        self._group: dist.ProcessGroup | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._copied: dict[str, dict[str, Tensor]] = {}

    def save(self, folder: Path, groups: Groups, facts: Mapping[str, Any], keep: int, spared: int | None = None) -> None:
        """Copy out now, write later (or now, without `background`); then delete what `keep` no longer covers. All ranks call it."""
        self.wait()
        if self._group is None and sharded_files.sharded(groups):
            self._group = dist.new_group(backend="gloo")
        own, share = sharded_files.divide(groups, self.ranks, self._group)
        writes = share.ranks > 1 or self.ranks.first
        copied = self._copied = copy_out(own, self._copied)
        facts = json.loads(json.dumps(facts))

        def work() -> None:
            if writes:
                write(folder, copied, facts, share)
            if self.ranks.first:
                prune(folder.parent, keep, spared)

        if not self.background:
            self._guarded(work)
            self.wait()
            return
        self._thread = threading.Thread(target=self._guarded, args=(work,), name="plait-save")
        self._thread.start()

    def _guarded(self, work: Any) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  handed to the training thread by wait()
            self._error = error

    def wait(self) -> None:
        """Return once nothing is being written on any rank; raises what the last write raised on one. All ranks call it."""
        self._join()
        error, self._error = self._error, None
        said = self.ranks.gather(error and f"{error}")
        if error is not None:
            raise error
        for other in said:
            if other is not None:
                raise PlaitError(other)

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Return once nothing is being written here; raises what the last write raised. Asks no other rank: one may have ended."""
        self._join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
