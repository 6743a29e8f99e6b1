"""Write files so that they appear whole or not at all: written beside the target, flushed to disk, then renamed (STYLE 14).

Text is UTF-8. Half of a surrogate pair, which names of files may hold, has no UTF-8: it is written as JSON escapes it.
"""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash

log = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 22
_UMASK = os.umask(0)  # it can only be read by setting it
os.umask(_UMASK)


def write_whole(path: Path, body: bytes | str) -> None:
    """Write `body` to `path` so that a reader sees the old file or the new one, never a part. Creates the parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(body.encode(errors="backslashreplace") if isinstance(body, str) else body)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with a final newline; a reader sees the old file or the new one, never a part."""
    write_whole(path, json_text(value))


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


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; it is renamed to `target` when the `with` block ends, and removed when the block raises."""
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    beside.mkdir(parents=True)
    try:
        yield beside
        beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    sync_folder(target.parent)


def copy_folder(source: Path, target: Path) -> None:
    """Copy the folder `source` to `target`, which must not exist yet. A copy that fails leaves no `target`."""
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copytree(source, beside)
        beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    sync_folder(target.parent)


def xxh3(path: Path) -> str:
    """Return a file's content hash, xxh3-64 in 16 hex digits (about 15 GB/s: far cheaper than reading the disk)."""
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def follow_umask(path: Path) -> None:
    """Give a file the permissions that a newly opened one has: libraries that write safely make theirs readable by the owner alone."""
    path.chmod(0o666 & ~_UMASK)


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append each of `rows` as one JSON line to a `.jsonl` file, all in one write. Creates the file; its folder must be there."""
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a `.jsonl` file as dicts, oldest first; [] if there is no file.

    A line that cannot be read costs that line and a warning; a last line that was cut short (a kill) is left out without one.
    """
    return [row for _, row in _lines(path)]


def keep_rows(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Remove the rows of a `.jsonl` file for which `wanted(row)` is false, and lines that cannot be read. No file: do nothing."""
    if path.is_file():
        body = b"".join(line + b"\n" for line, row in _lines(path) if wanted(row))
        if body != path.read_bytes():
            write_whole(path, body)


def _lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Return (line, row) of every line that holds a JSON object. Lines end at newlines alone: JSON may hold other separators."""
    *lines, _ = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    read = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            read.append((line, row))
        else:
            log.warning(f"line {number} of {path} cannot be read and is left out")
    return read
