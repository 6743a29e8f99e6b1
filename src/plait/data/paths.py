"""Expand path patterns to files: braces `{00000..00003}` and `{a,b}`, globs, a folder, one file; on disk or at any fsspec address."""

import itertools
import math
import os
import re
import stat
from collections.abc import Collection
from functools import lru_cache
from glob import glob
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from plait.config import secrets
from plait.config.sections.places import with_two_slashes
from plait.data import splits
from plait.data.addresses import is_remote, is_web, name_of, shown
from plait.data.formats.open_file import check_size, try_again
from plait.data.remote import connect, listing
from plait.errors import BadSample, PlaitError

_BRACE = re.compile(r"(?<!\$)\{([^{}]*)\}")  # ${NAME} is an environment variable
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")
MAX_PATHS = 1_000_000
"""Paths that the braces of one pattern may stand for: a million shards of a gigabyte are a petabyte."""
_HUB_FOLDER = re.compile(r"(datasets|models|spaces)--")
_NO_DATA = (".idx",)  # the index of a file, beside it
NO_RECORDS = frozenset(["dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"])
"""Names of the files in which the package `datasets` describes data: they hold no records."""
_PACKED_TAR = (".tgz", ".tbz2", ".txz")


def local(path: str) -> Path:
    """Return a path on disk with `~` and `$VARIABLE` filled in and file:// removed.

    Later messages and records show the variables' names in place of their values. Raises PlaitError for a variable that is not set,
    and for an address with one slash.
    """
    if meant := with_two_slashes(path):
        raise PlaitError(f"{path} is an address with one slash: write {meant}")
    return secrets.filled_in(path.removeprefix("file://"))


def folder_of_images(written: str) -> Path:
    """Return the folder that a source's setting `options.images`, given as it is `written`, names.

    Raises PlaitError where there is none, with that text, so that the value of a `$VARIABLE` in it is not shown.
    """
    folder = local(written)
    if not folder.is_dir():
        raise PlaitError(f"options.images {written!r} is not a folder")
    return folder


def braces(pattern: str) -> list[str]:
    """Return the paths that braces stand for: a{08..10} -> a08, a09, a10; a{b,c} -> ab, ac.

    A pattern without braces is returned alone. Raises PlaitError for braces that hold anything else, and for more than MAX_PATHS
    (1,000,000) paths.
    """
    texts = _BRACE.split(pattern)  # text, inside of a brace, text, ...
    choices = [_choices(text, pattern) if number % 2 else [text] for number, text in enumerate(texts)]
    if (count := math.prod(map(len, choices))) > MAX_PATHS:
        raise PlaitError(_too_many(pattern, count))
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _choices(inside: str, pattern: str) -> list[str]:
    span = _RANGE.fullmatch(inside)
    if span is None:
        if "," not in inside:
            raise PlaitError(f"cannot read the braces in {shown(pattern)!r}; write {{00000..00003}} or {{a,b}}")
        return inside.split(",")
    first, last = int(span[1]), int(span[2])
    if first > last:
        raise PlaitError(f"the range in {shown(pattern)!r} is empty: {first} is after {last}")
    if last - first >= MAX_PATHS:
        raise PlaitError(_too_many(pattern, last - first + 1))
    return [str(number).zfill(len(span[1])) for number in range(first, last + 1)]


def _too_many(pattern: str, count: int) -> str:
    return f"the braces in {shown(pattern)!r} stand for {count:,} paths, more than {MAX_PATHS:,}: mend them, or write several sources"


def read_regular(path: Path) -> bytes:
    """Return the bytes of a file that a record names.

    Raises BadSample if it cannot be read, is over MOST_BYTES (1 GiB), or is no regular file (a FIFO never ends).
    """

    def read() -> bytes:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BadSample(f"{path} is no regular file")
            check_size(path, os.fstat(file.fileno()).st_size)
            return file.read()

    try:
        return try_again(read, path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BadSample(f"cannot read {str(path)!r}: {reason}") from error


def read_image(root: Path, name: str, *, anywhere: bool) -> bytes:
    """Return the bytes of the image that a record (one sample as read) names, relative to `root`.

    `anywhere`: the image may lie outside `root`. Raises BadSample if it may not and does, is missing (the message then names the setting
    `options.images`) or cannot be read.
    """
    try:
        return read_regular(inside(root, name, anywhere=anywhere))
    except BadSample as error:
        if not isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            raise
        raise BadSample(f"{error}; where images are not relative to {root}, set options: {{images: FOLDER}}") from error


def inside(root: Path, name: str, *, anywhere: bool, links: bool = False) -> Path:
    """Return the path of the file `name` that a record names, relative to `root`, absolute or file://. Raises BadSample outside of `root`.

    Downloaded data must not point to other files of the machine. `anywhere`: allow any path. `links`: allow symbolic links that lead out
    of `root`, for a folder that the user has put together. The blobs of a Hub cache, to which its files link, count as inside.
    """
    path, base = os.path.normpath(root / _without_scheme(name)), os.path.normpath(root)
    if path == base:
        raise BadSample(f"the path {name!r} names no file")
    if anywhere:
        return Path(path)
    whole, below = (os.path.normpath(Path.cwd() / each) for each in (path, base))  # a base may be "."
    if not _below(whole, below):
        raise BadSample(f"the path {name!r} leaves the folder {base}; options {{outside: true}} allows it")
    if not links and "\0" not in path and not any(_below(os.path.realpath(path), folder) for folder in _real_folders(below)):
        raise BadSample(f"the path {name!r} leaves the folder {base} by a link; options {{outside: true}} allows it")
    return Path(path)


def _without_scheme(name: str) -> str:
    """Return the path in a file:// address, its %20 and the like read, and any path as it is.

    Raises BadSample for other addresses, and for a file:// one that names a machine, or no absolute path.
    """
    scheme, mark, rest = name.partition("://")
    if not mark:
        return name
    if scheme != "file":
        raise BadSample(f"the image {name} is on the network; download it first, and name the file in its place")
    path = rest.removeprefix("localhost")
    if not path.startswith("/"):
        raise BadSample(f"{name} names no file of this machine: write file:///FOLDER/NAME, or the path alone")
    return path if Path(path).exists() else unquote(path)


def _below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")


@lru_cache(maxsize=64)
def _real_folders(folder: str) -> tuple[str, ...]:
    """Return where a folder really is, and for one in a Hub client's cache (NAME/snapshots/REVISION/...) also NAME/blobs."""
    real = Path(os.path.realpath(folder))
    of_hub = [parent.parent / "blobs" for parent in real.parents if parent.name == "snapshots" and _HUB_FOLDER.match(parent.parent.name)]
    return (str(real), *map(str, of_hub))


Endings = str | tuple[str, ...]
"""The ending of the names of files, or several of them, in small letters."""


def files(pattern: str, suffix: Endings, *, split: str | None, default_split: str = "train") -> list[str]:
    """Return the paths or addresses that `pattern` (file, folder, glob, braces) names, sorted within each choice of braces.

    A folder means its files that end in `suffix`, or one of several, in capitals or not, but for hidden ones and JSON files that only
    describe a dataset; `left_out` counts others. In a folder whose files tell splits by their names (train-00000.tar, val2017.tar,
    cats-test.tar), only those of `split` (None: of `default_split`; "": all) count, so that held-out data is not trained on by naming the
    folder. Raises PlaitError when nothing matches or a file that is spelled out is missing.
    """
    literal = not is_remote(pattern) and local(pattern).exists()
    choices = [pattern] if literal else braces(pattern)
    matches = [path for choice in choices for path in _expand(choice, suffix, split, default_split, literal=literal)]
    if not matches:
        beside = "".join(f"; {count} of {reason}" for reason, count in left_out(pattern, suffix, matches).items())
        raise PlaitError(f"no file matches {shown(pattern)!r}" + ("" if is_remote(pattern) else f" (looked from {Path.cwd()})") + beside)
    if len(set(matches)) != len(matches):
        twice = next(path for path in matches if matches.count(path) > 1)
        raise PlaitError(f"{shown(pattern)!r} names {shown(twice)} twice")
    return matches


def left_out(pattern: str, suffix: Endings, read: Collection[str]) -> dict[str, int]:
    """Count by reason what looks like data in the folders that `pattern` names, but is not among the files `read`.

    `read`: the paths that `files` returned; `suffix`: the ending of such files, or several. Counted are files of another split, in
    subfolders or hidden, and names such as a.tar.gz and a.tar.part. Subfolders of a folder at an address are counted, and not looked
    through: a store may hold millions of files. Returns {reason, with an example: count}.
    """
    found: dict[str, list[str]] = {}
    names = {name_of(path) for path in read}
    if is_remote(pattern):
        for address in braces(pattern):
            for name, kind in _entries(address, suffix):
                reason = "subfolders, which are not read" if kind == "directory" else _why_left(name, suffix, names)
                if reason:
                    found.setdefault(reason, []).append(name)
    else:
        for folder in map(local, [pattern] if local(pattern).exists() else braces(pattern)):
            for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
                below = path.name.lower().endswith(suffix) and path.parent != folder
                reason = f"{path.suffix.lower()} files in subfolders" if below else _why_left(path.name, suffix, names)
                if reason and path.is_file():
                    found.setdefault(reason, []).append(path.relative_to(folder).as_posix())
    return {f"{reason}, such as {names[0]}": len(names) for reason, names in found.items()}


def _why_left(name: str, suffix: Endings, read: Collection[str]) -> str:
    """Return why a file that looks as if it should be read is not; "" if it does not look so, or is one of `read`."""
    lower, endings = name.lower(), (suffix,) if isinstance(suffix, str) else suffix
    if lower.endswith(endings):
        if name in NO_RECORDS:
            return "" if name in read else "files that describe the dataset, and hold no records"
        hidden = "hidden files (a name begins with a dot)"
        return hidden if name.startswith(".") else "" if name in read else "files of other splits or formats"
    packed = any(ending in lower for ending in endings) or (".tar" in endings and lower.endswith(_PACKED_TAR))
    if lower.endswith(_NO_DATA) or not packed:
        return ""
    return f"files that are packed or unfinished, as they do not end in {' or '.join(endings)}"


def _entries(address: str, suffix: Endings) -> list[tuple[str, str]]:
    """Return (name, "file" or "directory") of what a folder at an address holds, sorted; [] for any other address."""
    if is_web(address) or any(mark in address for mark in "*?[") or address.lower().endswith(suffix):
        return []

    def rows_of(system: Any, inner: str) -> tuple[list[tuple[str, str]], str]:
        listed = system.ls(inner, detail=True) if system.isdir(inner) else []
        return [(row["name"].rstrip("/"), row["type"]) for row in listed], inner

    rows, inner = listing(address, rows_of)
    return sorted((name.rpartition("/")[2], kind) for name, kind in rows if name != inner.rstrip("/"))


def _expand(path: str, suffix: Endings, split: str | None, default_split: str, *, literal: bool) -> list[str]:
    """Return the files of one brace choice. `literal`: a path of this very name exists, whatever marks it holds."""
    if is_web(path):  # where ? begins a query, as in a presigned address
        if any(mark in shown(path) for mark in "*[") or shown(path).endswith("/"):
            ending = suffix if isinstance(suffix, str) else suffix[0]
            raise PlaitError(f"{shown(path)}: files at an http(s) address cannot be listed: name them, as in a-{{00000..00003}}{ending}")
        return [path]
    wild = not literal and any(mark in path for mark in "*?[")
    if is_remote(path):
        if wild:
            return listing(path, lambda system, inner: sorted(system.unstrip_protocol(name) for name in system.glob(inner)))
        connect(path)  # refuse what there is no package for
        names = None if path.lower().endswith(suffix) else listing(path, _in_folder)
        if names is None:
            return [path]
        inside = [name for name in names if _is_named(name.rpartition("/")[2], suffix)]
        return _of_split(sorted(inside), split, default_split, path)
    on_disk = local(path)
    if wild:
        return sorted(glob(str(on_disk), recursive=True))  # noqa: PTH207  # Path.glob has no absolute patterns, and finds hidden files
    if on_disk.is_dir():
        return _of_split(sorted(str(file) for file in on_disk.iterdir() if _is_named(file.name, suffix)), split, default_split, path)
    if not on_disk.exists():
        raise PlaitError(f"there is no file {path!r}" if "$" in path else f"there is no file {str(on_disk)!r}")
    return [str(on_disk)]


def _in_folder(system: Any, inner: str) -> list[str] | None:
    """Return the addresses of what a folder of a store holds; None for what is no folder."""
    return [system.unstrip_protocol(name) for name in system.ls(inner, detail=False)] if system.isdir(inner) else None


def _is_named(name: str, suffix: Endings) -> bool:
    return name.lower().endswith(suffix) and not name.startswith(".") and name not in NO_RECORDS


def _of_split(candidates: list[str], split: str | None, default_split: str, folder: str) -> list[str]:
    """Keep the files of one split where file names tell splits; all of them elsewhere, or where no split is asked for."""
    names = {path: Path(path).name for path in candidates}
    wanted = split or default_split
    if not wanted or (split is None and not splits.are_splits(list(names.values()))):
        return candidates
    return splits.members(names, wanted, folder)
