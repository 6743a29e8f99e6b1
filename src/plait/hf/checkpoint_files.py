"""Find the checkpoints of plait's trainers among the folders beside them, and remove the oldest."""

from pathlib import Path

from plait import files
from plait.assembly.weight_files import LIST

TOLD = "plait-trainer.json"
"""What tells which stage, data and order a checkpoint is of."""


def remove_older(out: Path, keep: int | None, spared: set[Path]) -> None:
    """Remove the oldest checkpoints of plait's trainers in `out` beyond `keep`, but for those `spared`. None or 0: remove none."""
    own = [folder for folder in out.glob("checkpoint-*") if step_of(folder) >= 0 and (folder / TOLD).is_file()]
    own.sort(key=lambda folder: (folder / LIST).stat().st_mtime_ns if (folder / LIST).is_file() else 0)
    surplus = max(0, len(own) - keep) if keep else 0
    for folder in [folder for folder in own if folder not in spared][:surplus]:
        files.remove(folder)


def step_of(folder: Path) -> int:
    """Return the step that the name of a folder checkpoint-STEP tells, -1 of another name."""
    number = folder.name.removeprefix("checkpoint-")
    return int(number) if number.isascii() and number.isdecimal() else -1
