"""The run directory: who holds it, and whether it belongs to this configuration."""

import fcntl
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from plait import files
from plait.errors import PlaitError

FREE = (
    "run",
    "track",
    "checkpoint",
    "evaluate",
    "distributed",
    "guard",
    "data.workers",
    "data.worker_kind",
    "data.prefetch",
    "data.cache",
    "train.micro_batch",
)
"""Keys that may differ when a run is continued: they change how it computes or what it reports, never its answer."""

Difference = tuple[str, Any, Any]


def hold(run: Path) -> IO[str]:
    """Make the directory and take its lock, which falls when this process ends. Raises PlaitError when another process has it."""
    run.mkdir(parents=True, exist_ok=True)
    file = open(run / "lock", "a+", encoding="utf-8")  # noqa: SIM115  held open for as long as the run lasts
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        raise PlaitError(f"{run} is in use by process {file.read().strip() or 'unknown'}; wait for it, or give another --run") from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def check(run: Path) -> bool:
    """Whether `run` is a run to continue (True) or free to begin in (False). Raises PlaitError when it is some other folder."""
    if (run / "config.yaml").is_file():
        return True
    strangers = [path.name for path in run.iterdir() if path.name not in ("lock", "assets", "identity")] if run.is_dir() else []
    if strangers:
        raise PlaitError(f"{run} holds {', '.join(sorted(strangers)[:3])} but no config.yaml: it is no run directory; give another --run")
    return False


def refuse(run: Path, differences: Sequence[Difference]) -> None:
    """Raise PlaitError when the run was begun with another configuration, with each difference as `key: was -> is`."""
    if differences:
        shown = "; ".join(f"{key}: {before} -> {after}" for key, before, after in differences)
        raise PlaitError(
            f"{run} was begun with another configuration ({shown}); undo that, give another --run, or --restart (keeps the old run aside)"
        )


def binding(differences: Sequence[Difference]) -> list[Difference]:
    """The differences that change the run's answer."""
    return [item for item in differences if not any(_under(item[0], free) for free in FREE)]


def _under(key: str, free: str) -> bool:
    parts = key.split(".")
    if parts[0] == "stages" and len(parts) > 2:
        parts = parts[2:]
    return ".".join(parts) == free or ".".join(parts).startswith(free + ".")


def set_aside(run: Path) -> Path:
    """Rename a run so that a new one can begin in its place; returns where it is now."""
    count = 1
    while (aside := run.with_name(f"{run.name}.before-{count}")).exists():
        count += 1
    os.rename(run, aside)
    return aside


def clear(run: Path) -> None:
    """Remove what a run made for a configuration under which nothing was saved."""
    shutil.rmtree(run / "assets", ignore_errors=True)
    (run / "lineage.json").unlink(missing_ok=True)


def identity(run: Path) -> str:
    """A short random name that a run keeps for life (its W&B id, its lineage)."""
    path = run / "identity"
    if not path.is_file():
        files.write_whole(path, secrets.token_hex(6) + "\n")
    return path.read_text(encoding="utf-8").strip()
