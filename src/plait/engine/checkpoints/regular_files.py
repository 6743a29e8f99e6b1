"""Look in a run directory for pipes, sockets and devices, and for files where folders belong. To read a pipe is to wait for it."""

from collections.abc import Iterable
from pathlib import Path

from plait.errors import PlaitError

_FILES = ("bench_failures", "quarantine", "skipped")
"""Files of rows that are first written during training, without their ending .jsonl."""


def check(run: Path) -> None:
    """Raise PlaitError for a pipe, socket or device in the run directory `run`.

    It looks at the directory's own files, and those of assets/ and heartbeat/; not into checkpoints, whose manifests list their files.
    """
    for path in [*run.glob("*"), *run.glob("heartbeat/*"), *run.glob("assets/**/*")]:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise PlaitError(f"{path} is not the kind of file that a run keeps there (a pipe, socket or device); remove it")


def check_kinds(run: Path, folders: Iterable[str]) -> None:
    """Raise PlaitError for a folder where the run directory `run` has a file, and for a file where it has a folder.

    Looked at are those that training makes later. `folders`: names of those in it, in which checkpoints are folders too.
    """
    for path in (run / f"{name}.jsonl" for name in _FILES):
        if path.is_dir():
            raise PlaitError(f"{path} is not the kind of file that a run keeps there (a folder); remove it")
    for folder in (run / name for name in folders):
        for path in (folder, *sorted(folder.glob("step-" + 8 * "[0-9]"))):
            if (path.exists() or path.is_symlink()) and not path.is_dir():
                found = "a file" if path.exists() else "a link to nothing"
                raise PlaitError(f"{path} is not the folder that a run keeps there, but {found}; remove it")
