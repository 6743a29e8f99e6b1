"""List the files of a folder with their hashes, and compare a folder with such a list."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from plait.commands.actions.passport import seal
from plait.commands.actions.passport.claims import File
from plait.engine.checkpoints.checkpoint import size_fault

CARD = "README.md"
"""The model card, which tells the digest of the passport, and may be edited."""
_PROSE = (".md", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".pdf")
_OF_REPOSITORIES = (".gitattributes", ".gitignore", "LICENSE", "LICENSE.txt", "NOTICE", "NOTICE.txt")
_MEASURED = re.compile(r"eval/.+\.(json|jsonl|html)")
"""What `plait eval` writes into the folder of an export."""
_CLIENTS = (".cache/huggingface/", ".git/")
"""What a download or a clone keeps beside the files. Of files in them those are faults that are loaded by their name: _LOADED."""
_CODE = (".py", ".pyc", ".pth", ".so", ".sh", ".jinja")
_LOADED = (
    *_CODE,
    ".safetensors",
    ".bin",
    ".pt",
    ".ckpt",
    ".gguf",
    ".ggml",
    ".onnx",
    ".h5",
    ".npz",
    ".npy",
    ".pkl",
    ".pickle",
    ".joblib",
    ".msgpack",
)


def files_of(folder: Path) -> dict[str, File]:
    """Return size and SHA-256 of each file in a folder, by its name below it; but for the passport and the card."""
    return {name: entry(folder / name) for name in names(folder) if name not in (seal.NAME, CARD)}


def names(folder: Path) -> list[str]:
    """Return the names below a folder of its files, links and all that is no folder, in order."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())


def entry(path: Path) -> File:
    """Return size and SHA-256 of a file."""
    return File(size=path.stat().st_size, sha256=sha256(path))


def sha256(path: Path) -> str:
    """Return a file's SHA-256, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_covered(name: str) -> bool:
    """Return whether a file that no passport lists is a fault: what a program may load, rather than prose, pictures, licences, figures."""
    base = name.rpartition("/")[2]
    if name.startswith(_CLIENTS):
        return base.lower().endswith(_LOADED)
    prose = base.lower().endswith(_PROSE) or base in _OF_REPOSITORIES
    return not (prose or _MEASURED.fullmatch(name))


def faults(folder: Path, listed: Mapping[str, File]) -> Iterator[str]:
    """Yield a line for each file that is missing, a link, of another size or content, or not in the list."""
    for name, entry in listed.items():
        path = folder / name
        if fault := _path_fault(folder, name) or size_fault(path, {"size": entry.size}):
            yield _named(fault, path, name, entry)
            continue
        try:
            now = sha256(path)
        except OSError as error:
            yield f"{name} cannot be read: {error.strerror}"
            continue
        if now != entry.sha256:
            yield f"{name} is changed: its sha256 was {entry.sha256}, is {now}"
    yield from unlisted(names(folder), listed)


def unlisted(there: list[str], listed: Mapping[str, File]) -> Iterator[str]:
    """Yield a line for each file that a program may load and the passport does not list."""
    for name in there:  # the card is prose
        if name not in listed and name != seal.NAME and is_covered(name):
            yield f"{name} is not in the passport: it was added"


def not_covered(there: list[str], listed: Mapping[str, File]) -> list[str]:
    """Return the files that the passport says nothing of, and no program loads; those that a client keeps, by its folder."""
    others = [name for name in there if not is_covered(name) and name not in listed]
    told = [name for name in others if not name.startswith(_CLIENTS)]
    kept = {client: sum(name.startswith(client) for name in others) for client in _CLIENTS}
    return told + [f"{client} ({count} file{'' if count == 1 else 's'})" for client, count in kept.items() if count]


def _path_fault(folder: Path, name: str) -> str | None:
    """Return a line where a folder on the way to a file is a link, through which it is another folder's."""
    above = [folder / parent for parent in Path(name).parents if str(parent) != "."]
    link = next((path for path in above if path.is_symlink()), None)
    return None if link is None else f"{name} is in a folder that is a link: {link.relative_to(folder)}"


def _named(fault: str, path: Path, name: str, entry: File) -> str:
    """Return a fault of a path without the path's folder, and with what the passport says."""
    if not path.exists() and not path.is_symlink():
        return f"{name} is missing: the passport lists {entry.size:,} bytes"
    if path.is_symlink():
        return f"{name} is a link, and no file of its own"
    if path.is_file() and path.stat().st_size != entry.size:
        return f"{name} is changed: it had {entry.size:,} bytes, has {path.stat().st_size:,}"
    return fault
