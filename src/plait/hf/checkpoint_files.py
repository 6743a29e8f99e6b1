"""Record size and hash of each file of a trainer's checkpoint in plait-files.json, written last, and find what is not so.

Transformers writes the files of a checkpoint one after the other, in place: a kill leaves some, and none tells whether it is whole.
"""

import json
from pathlib import Path

from plait import files
from plait.engine.checkpoints.checkpoint import size_fault

NAME, TOLD = "plait-files.json", "plait-trainer.json"
"""The list, and what tells which stage, data and order a checkpoint is of."""


def seal(folder: Path) -> None:
    """Write the list of all files that are in the checkpoint `folder`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / NAME)
    listed = {path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "xxh3": files.xxh3(path)} for path in paths}
    files.write_json(folder / NAME, {"files": listed})


def remove_older(out: Path, keep: int | None, spared: set[Path]) -> None:
    """Remove the oldest checkpoints of plait's trainers in `out` beyond `keep`, but for those `spared`. None or 0: remove none."""
    own = [folder for folder in out.glob("checkpoint-*") if step_of(folder) >= 0 and (folder / TOLD).is_file()]
    own.sort(key=lambda folder: (folder / NAME).stat().st_mtime_ns if (folder / NAME).is_file() else 0)
    surplus = max(0, len(own) - keep) if keep else 0
    for folder in [folder for folder in own if folder not in spared][:surplus]:
        files.remove(folder)


def step_of(folder: Path) -> int:
    """Return the step that the name of a folder checkpoint-STEP tells, -1 of another name."""
    number = folder.name.removeprefix("checkpoint-")
    return int(number) if number.isascii() and number.isdecimal() else -1


def fault(folder: Path, needed: tuple[str, ...]) -> str | None:
    """Return why a checkpoint is not whole, in a line; None if it is.

    All files of its list must be there as they were written, and those `needed` be in the list.
    """
    path = folder / NAME
    if not path.is_file():
        return f"{folder} lacks {NAME}, which is written last: it is no whole checkpoint of a trainer of plait"
    try:
        listed = {str(name): (int(entry["size"]), str(entry["xxh3"])) for name, entry in json.loads(path.read_bytes())["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{path} is damaged: {(str(error).splitlines() or [type(error).__name__])[0]}"
    for name, (size, hashed) in listed.items():
        if wrong := size_fault(folder / name, {"size": size}):
            return wrong
        try:
            if (now := files.xxh3(folder / name)) != hashed:
                return f"{folder / name} is damaged: its xxh3 was {hashed}, is {now}"
        except OSError as error:
            return f"{folder / name} cannot be read: {error.strerror}"
    if lacking := [name for name in needed if name not in listed]:
        return f"{folder} was saved without {', '.join(lacking)}, by which training continues: begin from its weights with from"
    return None
