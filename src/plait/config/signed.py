"""Write a run's config.yaml with a hash of its text in its last line, and check that hash.

A file that was edited, cut short or damaged is known by it: a damaged file can be valid YAML, and what it lacks would be trained with
default values. Each checkpoint's folder has a copy.
"""

import re
from pathlib import Path

import xxhash

NAME = "config.yaml"
"""Name of the configuration in a run directory."""
COPY = "run-config.yaml"
"""Name of the copy in a checkpoint's folder: another one, so that the folder is not taken for a run's."""
_LAST = "# xxh3-64 of the lines above: {hash}\n"


def sign(text: str) -> str:
    """Return `text` (YAML that ends with a newline) with one more line, a comment that holds its hash (xxh3-64)."""
    return text + _LAST.format(hash=xxhash.xxh3_64_hexdigest(text.encode()))


def is_as_written(path: Path) -> bool:
    """Return whether the file at `path` ends in the right hash, as `sign` made it. False if it is missing, edited or damaged."""
    try:
        lines = path.read_bytes().decode().splitlines(keepends=True) if path.is_file() else []  # a pipe would be waited for
    except (OSError, UnicodeDecodeError):
        return False
    return bool(lines) and "".join(lines) == sign("".join(lines[:-1]))


def newest_copy(run: Path) -> Path | None:
    """Return the newest intact copy of a run's configuration among those in its checkpoints; None without one.

    `run`: the run directory. A copy is intact if the hash in its last line, which `sign` wrote, is right.
    """
    steps = {path: re.fullmatch(r"step-(\d+)", path.parent.name) for path in run.glob(f"stage-*/step-*/{COPY}")}
    ordered = sorted(((int(step[1]), path) for path, step in steps.items() if step), reverse=True)
    return next((path for _, path in ordered if is_as_written(path)), None)


def settings_of(run: Path) -> Path | None:
    """Return the file of the configuration that a run was trained with; None if it has none. `run`: the run directory.

    That is its config.yaml if the hash in it is right, else the newest intact copy in a checkpoint, else config.yaml as it is.
    """
    path = run / NAME
    copy = None if is_as_written(path) else newest_copy(run)
    return copy or (path if path.is_file() else None)
