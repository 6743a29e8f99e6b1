"""Free disk by deleting checkpoints of a run that nothing needs: what `plait ckpt prune` does.

The newest intact ones of each stage (a part of a run) stay, the best one, and those that another run starts from.
"""

import contextlib
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.commands.actions import stages
from plait.commands.actions.findings import gigabytes
from plait.commands.actions.runs import find
from plait.engine import averages
from plait.engine.checkpoints import checkpoint, integrity, kept_averages, rundir
from plait.engine.monitoring.json_output import show_json
from plait.errors import PlaitError, command

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What becomes of a checkpoint. `size`: bytes on disk; `why`: the reason for which it stays, None: it goes.

    `averages`: how many of the bytes are post-hoc averages, which are kept in RUN/averages.
    """

    folder: Path
    size: int
    averages: int
    why: str | None

    def plain(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"checkpoint": str(self.folder), "bytes": self.size, "kept": self.why}


def prune(run: Path, *, keep: int, also: Sequence[Path] = (), do: bool = False, as_json: bool = False) -> None:
    """Print which checkpoints of the run directory `run` go and which stay, and why; delete the first with `do`.

    `keep`: how many of the newest of each stage stay. `also`: folders with runs that may start from this one, besides those beside it and
    in the working directory's `runs`. Nothing is deleted of a run without an intact checkpoint. Raises PlaitError for such a run, for a
    path that is none, for a run that trains now, and where the disk fails.
    """
    if not find.is_run(run):
        raise PlaitError(f"{run} is no run directory: it has no config.yaml and no checkpoint")
    if stages.is_locked(run):
        raise PlaitError(f"{run} is in use: a run deletes its own checkpoints as it trains, by checkpoint.keep; wait for it")
    with rundir.lock(run) if do else contextlib.nullcontext():
        others = _others(run, also)
        verdicts = judge(run, keep, others)
        going = [verdict for verdict in verdicts if verdict.why is None]
        if not as_json:
            log.info("\n".join(_lines(verdicts, deleted=do)))
        if do:
            _delete(going)
    freed = sum(verdict.size - verdict.averages for verdict in going)
    whole = sum(verdict.size for verdict in verdicts)
    if as_json:
        told = {"run": str(run), "deleted": do, "bytes_freed": freed, "runs_looked_at": len(others)}
        show_json({**told, "checkpoints": [verdict.plain() for verdict in verdicts]})
        return
    log.info(f"other runs that were looked at for what they start from: {len(others):,}")
    if do:
        log.info(f"{gigabytes(freed)} of {gigabytes(whole)} freed")
    elif going:
        words = ["ckpt", "prune", run, *([f"--keep={keep}"] if keep != 1 else []), *(f"--also={folder}" for folder in also), "--yes"]
        log.info(f"nothing is deleted yet; {gigabytes(freed)} of {gigabytes(whole)} would be freed: {command(*words)}")
    else:
        log.info(f"nothing to free: {gigabytes(whole)} stay")


def judge(run: Path, keep: int, others: Sequence[Path]) -> list[Verdict]:
    """Return what becomes of each checkpoint of a run, newest first. `keep`: how many of each stage stay; `others`: other runs.

    Every file of those that stay as the newest is hashed first. Raises PlaitError if the run has checkpoints, and none is intact.
    """
    folders = checkpoint.published(run)
    stays: dict[Path, str] = {}
    damaged: dict[Path, str] = {}
    for stage in dict.fromkeys(folder.parent for folder in folders):
        of_stage = [folder for folder in folders if folder.parent == stage]
        faults = _damaged(of_stage, keep)
        damaged |= faults
        stays |= _kept_of_stage([folder for folder in of_stage if folder not in faults], keep, folders)
    if folders and len(damaged) == len(folders):
        raise PlaitError(integrity.none_intact(run, folders, damaged[folders[0]]))
    stays |= {folder: f"damaged, left alone: {fault}" for folder, fault in damaged.items()}
    for folder, users in find.started_from(run, others).items():
        stays.setdefault(folder, users[0] + (f", and {len(users) - 1} more" if len(users) > 1 else ""))
    return [Verdict(folder, size_of(folder), size_of(folder, averages.KEPT), stays.get(folder)) for folder in folders]


def _damaged(of_stage: Sequence[Path], keep: int) -> dict[Path, str]:
    """Return {checkpoint: its first fault} of those of a stage, newest first, that are damaged.

    Files are hashed until `keep` are found intact; of the others only their sizes are looked at.
    """
    damaged: dict[Path, str] = {}
    intact = 0
    for folder in of_stage:
        faults = integrity.verify(folder) if intact < keep else _short_faults(folder)
        if faults:
            damaged[folder] = faults[0]
        intact += not faults
    return damaged


def _kept_of_stage(intact: Sequence[Path], keep: int, folders: Sequence[Path]) -> dict[Path, str]:
    """Return {checkpoint that stays: why} for the `intact` ones of a stage, newest first. `folders`: of all the run's checkpoints."""
    stays = dict.fromkeys(intact[:keep], "newest of its stage" if keep == 1 else f"one of the newest {keep} of its stage")
    best = checkpoint.read(intact[0]).manifest["state"]["best"] if intact else None
    for folder in folders:
        if best is not None and checkpoint.step_of(folder) == best["step"]:
            stays.setdefault(folder, f"best {best['metric']}, {best['value']:.4g}")
    return stays


def _short_faults(folder: Path) -> list[str]:
    """Return what is wrong with a checkpoint's manifest or the sizes of its files; their content is not read."""
    try:
        listed = checkpoint.read(folder).manifest["files"].items()
    except PlaitError as error:
        return [str(error)]
    return [fault for name, entry in listed if (fault := checkpoint.size_fault(folder / name, entry))]


def size_of(folder: Path, groups: Collection[str] | None = None) -> int:
    """Return the bytes of all files in a checkpoint's folder, or of those of some `groups` (kinds) of tensors, such as "ema"."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    of_group = [(path, path.relative_to(folder).parts[0].removesuffix(".safetensors")) for path in paths]
    return sum(path.stat().st_size for path, group in of_group if groups is None or group in groups)


def _others(run: Path, also: Sequence[Path]) -> list[Path]:
    """Return the other runs near this one, in the working directory's `runs`, and in the folders `also`."""
    places = [run.resolve().parent, *(place for place in [Path("runs")] if place.is_dir()), *also]
    found = {other.resolve(): other for place in places for other in find.runs_below(place)}
    return [other for resolved, other in found.items() if resolved != run.resolve()]


def _lines(verdicts: Sequence[Verdict], *, deleted: bool) -> list[str]:
    """Return a line per checkpoint: what becomes of it, its size, its folder, and why it stays."""
    rows = [
        (
            "stays" if verdict.why else "deleted" if deleted else "goes",
            gigabytes(verdict.size),
            f"{verdict.folder.parent.name}/{verdict.folder.name}",
            verdict.why or "",
        )
        for verdict in verdicts
    ]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    return [f"{what:<{widths[0]}}  {size:>{widths[1]}}  {name:<{widths[2]}}  {why}".rstrip() for what, size, name, why in rows] or [
        "no checkpoint"
    ]


def _delete(verdicts: Sequence[Verdict]) -> None:
    """Delete checkpoints, oldest first; post-hoc averages are kept, as training does. Raises PlaitError where the disk fails."""
    for verdict in reversed(verdicts):
        try:
            checkpoint.delete(verdict.folder, kept_averages.keep)
        except OSError as error:
            raise PlaitError(f"{verdict.folder} could not be deleted: {error}; what is printed above it may be there still") from error
