"""Keep the verdicts of `plait prove` on the configuration of a run, a row each in RUN/proofs.jsonl."""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from plait import __version__, files
from plait.assembly.run_configuration import open_run_config
from plait.config import signed
from plait.config.resolved import Resolved, difference
from plait.config.sections import continued
from plait.errors import first_names

log = logging.getLogger(__name__)

NAME = "proofs.jsonl"
BIT_EXACT = "bit-exact"
_TOLD = ("verdict", "kills", "ways", "seed", "ranks", "steps", "plait")


def run_of(config: Path, resolved: Resolved) -> Path | None:
    """Return the run in which the verdict on `resolved` is kept: `config` where that is one, else that of its setting `run`.

    None where there is no such run yet, or its settings would give other results, which is logged.
    """
    named = config if (config / signed.NAME).is_file() else Path(str(resolved.config.run))
    if not (named / signed.NAME).is_file():
        return None
    if others := [key for key, _, _ in continued.binding(difference(open_run_config(named), resolved))]:
        log.info(f"the verdict is not kept in {named}, whose settings are others: {first_names(others)}")
        return None
    return named


def keep(run: Path | None, verdict: str, kills: int, ways: Sequence[str] = (), *, seed: int, ranks: int, steps: int) -> None:
    """Add a verdict to the run directory `run`; None: it is kept nowhere.

    `kills`: how many processes were ended; `ways`: how each was, where that is known; the rest as for `plait prove`.
    """
    if run is not None:
        told = (verdict, kills, dict(Counter(ways)), seed, ranks, steps, __version__)
        row = dict(zip(_TOLD, told, strict=True))
        files.append_rows(run / NAME, [{**row, "xxh3": _hash(row)}])


def newest(run: Path) -> dict[str, Any] | None:
    """Return the newest verdict on the configuration of a run, None without one. One that was changed is passed over, with a warning."""
    for fault in faults(run):
        log.warning(f"{fault}; it counts for nothing")
    rows = [row for row in _rows(run) if _is_as_written(row)]
    return {name: rows[-1][name] for name in _TOLD} if rows else None


def faults(run: Path) -> list[str]:
    """Return a line for each verdict that was changed since it was written, and for each line that is none."""
    changed = [row for row in _rows(run) if not _is_as_written(row)]
    told = [f"{run / NAME}: the verdict {str(row['verdict'])[:60]!r} is changed: it is not what its xxh3 is of" for row in changed]
    lines = (run / NAME).read_bytes().splitlines() if (run / NAME).is_file() else []
    return told + [f"{run / NAME}: line {number} is no verdict" for number, line in enumerate(lines, 1) if not _is_verdict(line)]


def _is_verdict(line: bytes) -> bool:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and isinstance(row.get("verdict"), str)


def _rows(run: Path) -> list[dict[str, Any]]:
    return files.read_rows(run / NAME, {"verdict": str})


def _is_as_written(row: Mapping[str, Any]) -> bool:
    return row.keys() == {*_TOLD, "xxh3"} and row["xxh3"] == _hash({name: row[name] for name in _TOLD})


def _hash(row: Mapping[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(row, sort_keys=True).encode())
