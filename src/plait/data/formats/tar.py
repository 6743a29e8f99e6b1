"""Find the members of a tar file and their offsets. A truncated, damaged or foreign file is an error that names the offset.

Format: POSIX.1-2001 pax and the GNU extensions for long names; Python's tarfile parses the 512-byte headers, but its iteration stops
silently at the first bad one, so the headers are walked here.
"""

import tarfile
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from plait.data.formats.encodings import compression
from plait.data.formats.names import natural
from plait.errors import PlaitError

_BLOCK = 512
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


class Member(NamedTuple):
    """One regular file inside a tar: its name, and the `offset` and `size` of its content in bytes."""

    name: str
    offset: int
    size: int


Read = Callable[[int, int], bytes]
"""Reads a tar file: (offset, length) to bytes; never called past the end."""


def walk(read: Read, size: int, where: str) -> list[Member]:
    """Return the regular files in a tar of `size` bytes, in file order. `read` reads the tar; `where` names it in errors.

    Raises PlaitError for a file that is no tar, is truncated or damaged, or holds links or special files.
    """
    if size == 0:
        raise PlaitError(f"{where} is empty (0 bytes)")
    members: list[Member] = []
    offset, extended = 0, {}  # type: int, dict[str, str]
    while True:
        header = _header(read, offset, size, where)
        if header is None:
            return members
        start = offset + _BLOCK
        length = int(extended.get("size", header.size)) if header.type in _REGULAR else header.size
        end = start + -(-length // _BLOCK) * _BLOCK
        if start + length > size:
            raise PlaitError(
                f"{where} is truncated: {header.name!r} at offset {offset} needs {length} bytes, {max(0, size - start)} are left"
            )
        if header.type == tarfile.XHDTYPE:
            extended = _pax(read(start, length), where, offset)
        elif header.type == tarfile.GNUTYPE_LONGNAME:
            extended = {"path": read(start, length).rstrip(b"\0").decode("utf-8", "surrogateescape")}
        elif header.type in _REGULAR:
            members.append(Member(extended.get("path", header.name).removeprefix("./"), start, length))
            extended = {}
        elif header.type not in (tarfile.DIRTYPE, tarfile.XGLTYPE):
            raise PlaitError(f"{where} holds {header.name!r} at offset {offset}, which is a link or a special file; pack plain files")
        offset = end


def _header(read: Read, offset: int, size: int, where: str) -> tarfile.TarInfo | None:
    """Return the header at `offset`; None at the end mark (zeros up to the end of the file). Raises PlaitError for anything else."""
    if offset + _BLOCK > size:
        start = read(offset, min(size - offset, 8)) if offset == 0 else b""
        raise PlaitError(_foreign(start, where) if offset == 0 else f"{where} is truncated: no end mark at offset {offset} of {size} bytes")
    block = read(offset, _BLOCK)
    if not any(block):
        rest = offset
        while rest < size:
            if any(read(rest, min(1 << 20, size - rest))):
                raise PlaitError(
                    f"{where} goes on after its end mark at offset {offset}: are several tars joined? Pack them anew or separately"
                )
            rest += 1 << 20
        return None
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise PlaitError(
            _foreign(block, where) if offset == 0 else f"{where} is damaged: no tar header at offset {offset} ({error})"
        ) from error


def _foreign(start: bytes, where: str) -> str:
    """Return the message for a file that does not begin as a tar does, with the compression if it is one."""
    if name := compression(start):
        return f"{where} is compressed ({name}), so it cannot be read at random; unpack it to a plain tar"
    return f"{where} is not a tar file: no header at offset 0 (begins {start[:8]!r})"


def _pax(body: bytes, where: str, offset: int) -> dict[str, str]:
    """Parse the records of a pax header, each "length key=value" and a newline; only path and size matter. Raises PlaitError."""
    records, position = {}, 0
    while position < len(body):
        digits, space, _ = body[position:].partition(b" ")
        if not space or not digits.isdigit() or int(digits) <= len(digits):
            raise PlaitError(f"{where} is damaged: bad extended header at offset {offset}")
        name, _, value = body[position + len(digits) + 1 : position + int(digits) - 1].partition(b"=")
        records[name.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        position += int(digits)
    if any(name.startswith("GNU.sparse") for name in records):
        raise PlaitError(f"{where} holds a sparse file at offset {offset}; pack plain files")
    return records


def index(members: list[Member], where: str) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    """Return (facts, arrays) of a tar shard's index: members grouped into samples by stem, samples in the order of their first member.

    The stem ends at the first dot of the file name (`a/b.seg.png` is member `seg.png` of sample `a/b`); names that begin with a dot are
    left out and counted. `arrays`: per member its `kind` (index into facts["extensions"]), `offset` and `size`; per sample its `first`
    member, and where in `names`, all names joined, its own ends (`name_end`). `facts`: `samples`, `members` (of all samples) and `hidden`
    (left out), which are counts, and the sorted list `extensions`. `where` names the shard in errors. Raises PlaitError for two members of
    one name, and for a shard without samples.
    """
    samples: dict[str, dict[str, Member]] = {}
    hidden = 0
    for member in members:
        path = PurePosixPath(member.name)
        stem, _, kind = path.name.partition(".")
        if not stem:
            hidden += 1
            continue
        kinds = samples.setdefault(str(path.with_name(stem)), {})
        if kind in kinds:
            raise PlaitError(f"{where} holds {member.name!r} twice: at offsets {kinds[kind].offset} and {member.offset}")
        kinds[kind] = member
    if not samples:
        raise PlaitError(f"{where} holds no samples ({hidden} hidden files, no end of data before offset {_BLOCK})")
    extensions = sorted({kind for kinds in samples.values() for kind in kinds})
    number = {kind: i for i, kind in enumerate(extensions)}
    flat = [(number[kind], *kinds[kind][1:]) for kinds in samples.values() for kind in sorted(kinds, key=natural)]
    names = [name.encode("utf-8", "surrogateescape") for name in samples]
    arrays: dict[str, np.ndarray] = {
        "first": np.cumsum([0, *(len(kinds) for kinds in samples.values())], dtype=np.int64),
        "kind": np.array([row[0] for row in flat], np.uint32),
        "offset": np.array([row[1] for row in flat], np.int64),
        "size": np.array([row[2] for row in flat], np.int64),
        "name_end": np.cumsum([0, *map(len, names)], dtype=np.int64),
        "names": np.frombuffer(b"".join(names), np.uint8),
    }
    return {"samples": len(samples), "members": len(flat), "hidden": hidden, "extensions": extensions}, arrays
