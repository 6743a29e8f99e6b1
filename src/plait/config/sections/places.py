"""Where a setting or option says that files are: a path on a disk, or an address such as s3://bucket/folder."""

import re
from glob import escape, iglob
from pathlib import Path

_BRACE = re.compile(r"(?<!\$)\{[^{}]*\}")
_ONE_SLASH = re.compile(r"(s3a?|gc?s|hf|https?|s?ftp|ssh|az|abfss?|wasbs?|hdfs|memory):/(?!/)", re.IGNORECASE)


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


def address(text: str) -> str:
    """Return the address of a folder unchanged. Raises ValueError for a path, and for what can only be read."""
    scheme, separator, rest = text.partition("://")
    if not separator or not rest.strip("/"):
        raise ValueError(f"{text} is no address of a folder: write it as s3://bucket/folder, gs://bucket/folder or file:///disk/folder")
    if scheme in ("http", "https", "hf"):
        raise ValueError(f"{text} is an address that plait only reads: give one of s3://, gs:// or file://")
    if scheme == "memory":
        raise ValueError(f"{text} is gone when the process ends: give one of s3://, gs:// or file://")
    return text


def has_moved(before: object, after: object) -> bool:
    """Return whether both are absolute paths, `before` no longer exists, and `after` has the same last part: the data was moved.

    The content is not compared: checkpoints have hashes of the data for that.
    """
    paths = [value for value in (before, after) if isinstance(value, str) and value.startswith("/")]
    return len(paths) == 2 and Path(paths[0]).name == Path(paths[1]).name and not is_there(Path("/"), paths[0].lstrip("/"))


def is_there(folder: Path, text: str) -> bool:
    """Return whether anything in `folder` has the name, or fits the pattern, `text`."""
    pattern = Path(escape(str(folder)), _BRACE.sub("*", text))
    return (folder / text).exists() or next(iglob(str(pattern)), None) is not None  # noqa: PTH207  Path.glob finds hidden files
