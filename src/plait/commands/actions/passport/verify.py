"""Check a folder or a repository of the Hub against its passport: each file and each claim. What `plait verify` does."""

import logging
from collections.abc import Callable
from pathlib import Path

from plait.assembly import hub_start
from plait.commands.actions.passport import checked, data, hub, runs, seal, show
from plait.commands.actions.passport.checked import Verdict
from plait.commands.actions.passport.claims import Claims
from plait.config import signed
from plait.engine.checkpoints import checkpoint
from plait.engine.monitoring.json_output import show_json
from plait.errors import PlaitError
from plait.files import expanded

log = logging.getLogger(__name__)


class Unlike(PlaitError):
    """Raised where something is not as its passport says. Exit code 1."""

    exit_code = 1


WeightFaults = Callable[[Path, Claims, Path], list[str]]
"""Called with a folder, its claims and the run: compares the tensors, and returns a line per fault."""


def verify(
    spec: str,
    *,
    digest: str | None = None,
    run: Path | None = None,
    weight_faults: WeightFaults | None = None,
    with_data: bool = False,
    as_json: bool = False,
) -> None:
    """Check what `spec` names against its passport, print what it is and a line per fault.

    `spec`: an export or another folder with a passport, a run, a checkpoint of one, or a repository of the Hub. `digest`: that the passport
    must have; `run`: the run of which its claims must hold; `weight_faults`: compares its tensors with that run; `with_data`: open the
    data of that run, or of the one that is checked, and compare its fingerprints. `as_json`: as one JSON object, too. Raises Unlike where
    anything is not as it says, and PlaitError where it has no passport, or cannot be read.
    """
    found = _look(spec)
    if digest is not None and found.digest != f"sha256:{digest.lower().removeprefix('sha256:')}":
        found.faults.append(f"digest was to be {digest}, is {found.digest or 'not there'}")
    if found.claims is not None and found.claims.checkpoint.folder is None and (run is not None or with_data):
        raise PlaitError(
            f"{spec} was saved by a trainer of transformers, which keeps no run to compare it with: leave --run and --data out"
        )
    if run is not None and found.claims is not None:
        found.faults += runs.against(found.claims, run)
        found.not_compared = runs.not_compared(found.claims)
    if weight_faults is not None:
        _compare_weights(found, spec, run, weight_faults)
    if with_data:
        if (whose := run or found.run) is None:
            raise PlaitError("--data: where the data is, the run knows: add --run RUN")
        found.faults += [] if found.claims is None else data.faults(found.claims, whose)
    if as_json:
        claims = None if found.claims is None else found.claims.model_dump(mode="json")
        told = {"of": found.what, "intact": not found.faults, "faults": found.faults}
        told |= {"not_covered": found.not_covered, "not_compared": found.not_compared}
        show_json({**told, "digest": found.digest, "claims": claims})
    else:
        for line in show.lines(found.what, found.claims, found.digest, found.checked, found.not_covered):
            log.info(line)
        if found.not_compared:
            log.info(f"  not compared with the run: {'; '.join(found.not_compared)}")
        for fault in found.faults:
            log.info(f"  WRONG {show.one_line(fault)}")
    if found.faults:
        count = len(found.faults)
        more = f", the first of {count} faults" if count > 1 else ""
        raise Unlike(f"{found.what} is not what {found.by}: {show.one_line(found.faults[0])}{more}")
    log.info(f"{found.what} is what {found.by}")


def _compare_weights(found: Verdict, spec: str, run: Path | None, weight_faults: WeightFaults) -> None:
    """Add the faults of tensors to a verdict. Raises PlaitError without a run."""
    if run is None:
        raise PlaitError("--weights: the run is to make it again: add --run RUN")
    if found.claims is not None and found.claims.kind != "checkpoint" and not found.faults:
        found.faults += weight_faults(expanded(spec), found.claims, run)
        found.not_compared = found.not_compared[1:]


def _look(spec: str) -> Verdict:
    """Check what is named. Raises PlaitError where there is nothing of that name, or it has no passport."""
    path = expanded(spec)
    if (path / seal.NAME).is_symlink() or (path / seal.NAME).exists():
        return checked.folder(path)
    if path.is_dir() and (path / signed.NAME).is_file() and not checkpoint.published(path):
        raise PlaitError(f"{path} has no checkpoint yet: there is nothing to verify")
    if path.is_dir() and not checkpoint.is_step(path) and not checkpoint.published(checkpoint.run_of(path)):
        made = "an export or push of an older plait, or of another program; `plait export` and `plait push` write one now"
        raise PlaitError(f"{path} has no {seal.NAME}, and is no run: {made}")
    if (named := hub_start.repository(spec)) is not None:
        return hub.look(*named)
    return runs.look(spec)
