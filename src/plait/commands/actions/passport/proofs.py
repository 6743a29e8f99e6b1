"""Keep the verdicts of `plait prove` on the configuration of a run, a row each in RUN/proofs.jsonl."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plait import __version__, files
from plait.assembly.run_configuration import open_run_config
from plait.config import signed
from plait.config.resolved import Resolved, difference
from plait.engine.checkpoints import rundir
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
    if others := [key for key, _, _ in rundir.binding(difference(open_run_config(named), resolved))]:
        log.info(f"the verdict is not kept in {named}, whose settings are others: {first_names(others)}")
        return None
    return named


def keep(run: Path | None, verdict: str, kills: int, ways: Sequence[str] = (), *, seed: int, ranks: int, steps: int) -> None:
    """Add a verdict to the run directory `run`; None: it is kept nowhere.

    `kills`: how many processes were ended; `ways`: how each was, where that is known; the rest as for `plait prove`.
    """
    if run is not None:
        row = {"verdict": verdict, "kills": kills, "ways": dict(Counter(ways)), "seed": seed, "ranks": ranks, "steps": steps}
        files.append_rows(run / NAME, [{**row, "plait": __version__}])


def newest(run: Path) -> dict[str, Any] | None:
    """Return the newest verdict on the configuration of a run; None where none was made."""
    rows = files.read_rows(run / NAME, {"verdict": str, "kills": int})
    return {name: rows[-1][name] for name in _TOLD if name in rows[-1]} if rows else None
