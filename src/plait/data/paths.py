"""Patterns to files: braces `{00000..00003}` and `{a,b}`, globs, a folder, one file; on disk or behind any fsspec address."""

import os
import re
from glob import glob
from pathlib import Path

from plait.data.remote import connect
from plait.errors import PlaitError

_BRACE = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_SPLITS = ("train", "validation", "val", "test")


def is_remote(path: str) -> bool:
    """Whether `path` is an address (s3://, https://, memory://, ...) and not a place on this machine's disk."""
    return "://" in path and not path.startswith("file://")


def local(path: str) -> Path:
    """`~`, `$VARIABLE` and file:// spelled out."""
    return Path(os.path.expandvars(path.removeprefix("file://"))).expanduser()


def braces(pattern: str) -> list[str]:
    """Every path that `pattern` spells: {8..11} counts (keeping leading zeros), {a,b} lists. Other braces are errors."""
    found = _BRACE.search(pattern)
    if found is None:
        return [pattern]
    inside = found[1]
    if span := _RANGE.fullmatch(inside):
        first, last = int(span[1]), int(span[2])
        choices = [str(number).zfill(len(span[1])) for number in range(first, last + 1)]
    elif "," in inside:
        choices = inside.split(",")
    else:
        raise PlaitError(f"cannot read the braces in {pattern!r}; write {{00000..00003}} or {{a,b}}")
    if not choices:
        raise PlaitError(f"the range in {pattern!r} is empty: {first} is after {last}")
    return [rest for choice in choices for rest in braces(pattern[: found.start()] + choice + pattern[found.end() :])]


def files(pattern: str, suffix: str, *, split: str | None, default_split: str = "train") -> list[str]:
    """The files that `pattern` names, sorted within each brace choice. A folder means its files that end in `suffix`.

    In a folder whose files begin with the names of splits (train-00000.tar, validation-00000.tar), only those of `split` count, so that
    held-out data is not trained on by naming the folder. Errors: nothing found; a file spelled out that is not there.
    """
    found = [path for choice in braces(pattern) for path in _expand(choice, suffix, split, default_split)]
    if not found:
        raise PlaitError(f"no file matches {pattern!r}" + ("" if is_remote(pattern) else f" (looked from {Path.cwd()})"))
    if len(set(found)) != len(found):
        twice = next(path for path in found if found.count(path) > 1)
        raise PlaitError(f"{pattern!r} names {twice} twice")
    return found


def _expand(path: str, suffix: str, split: str | None, default_split: str) -> list[str]:
    wild = any(mark in path for mark in "*?[")
    if is_remote(path):
        system, inner = connect(path)
        if wild:
            return sorted(system.unstrip_protocol(name) for name in system.glob(inner))
        if path.endswith(suffix) or not system.isdir(inner):
            return [path]
        inside = [system.unstrip_protocol(name) for name in system.ls(inner, detail=False) if name.endswith(suffix)]
        return _of_split(sorted(inside), split, default_split, path)
    place = local(path)
    if wild:
        return sorted(glob(str(place), recursive=True))
    if place.is_dir():
        return _of_split(sorted(str(file) for file in place.iterdir() if file.name.endswith(suffix)), split, default_split, path)
    if not place.exists():
        raise PlaitError(f"there is no file {str(place)!r}" + (f" (from {path!r})" if str(place) != path else ""))
    return [str(place)]


def _of_split(found: list[str], split: str | None, default_split: str, folder: str) -> list[str]:
    splits = {path: next((name for name in _SPLITS if Path(path).name.startswith(name)), None) for path in found}
    if split is None and not any(splits.values()):
        return found
    wanted = split or default_split
    chosen = [path for path in found if Path(path).name.startswith(wanted)]
    if found and not chosen:
        raise PlaitError(f"no file of split {wanted!r} in {folder}; it has {', '.join(Path(path).name for path in found[:8])}")
    return chosen
