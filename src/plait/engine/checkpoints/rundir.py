"""The run directory: its lock, its identity, and which changes of the configuration it can be continued with."""

import contextlib
import fcntl
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from plait import files
from plait.engine.checkpoints import failed_start, regular_files
from plait.errors import PlaitError

log = logging.getLogger(__name__)

_OF_A_START = frozenset(
    ["lock", "config.yaml", "identity", "assets", "lineage.json", "migrations.jsonl", "heartbeat", "events", "metrics.jsonl", "ledger"]
)
"""What a run directory holds before anything of its training is recorded."""

_locked: dict[Path, int] = {}
"""The inode of each run directory that this process has locked: another folder may take its place."""


def lock(run: Path) -> IO[str]:
    """Create the directory `run` and lock it until the returned file is closed. Raises PlaitError if it is locked, or cannot be made."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = (run / "lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise PlaitError(f"{run} cannot be made a run directory: {error.strerror} ({error.filename}); give another --run") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        with file:
            file.seek(0)
            holder = file.read().strip() or "unknown"
        raise PlaitError(f"{run} is in use by process {holder}; wait for it, or give another --run") from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    _locked[run] = run.stat().st_ino
    return file


@contextlib.contextmanager
def cleared_if_failed(run: Path) -> Iterator[None]:
    """If the block raises, delete a new run directory in which nothing was saved, with parent folders made for it.

    What was there before stays, or gets its name back if it was set aside; so does a run with a checkpoint, a row of metrics or a report.
    """
    _locked.pop(run, None)
    inode = run.stat().st_ino if run.is_dir() else None
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    is_new = bool(made) or (run.is_dir() and not any(run.iterdir()))
    try:
        yield
    except BaseException:
        now = run.stat().st_ino if run.is_dir() and not run.is_symlink() else None
        if now is not None and now == _locked.get(run, now) and (is_new or now != inode) and _has_only_begun(run):
            failed_start.undo(run, made, inode)
        raise


def _has_only_begun(run: Path) -> bool:
    """Return whether a run directory holds nothing but what every start writes."""
    metrics = run / "metrics.jsonl"
    names = {path.name for path in run.iterdir() if not _is_leftover(path.name)}
    return names <= _OF_A_START and not (metrics.exists() and metrics.stat().st_size)


def check(run: Path) -> bool:
    """Return whether `run` is a run to continue (True) or free to begin in (False). Raises PlaitError when it is some other folder."""
    if (run / "config.yaml").exists() or any(run.glob("stage-*/step-*/manifest.json")):
        regular_files.check(run)
        return True
    for path in (run, *run.parents):
        if path.is_symlink() and not path.exists():
            raise PlaitError(f"{path} is a link to nothing ({path.readlink()}), not a folder; mend the link, or give another --run")
    if run.exists() and not run.is_dir():
        raise PlaitError(f"{run} is a file, not a folder; give another --run")
    names = [path.name for path in run.iterdir()] if run.is_dir() else []
    foreign = [name for name in names if name not in ("lock", "assets", "identity") and not _is_leftover(name)]
    if foreign:
        raise PlaitError(f"{run} holds {', '.join(sorted(foreign)[:3])} but no config.yaml: it is no run directory; give another --run")
    return False


def _is_leftover(name: str) -> bool:
    """Return whether a file or folder is what files.py began beside its target and a kill left there."""
    return name.startswith(".") and name.endswith(".tmp")


def sweep(run: Path) -> None:
    """Delete temporary files that killed processes left half written. Call it with the run's lock held: nobody else is writing then."""
    for path in [*run.glob(".*.tmp"), *run.glob("*/.*.tmp"), *run.glob("*/*/.*.tmp")]:
        files.remove(path)


def clear(run: Path) -> None:
    """Delete RUN/assets (such as a tokenizer) and lineage.json, when a run that saved no checkpoint starts over."""
    shutil.rmtree(run / "assets", ignore_errors=True)
    (run / "lineage.json").unlink(missing_ok=True)


def identity(run: Path) -> str:
    """Return the run's 12 random hex digits, made at the first call and kept in RUN/identity. W&B and lineage.json know the run by them."""
    path = run / "identity"
    held = path.read_bytes().strip() if path.is_file() else b""
    if not re.fullmatch(rb"[0-9a-f]{12}", held):
        new = secrets.token_hex(6)
        if path.is_file():
            log.warning(f"{path} does not hold 12 hex digits: the run is {new} from now on, at W&B too")
        files.write_whole(path, new + "\n")
        return new
    return held.decode()
