"""Write files so that they appear whole or not at all: written beside the target, flushed to disk, then renamed.

Text is UTF-8. A lone surrogate, which names of files may hold and UTF-8 cannot encode, is written as a backslash escape.
"""

import fcntl
import json
import logging
import os
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

HEAD_BYTES, TAIL_BYTES = 1 << 18, 1 << 20
"""How much of the beginning and of the end of a long `.jsonl` file is read where not all of it is: some 250 and 1,000 rows of metrics."""

_CHUNK_BYTES = 1 << 22


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
    body = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "backslashreplace")
    with path.open("ab+", buffering=0) as file:
        if (end := file.tell()) and os.pread(file.fileno(), 1, end - 1) != b"\n":
            body = b"\n" + body
        while body:
            body = body[file.write(body) :]


def read_rows(path: Path, kinds: Mapping[str, Any] = NO_KINDS, *, ends: bool = False, key: str = "") -> list[dict[str, Any]]:
    """Return the rows of a `.jsonl` file; [] without one. An unreadable line is skipped, with a warning unless it is a last one cut short.

    `kinds`: {key: type, as `isinstance` takes it} that a row must have, `int | None` of a key it may lack; others are unreadable too.
    `ends`: of a file longer than both only the rows in its first HEAD_BYTES and its last TAIL_BYTES, which takes as long for any length.
    `key`: only lines with this text are read, such as the name of a figure that the rows asked for have.
    """
    tail, at = _tail(path) if ends else _tail(path, None)
    head, number = b"", 1
    if at:
        with path.open("rb") as file:
            head, number = file.read(HEAD_BYTES).rpartition(b"\n")[0] + b"\n", 0
    return [row for _, row in _lines(path, head + tail, number, kinds, key.encode())]


def keep_rows(path: Path, wanted: Callable[[dict[str, Any]], bool], kinds: Mapping[str, Any] = NO_KINDS) -> None:
    """Remove the rows of a `.jsonl` file for which `wanted(row)` is false, and lines that cannot be read. Without a file, do nothing.

    `kinds`: as in `read_rows`: {key: type} that a row must have; rows without them are removed too. Rows are in the order of their steps,
    so of a long file only the last TAIL_BYTES are looked at where their first row is wanted.
    """
    tail, at = _tail(path)
    lines = _lines(path, tail, 0, kinds) if at else []
    if not lines or not wanted(lines[0][1]):
        tail, at = _tail(path, None)
        lines = _lines(path, tail, 1, kinds)
    body = b"".join(line + b"\n" for line, row in lines if wanted(row))
    if body != tail:
        write_whole(path, path.read_bytes()[:at] + body)


def _tail(path: Path, most: int | None = HEAD_BYTES + TAIL_BYTES) -> tuple[bytes, int]:
    """Return the whole lines in the last TAIL_BYTES of a file, and where they begin; all, and 0, of one of no more than `most` bytes."""
    if not path.is_file():
        return b"", 0
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        at = file.seek(0 if most is None or size <= most else size - TAIL_BYTES)
        cut = file.readline() if at else b""
        return file.read(), at + len(cut)


def _lines(path: Path, body: bytes, first: int, kinds: Mapping[str, Any], key: bytes = b"") -> list[tuple[bytes, dict[str, Any]]]:
    """Return (line, row) of every line of `body` that holds a JSON object. Lines end at newlines alone: JSON may hold other separators.

    `first`: the number of its first line in the file, for warnings; 0: not known. `key`: lines without it are passed over.
    """
    *lines, _ = body.split(b"\n")
    read = []
    for number, line in enumerate(lines, first):
        if key not in line:
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        wrong = [key for key, kind in kinds.items() if not isinstance(row.get(key), kind)] if isinstance(row, dict) else []
        if isinstance(row, dict) and not wrong:
            read.append((line, row))
        else:
            why = f"has no usable {' and '.join(wrong)}" if wrong else "cannot be read"
            log.warning(f"{f'line {number}' if first else 'a line'} of {path} {why} and is left out")
    return read
