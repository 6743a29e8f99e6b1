"""Folders that appear whole or not at all: filled beside the target, then renamed. Used for exports, forks and consolidated weights."""

import contextlib
import errno
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from plait import files
from plait.errors import PlaitError

_UMASK = os.umask(0)  # it can only be read by setting it
os.umask(_UMASK)


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; it is renamed to `target` when the `with` block ends, and removed when the block raises.

    Its files get the permissions that the umask gives new files: libraries write weights that only their owner can read.
    Creates the parent folders. A kill leaves `.NAME.tmp` beside `target`, which the next call for `target` empties and fills. Raises
    PlaitError at once if `target` is a link to nothing, and at the end if it exists by then (an empty folder is replaced).
    """
    if target.is_symlink() and not target.exists():
        raise PlaitError(f"{target} is a link to nothing: give a new folder, or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    beside, descriptor = files.claim(target, _open_folder)
    try:
        for left in beside.iterdir():
            files.remove(left)
        yield beside
        for path in beside.rglob("*"):
            if path.is_file() and not path.is_symlink():
                follow_umask(path)
        try:
            beside.rename(target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            raise PlaitError(f"{target} was made by another process meanwhile: give a new folder, or remove it") from error
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)  # while it is locked: afterwards the name may be another writer's
        raise
    finally:
        os.close(descriptor)
    files.sync_folder(target.parent)


def copy_folder(source: Path, target: Path) -> None:
    """Copy the folder `source` to `target`. A copy that fails leaves no `target`. Raises PlaitError if `target` exists and is not empty."""
    with new_folder(target) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)


def unused(path: Path) -> Path:
    """Return `path`, or the first of NAME-2, NAME-3, ... (before its suffix) that does not exist."""
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    return next(candidate for candidate in itertools.chain([path], numbered) if not candidate.exists())


def set_aside(run: Path) -> Path:
    """Rename a run to RUN.before-N, so that a new one can begin under its name; returns the new path."""
    count = 1
    while (aside := run.with_name(f"{run.name}.before-{count}")).exists():
        count += 1
    run.rename(aside)
    return aside


def _open_folder(path: Path) -> int:
    with contextlib.suppress(FileExistsError):
        path.mkdir()
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def follow_umask(path: Path) -> None:
    """Set a file's permissions to those of a new file (0666 less the umask). Some libraries make files that only their owner can read."""
    path.chmod(0o666 & ~_UMASK)
