"""Find run directories below a folder, and the checkpoints of a run that other runs start from.

A run directory holds config.yaml and something else that a start writes; a folder of recipes does not count as one.
"""

import contextlib
import itertools
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plait.assembly import checkpoint_specs
from plait.assembly.run_configuration import open_run_config
from plait.config import reading, signed
from plait.config.nodes import node_at
from plait.engine.checkpoints import checkpoint
from plait.errors import PlaitError
from plait.files import expanded
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


def started_from(run: Path, others: Sequence[Path]) -> dict[Path, list[str]]:
    """Return which checkpoints of `run` others start from: {folder: a text for each such run}.

    Those are runs among `others` whose `from:` names it, or may, or which began from it.

    A run whose configuration cannot be read is a warning: what it names is not known.
    """
    named: dict[Path, list[str]] = {}
    for other in others:
        for folder, text in _named_by(other, run).items():
            named.setdefault(folder, []).append(text)
    return named


def _named_by(other: Path, run: Path) -> dict[Path, str]:
    """Return {a checkpoint of `run` that the run `other` names as its start: a text that says so}."""
    specs, told = list[str](), _lineage(other)
    try:
        specs += filter(None, [open_run_config(other).config.from_, _as_written(other)])
    except PlaitError as error:
        log.warning(f"{other}: what it starts from is not known: {error}")
    if told is not None:
        specs.append(told["folder"])
    folders, named = checkpoint.published(run), dict[Path, str]()
    for spec in dict.fromkeys(specs):
        decided = None if told is None or Path(spec).is_absolute() else _is_of(told, run)
        if decided is False:
            continue
        for folder in _checkpoints(spec, run, other, folders):
            unsure = "" if decided or expanded(spec).is_absolute() else f" {spec}, relative to where it was started, and this may be it"
            named.setdefault(folder, f"{other} starts from{unsure or ' it'}")
    if told is not None and _is_of(told, run):
        named |= {folder: f"{other} starts from it" for folder in folders if checkpoint.step_of(folder) == told.get("step")}
    return named


def _lineage(other: Path) -> dict[str, Any] | None:
    """Return the record of the start of a run that took weights from elsewhere; None of any other."""
    path = other / LINEAGE
    if not path.is_file():
        return None
    try:
        told: dict[str, Any] = json.loads(path.read_bytes())
        return told if told["kind"] == "from" and isinstance(told["folder"], str) else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning(f"{path} cannot be read ({type(error).__name__}): what {other} began from is not known")
        return None


def _as_written(other: Path) -> str | None:
    """Return the `from` of a run's configuration as the file has it, before it is joined to this working directory."""
    settings = signed.settings_of(other)
    node = None if settings is None else node_at(reading.read(settings), ("from",))
    return node.value if node is not None and isinstance(node.value, str) else None


def _is_of(told: Mapping[str, Any], run: Path) -> bool | None:
    """Return whether a record of a start names this very run, by its identity; None where one of both has none."""
    path = run / "identity"
    own = path.read_bytes().strip().decode(errors="replace") if path.is_file() else None
    return None if own is None or not isinstance(told.get("parent"), str) else told["parent"] == own


def _checkpoints(spec: str, run: Path, other: Path, folders: Sequence[Path]) -> list[Path]:
    """Return which of a run's checkpoints, its `folders`, a spec of the run `other` names or may name; [] where it names another run.

    A relative spec is of the folder where that run was started, which is not known: it is tried in every folder above both runs, in this
    run and its stages, and in the working directory. Its leading ".." lead to one of them.
    """
    found: list[Path] = []
    for candidate in _absolute(spec, run, other):
        path, mark = checkpoint_specs.split(candidate)
        if checkpoint.run_of(path).resolve() != run.resolve():
            continue
        here = run / path.relative_to(checkpoint.run_of(path))
        if checkpoint.is_step(here):
            found += [folder for folder in folders if folder == here]
            continue
        with contextlib.suppress(PlaitError):  # gone already, or damaged
            found.append(checkpoint_specs.marked(here, mark or checkpoint_specs.LATEST))
    return list(dict.fromkeys(found))


def _absolute(spec: str, run: Path, other: Path) -> list[str]:
    """Return the absolute specs that one may stand for."""
    if expanded(spec).is_absolute():
        return [spec]
    whole = run.resolve()
    bases = [Path.cwd(), *other.resolve().parents, whole, *whole.parents, *whole.glob("stage-*")]
    parts = list(itertools.dropwhile(lambda part: part == "..", Path(os.path.normpath(spec)).parts))
    return list(dict.fromkeys(os.path.normpath(base / end) for base in bases for end in (spec, "/".join(parts))))
