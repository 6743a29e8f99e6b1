"""Messages for errors of the operating system in a run's directory: it has gone, is full, fails, or holds something else."""

import errno
from pathlib import Path

_DISK = frozenset([errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE])
"""The errors for a disk that is full or failing."""
_TAKEN = frozenset([errno.EEXIST, errno.ENOTDIR, errno.EISDIR])
"""Those for a folder where a file should be, or a file where a folder should be."""


def told(error: Exception, run: Path) -> str | None:
    """Return the line about an error during training, or None unless the directory `run` or its disk is at fault.

    That is if the directory is gone, the disk is full or failing, or a file or folder in it is of another kind than the run keeps there.
    """
    if not run.is_dir():
        return f"{run} is gone: it was moved or deleted while the run was training; move it back, and the same command continues"
    if not isinstance(error, OSError):
        return None
    if error.errno in _DISK:
        cure = "free space or mend the disk, and the same command continues from the last checkpoint"
        return f"{error.filename or run}: {error.strerror}; {cure}"
    if error.errno in _TAKEN and Path(str(error.filename)).is_relative_to(run):
        return _taken(error)
    return None


def told_of_start(error: OSError, run: Path) -> str:
    """Return the line for the user about an error that came before the directory `run` was created and locked."""
    cure = "free space or mend the disk, and the same command goes on"
    return _taken(error) if error.errno in _TAKEN else f"{error.filename or run}: {error.strerror}; {cure}"


def _taken(error: OSError) -> str:
    return f"{error.filename2 or error.filename} is not the kind of file that a run keeps there ({error.strerror}); remove it"
