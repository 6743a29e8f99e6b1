"""Write files so that they appear whole or not at all: written beside the target, flushed to disk, then renamed.

Text is UTF-8. A lone surrogate, which names of files may hold and UTF-8 cannot encode, is written as a backslash escape.
"""

import fcntl
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import xxhash

log = logging.getLogger(__name__)

NO_KINDS: Mapping[str, Any] = {}
STEP_KINDS: Mapping[str, Any] = {"step": int, "stage": int | None}
"""The types that rows of metrics.jsonl and quarantine.jsonl must have, for `read_rows`."""

_CHUNK_BYTES = 1 << 22
_ONE_SLASH = re.compile(r"(s3a?|gc?s|hf|https?|s?ftp|ssh|az|abfss?|wasbs?|hdfs|memory):/(?!/)", re.IGNORECASE)


def write_whole(path: Path, body: bytes | str, *, parents: bool = True, sync: bool = True) -> None:
    """Write `body` so that readers see the old file or the new one whole. A kill leaves `.NAME.tmp` beside it.

    `parents`: make the folders above it that are missing. `sync`: flush its name too; a caller that writes many does so once.
    """
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    beside, descriptor = claim(path, _open_file)
    with os.fdopen(descriptor, "wb") as file:
        try:
            file.truncate()
            file.write(body.encode(errors="backslashreplace") if isinstance(body, str) else body)
            file.flush()
            os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)  # while it is locked: afterwards the name may be another writer's
            raise
    if sync:
        sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value`, anything that `json` encodes, indented and with a final newline. Readers see the old file or the new one whole."""
    write_whole(path, json_text(value))


def expanded(path: str | Path) -> Path:
    """Return a path with a leading ~ or ~name replaced by that user's home directory. ~name of an unknown user stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  pathlib raises where the user is not known


def on_disk(path: str) -> str:
    """Return `path`, where plait writes, unchanged. Raises ValueError for an address such as gs://bucket/run, and a name not in UTF-8.

    gs:/bucket/run is taken for an address too, unless there is a folder `gs:`.
    """
    scheme, mark, rest = (with_two_slashes(path) or path).partition("://")
    if mark and scheme == "file":
        raise ValueError(f"{path} is an address: write the path alone, {rest or '/'}")
    if mark:
        raise ValueError(f"{path} is an address, and files are written on disks only: name a folder, and copy it to {scheme}:// afterwards")
    if any("\ud800" <= letter <= "\udfff" for letter in path):
        raise ValueError(f"{path!a} is not UTF-8, in which libraries write their files: give another name")
    return path


def with_two_slashes(path: str) -> str | None:
    """Return the address that a path such as s3:/bucket/x is meant to be, s3://bucket/x; None for what is no address mistyped so."""
    mistyped = _ONE_SLASH.match(path)
    return f"{mistyped[1]}://{path[mistyped.end() :]}" if mistyped and not Path(f"{mistyped[1]}:").exists() else None


def json_text(value: Any) -> str:
    """Return the text that `write_json` writes for `value`: indented JSON and a newline."""
    return json.dumps(value, indent=2, ensure_ascii=False).encode(errors="backslashreplace").decode() + "\n"


def sync_folder(folder: Path) -> None:
    """Flush `folder` to disk (fsync), so that renames inside it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file, a link, or a folder with all that is in it; do nothing if `path` does not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def claim(target: Path, opened: Callable[[Path], int]) -> tuple[Path, int]:
    """Open and lock a temporary file or folder beside `target`, to be renamed to it; returns (its path, its open file descriptor).

    `opened(path)` creates or opens it and returns the descriptor; closing that unlocks it. The name is `.NAME.tmp`, so that one left by a
    killed process is used again; if that is locked, or there are no locks, process and thread ids are added to the name.
    """
    beside = target.with_name(f".{target.name}.tmp")
    try:
        descriptor = opened(beside)
    except OSError:  # another user's, or a link: what keeps any file from being made here is told of the next name
        descriptor = -1
    if descriptor >= 0:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), beside.stat(follow_symlinks=False)):  # else it was renamed meanwhile
                return beside, descriptor
        except (BlockingIOError, FileNotFoundError):
            pass
        except OSError:  # no locks here
            remove(beside)
        os.close(descriptor)
    own = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_native_id()}.tmp")
    return own, opened(own)


def _open_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def xxh3(path: Path) -> str:
    """Return a file's content hash, xxh3-64 in 16 hex digits (about 15 GB/s: far cheaper than reading the disk)."""
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append `rows` to a `.jsonl` file, a JSON line each, in one write. They begin on a new line if a kill cut the last line short."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            text = text if file.read(1) == b"\n" else f"\n{text}"
        file.write(text.encode("utf-8", "backslashreplace"))


def read_rows(path: Path, kinds: Mapping[str, Any] = NO_KINDS) -> list[dict[str, Any]]:
    """Return the rows of a `.jsonl` file; [] without one. An unreadable line is skipped, with a warning unless it is a last one cut short.

    `kinds`: {key: type, as `isinstance` takes it} that a row must have, `int | None` of a key it may lack; others are unreadable too.
    """
    return [row for _, row in _lines(path, kinds)]


def keep_rows(path: Path, wanted: Callable[[dict[str, Any]], bool], kinds: Mapping[str, Any] = NO_KINDS) -> None:
    """Remove the rows of a `.jsonl` file for which `wanted(row)` is false, and lines that cannot be read. Without a file, do nothing.

    `kinds`: as in `read_rows`: {key: type} that a row must have; rows without them are removed too.
    """
    if path.is_file():
        body = b"".join(line + b"\n" for line, row in _lines(path, kinds) if wanted(row))
        if body != path.read_bytes():
            write_whole(path, body)


def _lines(path: Path, kinds: Mapping[str, Any]) -> list[tuple[bytes, dict[str, Any]]]:
    """Return (line, row) of every line that holds a JSON object. Lines end at newlines alone: JSON may hold other separators."""
    *lines, _ = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    read = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        wrong = [key for key, kind in kinds.items() if not isinstance(row.get(key), kind)] if isinstance(row, dict) else []
        if isinstance(row, dict) and not wrong:
            read.append((line, row))
        else:
            why = f"has no usable {' and '.join(wrong)}" if wrong else "cannot be read"
            log.warning(f"line {number} of {path} {why} and is left out")
    return read
