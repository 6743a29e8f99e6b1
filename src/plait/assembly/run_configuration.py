"""Read the configuration of a run directory, or a checkpoint's copy of it where it was edited, damaged or lost."""

import logging
from collections.abc import Sequence
from pathlib import Path

from plait.assembly.configuration import open_config
from plait.config import signed
from plait.config.resolved import Resolved
from plait.engine.checkpoints import regular_files
from plait.errors import PlaitError

log = logging.getLogger(__name__)

_CHANGED = "not as plait wrote it: it was edited or damaged"


def open_run_config(run: Path, overrides: Sequence[str] = (), *, compared: bool = False) -> Resolved:
    """Read the configuration in run directory `run`, changed by `overrides` ("optim.lr=1e-4"). Raises PlaitError if there is none.

    Where config.yaml cannot be read, the newest checkpoint's copy is, with a warning. If it was edited, it is read as it is, with a warning
    too, unless it is `compared` with the copy later, by a start.
    """
    regular_files.check(run)
    path = run / signed.NAME
    copy = None if signed.is_as_written(path) else signed.newest_copy(run)
    if copy is not None and (fault := _fault(path)):
        log.warning(f"{fault}; {copy}, saved with that checkpoint, is read in its place")
        path = copy
    elif copy is not None and not compared:
        log.warning(f"{path} is {_CHANGED}; it is read as it is, and {copy} is as it was")
    if not path.is_file():
        raise PlaitError(f"{run} is no run directory: it has no config.yaml")
    return open_file(path, overrides)


def open_accepted(run: Path) -> Resolved:
    """Read the configuration with which `run` was last started: config.yaml, or a checkpoint's copy if that was edited or damaged since.

    Raises PlaitError if neither can be read.
    """
    return open_file(_accepted(run, signed.newest_copy(run), "is what this start must fit"))


def open_of_checkpoint(run: Path, folder: Path) -> Resolved:
    """Read the configuration of `run` for its checkpoint `folder`: config.yaml, or a checkpoint's copy if that was edited or damaged.

    Raises PlaitError if neither can be read.
    """
    return open_file(file_of_checkpoint(run, folder))


def file_of_checkpoint(run: Path, folder: Path) -> Path:
    """Return the file with the settings of a checkpoint's run: config.yaml, or a checkpoint's copy if that was edited or damaged.

    `folder`: the checkpoint's; its own copy is preferred to that of the newest one. A warning says which copy is taken. Raises PlaitError
    if neither config.yaml nor the copy can be read.
    """
    own = folder / signed.COPY
    path = _accepted(run, own if signed.is_as_written(own) else signed.newest_copy(run), "is read in its place")
    if not path.is_file():
        raise PlaitError(f"{run} is no run directory: it has no config.yaml")
    return path


def open_file(path: Path, overrides: Sequence[str] = ()) -> Resolved:
    """Read a configuration that plait wrote for a run, changed by `overrides`. Raises PlaitError if it cannot be read."""
    return open_config(path, overrides, data_base=Path.cwd())  # paths are absolute, but for runs of older versions


def _accepted(run: Path, copy: Path | None, purpose: str) -> Path:
    """Return the file to read the configuration of `run` from, and warn if it is not config.yaml as plait wrote it.

    That is the `copy`, with `purpose` at the end of the warning, unless config.yaml is as written or the copy cannot be read. Raises
    PlaitError if there is a copy and neither can be read.
    """
    regular_files.check(run)
    path = run / signed.NAME
    if copy is None or signed.is_as_written(path):
        return path
    if (copys_fault := _fault(copy)) is None:
        if path.exists() or (run / "identity").is_file():  # else a checkpoint lies alone, as a push of it does
            log.warning(f"{path} is {_CHANGED if path.exists() else 'missing'}; {copy}, saved with that checkpoint, {purpose}")
        return copy
    if fault := _fault(path):
        raise PlaitError(f"{fault}, and {copys_fault}")
    log.warning(f"{path} is {_CHANGED}; it is taken as it is, as {copys_fault}")
    return path


def _fault(path: Path) -> str | None:
    """Return why the configuration at `path` cannot be read; None where it can."""
    if not path.is_file():
        return f"{path} is {'no file' if path.exists() else 'missing'}"
    try:
        open_file(path)
    except PlaitError as error:
        return f"{path} is damaged, or not of this version of plait ({error})"
    return None
