"""Messages for errors of the operating system in a run's directory: it has gone, is full, fails, or holds something else."""

import errno
import os
from pathlib import Path

LOCK = "lock"
"""The file in a run directory that its process holds locked: where it is missing, the directory is another one."""
_DISK = frozenset([errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE])
"""The errors for a disk that is full or failing."""
_TAKEN = frozenset([errno.EEXIST, errno.ENOTDIR, errno.EISDIR])
"""Those for a folder where a file should be, or a file where a folder should be."""


def told(error: Exception, run: Path) -> str | None:
    """Return the line for the user about an error in training; None unless the directory `run` or its disk is at fault.

    They are if the directory is gone or another one is in its place, the disk is full or failing, or a file or folder in it is of another
    kind than the run keeps there.
    """
    if not (run / LOCK).is_file():
        return f"{run} is gone: it was moved or deleted while the run was training; move it back, and the same command continues"
    if not isinstance(error, OSError):
        return None
    if error.errno in _DISK:
        after = "continues from the last checkpoint" if has_checkpoint(run) else "starts again, as no checkpoint exists yet"
        cure = f"free space or mend the disk, and the same command {after}"
        return f"{error.filename or run}: {error.strerror}; {cure}"
    return _taken(error) if error.errno in _TAKEN and _is_of(error, run) else None


def has_checkpoint(run: Path) -> bool:
    """Return whether a run has a checkpoint, for a message: True as well if its disk does not even tell that."""
    try:
        return any(run.glob("stage-*/step-*/manifest.json"))
    except OSError:
        return True


def told_of_start(error: OSError, run: Path) -> str:
    """Return the line for the user about an error that came before the directory `run` was created and locked."""
    if error.errno in _TAKEN and _is_of(error, run):
        return _taken(error)
    cure = "free space or mend the disk, and the same command goes on"
    if error.errno in _TAKEN and error.filename is not None:
        cure = "it is not of the run: give another path where a setting names it, such as data.cache"
    return f"{error.filename or run}: {error.strerror}; {cure}"


def _is_of(error: OSError, run: Path) -> bool:
    """Return whether the path that an error names is one of the run directory."""
    return error.filename is not None and Path(os.fsdecode(error.filename)).absolute().is_relative_to(run.absolute())


def _taken(error: OSError) -> str:
    return f"{error.filename2 or error.filename} is not the kind of file that a run keeps there ({error.strerror}); remove it"
