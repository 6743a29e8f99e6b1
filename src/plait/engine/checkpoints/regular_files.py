"""Look for pipes, sockets and devices among the files of a run directory: to read a pipe is to wait for it."""

from pathlib import Path

from plait.errors import PlaitError


def check(run: Path) -> None:
    """Raise PlaitError for a pipe, socket or device in the run directory `run`.

    It looks at the directory's own files, and those of assets/ and heartbeat/; not into checkpoints, whose manifests list their files.
    """
    for path in [*run.glob("*"), *run.glob("heartbeat/*"), *run.glob("assets/**/*")]:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise PlaitError(f"{path} is not the kind of file that a run keeps there (a pipe, socket or device); remove it")
