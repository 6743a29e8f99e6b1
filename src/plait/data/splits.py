"""Tell by their names which files and folders of a dataset belong to which split: train-000.tar, val2017/, cats-test.jsonl."""

import re
from collections.abc import Mapping, Sequence

from plait.errors import PlaitError, first_names

NAMES = {"train": ("train", "training", "trainval"), "validation": ("validation", "valid", "val", "dev"), "test": ("test", "testing")}
"""The words by which names tell a split. They stand alone or beside digits and marks: `device.tar` and `values.tar` are of none."""

_SPLITS = {word: split for split, words in NAMES.items() for word in words}
_WORD = re.compile(rf"(?<![a-z])(?:{'|'.join(sorted(_SPLITS, key=len, reverse=True))})(?![a-z])")


def of(name: str) -> str | None:
    """Return "train", "validation" or "test" by the first word for one in a file's or folder's name, as in val2017.tar; else None."""
    found = _WORD.search(name.lower())
    return _SPLITS[found[0]] if found else None


def are_splits(names: Sequence[str]) -> bool:
    """Return whether a folder's files are of splits: a name begins with train, val or the like, or they tell two splits."""
    return any(_WORD.match(name.lower()) for name in names) or len({of(name) for name in names} - {None}) > 1


def members(names: Mapping[str, str], split: str, place: str) -> list[str]:
    """Return the keys of `names`, {path: name of the file}, that belong to `split`.

    `split`: train, validation, test or another word for one of them, such as val; or what the names begin with. `place`: the folder or
    address that has the files, for messages.
    Raises PlaitError if there are names and none belongs to the split.
    """
    wanted = _SPLITS.get(split, split)
    found = [path for path, name in names.items() if of(name) == wanted] if wanted in NAMES else []
    found = found or [path for path, name in names.items() if name.startswith(split)]
    if names and not found:
        raise PlaitError(f"no file of split {split!r} in {place}; it has {', '.join(list(names.values())[:8])}")
    return found


def of_folders(folders: Sequence[str]) -> dict[str, str]:
    """Return {folder: its split} for the folders that hold one split.

    Their names are a split's word and nothing but digits and marks: `train2017`, not `crash-test`.
    """
    told = {name: _WORD.match(name.lower()) for name in folders}
    return {name: _SPLITS[word[0]] for name, word in told.items() if word and not re.search("[a-z]", name.lower()[word.end() :])}


def folder_of(folders: Sequence[str], split: str, place: str) -> str | None:
    """Return which of a folder's subfolders holds `split` (train, validation, test); None if they are no splits, but classes, say.

    `folders`: the names of all subfolders; they are splits if those of two splits are among them. `place`: the folder itself, for messages.
    Raises PlaitError where no subfolder or several are of this split.
    """
    told = of_folders(folders)
    if len(set(told.values())) < 2:
        return None
    found = [name for name, of_name in told.items() if of_name == split]
    if len(found) == 1:
        return found[0]
    has = f"several folders of split {split}" if found else f"folders of splits, and none of {split}"
    raise PlaitError(f"{place} has {has} ({first_names(sorted(found or told))}): name one with `split`, as in split: {min(found or told)}")
