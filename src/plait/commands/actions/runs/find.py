"""Find run directories below a folder, and the checkpoints of a run that other runs start from.

A run directory holds config.yaml and something else that a start writes; a folder of recipes does not count as one.
"""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from plait.assembly import checkpoint_specs
from plait.assembly.run_configuration import open_run_config
from plait.config import signed
from plait.engine.checkpoints import checkpoint
from plait.errors import PlaitError
from plait.training.changes import LINEAGE

log = logging.getLogger(__name__)

_DEEPEST = 4
"""Folders between the one that is searched and a run in it."""


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run directory; reads no file."""
    marks = ("identity", "metrics.jsonl", "lock")
    known = (folder / signed.NAME).is_file() and any((folder / name).exists() for name in marks)
    return known or any(folder.glob("stage-*/step-*/manifest.json"))


def runs_below(folder: Path) -> list[Path]:
    """Return the run directories in `folder`, which may be one itself, sorted by path; up to four folders down, following no links.

    A folder that cannot be read is a warning. Raises PlaitError if `folder` is none.
    """
    if not folder.is_dir():
        raise PlaitError(f"{folder} is {'a file, not a folder' if folder.exists() else 'not there'}: give a folder with runs in it")

    def unreadable(error: OSError) -> None:
        log.warning(f"{error.filename} cannot be read ({error.strerror}): runs in it are left out")

    found = []
    for name, inner, _ in os.walk(folder, onerror=unreadable):
        place = Path(name)
        inside = is_run(place)
        if inside:
            found.append(place)
        deep = len(place.relative_to(folder).parts) >= _DEEPEST
        inner[:] = [] if inside or deep else sorted(name for name in inner if not name.startswith("."))
    return sorted(found)


def started_from(run: Path, others: Sequence[Path]) -> dict[Path, list[Path]]:
    """Return {a checkpoint's folder in `run`: the runs among `others` whose `from:` names it, or which began from it}.

    A run whose configuration cannot be read is a warning: what it names is not known.
    """
    named: dict[Path, list[Path]] = {}
    for other in others:
        for folder in _named_by(other, run):
            named.setdefault(folder, []).append(other)
    return named


def _named_by(other: Path, run: Path) -> Iterator[Path]:
    """Yield the checkpoints of `run` that the run `other` names as its start, each once."""
    specs, lineage = list[str](), other / LINEAGE
    try:
        specs += filter(None, [open_run_config(other).config.from_])
    except PlaitError as error:
        log.warning(f"{other}: what it starts from is not known: {error}")
    if lineage.is_file():
        try:
            told = json.loads(lineage.read_bytes())
            specs += [told["folder"]] if told["kind"] == "from" else []
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning(f"{lineage} cannot be read ({type(error).__name__}): what {other} began from is not known")
    folders = checkpoint.published(run)
    yield from dict.fromkeys(folder for spec in specs for folder in _checkpoints(spec, run, folders))


def _checkpoints(spec: str, run: Path, folders: Sequence[Path]) -> list[Path]:
    """Return which of a run's checkpoints, its `folders`, a spec names; [] where it names another run.

    A relative spec is of the folder where that run was started, which is not known: it names this run if the ends of both paths agree.
    """
    path, mark = checkpoint_specs.split(spec)
    parts, own = checkpoint.run_of(path).parts, run.resolve().parts
    if checkpoint.run_of(path).resolve() != run.resolve() and (path.is_absolute() or not parts or own[-len(parts) :] != parts):
        return []
    here = run / path.relative_to(checkpoint.run_of(path))
    if checkpoint.is_step(here):
        return [folder for folder in folders if folder == here]
    try:
        return [checkpoint_specs.marked(here, mark or checkpoint_specs.LATEST)]
    except PlaitError:
        return []  # gone already, or damaged
