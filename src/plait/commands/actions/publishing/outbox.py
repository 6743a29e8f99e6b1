"""The queue of what a run sends to the Hub: a folder in RUN/outbox for each item.

It has the item's files and job.json. Files of checkpoints are links to the same content, so that a checkpoint that is pruned meanwhile can
still be sent, at no cost. An item appears whole, in the order of its number, and goes when it was sent; sent.jsonl has a row of each then.
One process sends at a time.
"""

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from plait import files
from plait.engine.checkpoints.folders import new_folder

FOLDER = "outbox"
"""Its name in a run directory."""
SENT = "sent.jsonl"
"""The file in it with a row for each item that was sent or given up."""
LONGEST = 10
"""Items of a training run that may wait; the oldest beyond them are given up, so that no dead network fills the disk."""
PATIENCE_S, UNTAKEN_S = 600.0, 120.0
"""Seconds without a success after which an ended run, or `plait push`, no longer waits, and those of a run of which nothing was taken
since this start."""
_LOCK, _JOB, _FILES = "lock", "job.json", "files"


@dataclass(frozen=True)
class Job:
    """What is to be sent, and where. `repo`: owner/name; `private`: of a repository that is made; `replace`: even over another model.

    `step`, `stage`, `done`: the checkpoint's, and whether its stage has ended; `branch`: that gets it besides main, None for none;
    `identity`: of its run; `checkpoint`: the folder it was made of, below the run; `xxh3`: of that folder's manifest; `layout`: of an
    export, as "hf", None for a checkpoint as it is.
    """

    repo: str
    private: bool
    replace: bool
    step: int
    stage: str
    done: bool
    branch: str | None
    identity: str
    checkpoint: str
    xxh3: str
    layout: str | None = None

    @property
    def title(self) -> str:
        """What it is, for people: "step 500 of stage projection, as hf"."""
        return f"step {self.step} of stage {self.stage}{f', as {self.layout}' if self.layout else ''}"

    @property
    def key(self) -> tuple[str, str, str, str | None]:
        """What tells it from other items: the same content for the same repository is sent once."""
        return self.repo, self.checkpoint, self.xxh3, self.layout


@dataclass(frozen=True)
class Item:
    """An item of the queue: its folder in RUN/outbox, and what it is."""

    folder: Path
    job: Job

    @property
    def files(self) -> Path:
        """The folder whose content is sent."""
        return self.folder / _FILES


def waiting(run: Path) -> list[Item]:
    """Return the items of the queue of `run`, oldest first, without those that are `damaged`."""
    return [item for item in map(_read, _folders(run)) if isinstance(item, Item)]


def damaged(run: Path) -> list[str]:
    """Return a line for each item of the queue of `run` whose job.json cannot be read. It stays where it is; others are sent."""
    return [line for line in map(_read, _folders(run)) if isinstance(line, str)]


def remove_damaged(run: Path) -> list[Path]:
    """Remove the items of the queue of `run` whose job.json cannot be read; returns their folders."""
    folders = [folder for folder in _folders(run) if isinstance(_read(folder), str)]
    for folder in folders:
        files.remove(folder)
    return folders


def _folders(run: Path) -> list[Path]:
    return sorted(folder for folder in (run / FOLDER).glob("[0-9]*") if folder.is_dir())


def _read(folder: Path) -> Item | str | None:
    """Return the item of a folder, a line that says what is wrong with it, or None where it has gone meanwhile."""
    try:
        return Item(folder, Job(**json.loads((folder / _JOB).read_bytes())))
    except (OSError, ValueError, TypeError) as error:
        damage = f"{folder / _JOB} is damaged ({type(error).__name__}): delete {folder}, and push that checkpoint again"
        return damage if folder.is_dir() else None


def waits(run: Path, job: Job) -> bool:
    """Return whether the same content waits for the same repository."""
    return any(item.job.key == job.key for item in waiting(run))


def was_sent(run: Path, job: Job) -> bool:
    """Return whether the same content was sent to the same repository, or given up."""
    return any(row["key"] == list(job.key) for row in sent(run))


def is_at_hub(run: Path, job: Job) -> bool:
    """Return whether the last item with this content for the same repository was sent, rather than given up."""
    rows = [row for row in sent(run) if row["key"] == list(job.key)]
    return bool(rows) and rows[-1]["commit"] is not None


def sent(run: Path) -> list[dict[str, Any]]:
    """Return the rows of what was sent or given up: `key`, `step`, `stage`, `repo`, `commit` (None: given up), `number`, `time_s`."""
    return files.read_rows(run / FOLDER / SENT, {"key": list, "number": int})


def branches(run: Path, item: Item) -> list[str]:
    """Return the branches that an item is pushed to: main and that of its stage, unless they have a newer push.

    One that was refused while others went on must not take them back; where both have a newer one it gets a branch of its own, such as
    stage-1-one-step-00000500.
    """
    job, number = item.job, int(item.folder.name)
    newer = [row for row in sent(run) if row["number"] > number and row["key"][0] == job.repo and row["commit"] is not None]
    wanted = [] if newer else ["main"]
    if job.branch is not None and not any(row["key"][1].partition("/")[0] == job.branch for row in newer):
        wanted.append(job.branch)
    return wanted or ["-".join([*job.checkpoint.split("/"), *([job.layout] if job.layout else [])])]


@contextlib.contextmanager
def adding(run: Path, job: Job) -> Iterator[Path]:
    """Yield the folder to fill with the files of a new item, which is in the queue when the block has ended."""
    (run / FOLDER).mkdir(exist_ok=True)
    numbers = [int(folder.name) for folder in _folders(run)] + [row["number"] for row in sent(run)]
    with new_folder(run / FOLDER / f"{max(numbers, default=0) + 1:08d}") as folder:
        (folder / _FILES).mkdir()
        yield folder / _FILES
        files.write_json(folder / _JOB, asdict(job))


def link(source: Path, target: Path) -> None:
    """Give the file `source` a second name, `target`; where the disk has no such links, or it is another one, copy it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source.resolve())
    except OSError:
        shutil.copy2(source, target)


def finish(run: Path, item: Item, commit: str | None) -> None:
    """Record that an item was sent, as `commit`, or given up (None), and take it out of the queue. A kill in between repeats it."""
    number, job = int(item.folder.name), item.job
    if not any(row["number"] == number for row in sent(run)):
        row: Mapping[str, Any] = {"number": number, "key": job.key, "step": job.step, "stage": job.stage, "repo": job.repo}
        files.append_rows(run / FOLDER / SENT, [{**row, "commit": commit, "time_s": time.time()}])
    gone = item.folder.with_name(f".{item.folder.name}.tmp")
    item.folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)  # a run that starts meanwhile sweeps it too


def shorten(run: Path) -> list[Job]:
    """Give up the oldest items of the queue beyond LONGEST; returns what they were. The first, which may be on its way, stays."""
    items = waiting(run)
    surplus = items[1 : 1 + max(0, len(items) - LONGEST)]
    for item in surplus:
        finish(run, item, None)
    return [item.job for item in surplus]


@contextlib.contextmanager
def locked(run: Path, name: str = _LOCK) -> Iterator[bool]:
    """Yield whether this process is the one that sends the queue of `run` while the block lasts. `name`: of the file that says so."""
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    file: IO[str]
    with (folder / name).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield True
