"""Hold a folder in which a set of shards is built to one request and one process at a time."""

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plait import files
from plait.errors import PlaitError


def check_request(file: Path, request: Mapping[str, Any], out: Path) -> None:
    """Write down the request of a new build into `file`. Raises PlaitError if the build that was begun in `out` is of another one."""
    if file.is_file():
        compare(json.loads(file.read_bytes()), request, out)
    else:
        files.write_json(file, request)


def compare(before: Mapping[str, Any], now: Mapping[str, Any], out: Path) -> None:
    """Raise PlaitError at the first entry in which two requests of the set in `out` differ."""
    plain = json.loads(json.dumps(now))
    other = next((name for name in plain if before.get(name) != plain[name]), None)
    if other is not None:
        was, wanted = (str(value)[:160] for value in (before.get(other), plain[other]))
        raise PlaitError(f"{out} holds a set made with {other} {was}, not {wanted}; give another folder, or remove this one")


@contextmanager
def locked(work: Path) -> Iterator[None]:
    """Lock the folder `work` for the block. Raises PlaitError if another process has it."""
    with (work / "lock").open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise PlaitError(f"another process is building in {work.parent}") from error
        yield
