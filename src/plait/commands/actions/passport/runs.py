"""Check the checkpoints of a run against their manifests, and a passport against the run that it is of.

A run has no passport of its own: its manifests, each with a hash, are what a passport is made of.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from plait.assembly import checkpoint_specs
from plait.assembly.run_configuration import open_of_checkpoint
from plait.commands.actions.passport import claims, listing, proofs, seal
from plait.commands.actions.passport.checked import Verdict
from plait.commands.actions.passport.claims import ITSELF, Claims
from plait.config import signed
from plait.config.sections import adapters
from plait.engine.checkpoints import chain, checkpoint, integrity
from plait.engine.checkpoints.checkpoint import Checkpoint
from plait.errors import PlaitError
from plait.families import offers
from plait.training import start

_BESIDE = ("manifest.json", signed.COPY)
"""Files of a checkpoint that its manifest does not list: itself, and the settings, with a hash of their own."""


def look(spec: str) -> Verdict:
    """Check the checkpoints that `spec` names (RUN, RUN/STAGE: all of them; RUN@STEP: one). Raises PlaitError if there is none."""
    folders, run = _named(spec)
    found = Verdict(spec, by="its manifests say", run=run)
    newest: Checkpoint | None = None
    others = _hashes(run)
    for folder in folders:
        found.faults += _faults(folder, others)
        try:
            one = checkpoint.read(folder)
            start.check_complete(one)
        except PlaitError:  # which is a fault of the folder
            continue
        newest, found.checked = one, found.checked + len(one.manifest["files"])
    if not (run / signed.NAME).is_file():
        found.faults.append(f"{run / signed.NAME} is missing: every run has its settings there")
    elif not signed.is_as_written(run / signed.NAME):
        found.faults.append(f"{run / signed.NAME} is changed: it is not what the hash in its last line is of")
    found.faults += proofs.faults(run)
    if newest is not None:
        recorded = {signed.NAME, proofs.NAME, *newest.manifest.get(chain.KEY, {}).get(chain.RECORDS, {})}
        found.faults += _added(run, recorded)
        found.not_covered = _not_covered(run, recorded)
        try:
            found.claims = _claims(newest, run)
        except PlaitError as error:
            found.faults.append(str(error))
    found.faults = list(dict.fromkeys(found.faults))  # each manifest has the records of the run
    return found


def _named(spec: str) -> tuple[list[Path], Path]:
    """Return the step folders that a spec names, oldest first, and the run."""
    path, mark = checkpoint_specs.split(spec)
    if not path.exists():
        forms = "give a run, a checkpoint of one, an export, or a repository of the Hub as owner/name"
        checkpoint_specs.locate(spec, forms)
    if mark:
        folders = [checkpoint_specs.marked(path, mark)]
    elif checkpoint.is_step(path):
        folders = [path]
    else:
        folders = [folder for folder in checkpoint.published(checkpoint.run_of(path)) if path in folder.parents][::-1]
    if not folders:
        raise PlaitError(f"{path} has no {seal.NAME}, and is no run, stage or checkpoint of one")
    return folders, checkpoint.run_of(folders[0])


def _hashes(run: Path) -> dict[str, str]:
    """Return the hash in the manifest of each checkpoint of a run, by its folder; of those that can be read."""
    hashes = {}
    for folder in checkpoint.published(run):
        with contextlib.suppress(PlaitError):
            hashes[str(folder.relative_to(run))] = str(checkpoint.read(folder).manifest["xxh3"])
    return hashes


def _faults(folder: Path, others: Mapping[str, str]) -> Iterator[str]:
    """Yield what is not as a checkpoint's manifest says: files, links in their place, files that it does not list, and its chain.

    `others`: the hashes in the manifests of the run.
    """
    for path in (folder.parent, folder):
        if path.is_symlink():
            yield f"{path} is a link, and no folder of the run"
    yield from integrity.verify(folder)
    try:
        found = checkpoint.read(folder)
    except PlaitError:
        return  # which is told already
    try:
        start.check_complete(found)
    except PlaitError as error:
        yield str(error)
    manifest = found.manifest
    yield from chain.faults(found, others)
    for name in listing.names(folder):
        if name not in manifest["files"] and name not in _BESIDE and listing.is_covered(name):
            yield f"{folder / name} is not in the manifest: it was added"
    if manifest["state"]["step"] != checkpoint.step_of(folder):
        yield f"{folder} has the manifest of step {manifest['state']['step']}"
    held = signed.COPY in manifest.get(chain.KEY, {}).get("records", {})
    if not held and (folder / signed.COPY).exists() and not signed.is_as_written(folder / signed.COPY):
        yield f"{folder / signed.COPY} is changed: it is not what the hash in its last line is of"


def _added(run: Path, recorded: Collection[str]) -> list[str]:
    """Return a line for each file of assets/ that the newest manifest does not have, if it has any record of that folder."""
    if chain.IDENTITY not in recorded:  # of an older plait
        return []
    names = [name for name in chain.record_names(run) if name not in recorded and name.startswith(f"{chain.ASSETS}/")]
    return [f"{run / name} is not in the newest manifest: it was added" for name in names]


def _not_covered(run: Path, recorded: Collection[str]) -> list[str]:
    """Return the files and folders at the top of a run that no manifest has a hash of."""
    tops = {name.partition("/")[0] for name in recorded} | ({chain.ASSETS} if chain.IDENTITY in recorded else set())
    others = [path for path in sorted(run.iterdir()) if path.name not in tops and not path.name.startswith((".", "stage-"))]
    return [f"{path.name}/" if path.is_dir() else path.name for path in others if path.name != "lock"]


def _claims(found: Checkpoint, run: Path) -> Claims:
    """Return what a passport of the newest checkpoint would claim."""
    place = str(found.folder.relative_to(run))
    resolved = open_of_checkpoint(run, found.folder)
    return claims.of_checkpoint(found, place, run, resolved, kind="checkpoint", layout=None, weights=claims.all_weights(found))


def against(told: Claims, run: Path) -> list[str]:
    """Return a line for each claim that is not what the directory `run` says. Raises PlaitError where that is no run."""
    assert told.checkpoint.folder is not None, "looked at before"
    if not checkpoint.published(run):
        raise PlaitError(f"--run {run}: {'it has no checkpoint' if run.is_dir() else 'there is no such folder'}: name the run")
    folder = run / told.checkpoint.folder
    if not (folder / "manifest.json").is_file():
        return [f"checkpoint {told.checkpoint.folder} is not in {run}"]
    found = checkpoint.read(folder)
    now = _claims(found, run).model_dump(mode="json", exclude=set(ITSELF))
    faults = list(seal.differences(now, told.model_dump(mode="json", exclude=set(ITSELF)), f"in {run} claim"))
    return [*faults, *_form_faults(told, found, run)]


def _form_faults(told: Claims, found: Checkpoint, run: Path) -> Iterator[str]:
    """Yield a line for each claim on the folder itself that is none that plait writes of this checkpoint."""
    own = "checkpoint" if "manifest.json" in told.files else "weights" if "weights.json" in told.files else "export"
    if told.kind != own:
        yield f"claim kind is {told.kind}, and its files are those of: {own}"
    config = open_of_checkpoint(run, found.folder).config
    publisher = offers.publisher(config.family)
    layouts = {*(publisher.exports if publisher is not None else ()), *([adapters.LAYOUT] if config.adapters else [])}
    if (told.layout is not None) != (own == "export") or (told.layout is not None and told.layout not in layouts):
        known = ", ".join(sorted(layouts)) if own == "export" else "none"
        yield f"claim layout is {told.layout}, and those of {own} folders of {run} are: {known}"
    averaged = any(name.partition("/")[0].removesuffix(".safetensors") == "ema" for name in found.manifest["files"])
    forms = {claims.all_weights(found)} if own == "checkpoint" else {"last weights", *(["averaged weights"] if averaged else [])}
    forms |= {"weights"} if own == "export" else set()
    if told.weights not in forms and not (own == "export" and told.weights.startswith("weights averaged over a length of ")):
        yield f"claim weights is {told.weights}, and those of {found.folder} are {' or '.join(sorted(forms))}"


def not_compared(told: Claims) -> list[str]:
    """Return what of a folder `against` does not hold to the run, in words.

    Nothing of a pushed checkpoint, of whose files its manifest has hashes.
    """
    files = [name for name in told.files if name.endswith(".safetensors")]
    return [] if told.kind == "checkpoint" else [f"the tensors in {', '.join(files)} (--weights does so)", "other files of its layout"]
