"""Write the model of a trainer as an export with a passport, in place of an earlier export and of nothing else.

DIR                    the export: swapped in whole, by renaming
.DIR.XXXXXXXX.tmp      beside it while it is made; a kill leaves it
"""

import contextlib
import copy
import itertools
import logging
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from plait import files
from plait.assembly import exported
from plait.assembly.model import ModelBundle
from plait.commands.actions import export as exporting
from plait.commands.actions.passport import checked, listing, seal, training, write
from plait.commands.actions.passport.checked import Verdict
from plait.commands.actions.passport.claims import File
from plait.config.sections.adapters import LAYOUT
from plait.config.sections.places import on_disk
from plait.engine.parallel.rank_failures import reason_of
from plait.engine.state import PLANNED
from plait.errors import PlaitError, first_names
from plait.families import offers
from plait.hf.trained_stage import Stage
from plait.training.changes import LINEAGE
from plait.training.figures import forgetting

log = logging.getLogger(__name__)


def export(stage: Stage, out: str | Path) -> None:
    """Write the model into the folder `out`, on rank 0, in the layout that holds all of it, with a passport.

    Where adapters alone were trained these are written, else they are merged, in a copy. An earlier export in `out` is replaced once the
    new one is whole. All ranks call this. Raises PlaitError, on all of them, for a family without layouts, for a folder that holds what
    its passport does not list, and where nothing can be written.
    """
    failure: Exception | None = None
    if stage.ranks.first:
        try:
            _export(stage, out)
        except Exception as error:  # noqa: BLE001  raised on every rank, below
            failure = error
    reason = stage.ranks.agree(None if failure is None else reason_of(failure))
    if failure is not None and (stage.ranks.size == 1 or isinstance(failure, PlaitError)):
        raise failure
    if reason is not None:
        raise PlaitError(reason) from failure


def _export(stage: Stage, out: str | Path) -> None:
    bundle, config, trained = stage.bundle, stage.config, stage.state.ever_trained | stage.plan.trained_names
    publisher, alone = offers.publisher(config.family), bundle.adapters is not None and trained <= bundle.adapters.names
    layout = LAYOUT if alone else bundle.section.whole or next(iter(publisher.exports if publisher else ()), None)
    if layout is None:
        raise PlaitError(f"save_model: family {config.family!r} has no layout that other software reads; a checkpoint has its weights")
    try:
        target = _target(out)
        check_replaceable(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with _beside(target) as work:
            with averaged(stage):
                if not alone:
                    bundle, config, trained = exported.merged(_copied(bundle), config, trained)
                exporting.write_model(bundle, config, trained, layout, work / "new")
            told = training.of_training(
                _manifest(stage),
                stage.plan.view,
                forgetting.read_object(stage.out / LINEAGE) if stage.config.from_ else None,
                layout=layout,
                weights="last weights" if stage.state.ema is None else "averaged weights",
            )
            digest = write.write(work / "new", told, listing.files_of(work / "new"))
            _swap(work, target)
    except OSError as error:
        raise PlaitError(f"save_model: {out} cannot be written ({error.strerror or error}): give another folder") from error
    log.info(f"passport {digest}")
    log.info(f"the model, as {layout}: written to {out}")


def _target(out: str | Path) -> Path:
    """Return the folder that is meant, absolute and without links. Raises PlaitError for an address and for what is no folder."""
    try:
        given = files.expanded(on_disk(str(out)))
    except ValueError as error:
        raise PlaitError(f"save_model: {error}") from error
    if given.is_symlink() and not given.exists():
        raise PlaitError(f"save_model: {out} is a link to nothing: give a new folder, or remove it")
    target = given.resolve()
    above = next(folder for folder in (target, *target.parents) if folder.exists())
    if not above.is_dir():
        raise PlaitError(f"save_model: {out} is {'a file' if above == target else f'below {above}, which is a file'}: give another folder")
    if target in (Path.cwd(), *Path.cwd().parents):
        raise PlaitError(f"save_model: {out} is or holds the current folder, which an export cannot replace: give a folder below it")
    return target


def check_replaceable(target: Path, *, contents: bool = True) -> None:
    """Raise PlaitError where the folder holds anything but what an earlier export wrote, by its passport. None, or an empty one, may be.

    `contents`: compare hashes of files, not their sizes alone.
    """
    first = list(itertools.islice(target.iterdir(), 6)) if target.exists() else []
    if not first:
        return
    if not (target / seal.NAME).is_file():
        raise PlaitError(
            f"save_model: {target} holds something else than an export with a {seal.NAME} ({_shown(first, target)}): give another folder"
        )
    found = Verdict(str(target))
    checked.read(found, (target / seal.NAME).read_bytes())
    listed = {target / name: entry for name, entry in (found.claims.files if found.claims else {}).items()}
    own = {target / seal.NAME, *listed}
    folders = {folder for path in own for folder in path.parents}
    foreign = [path for path in sorted(target.rglob("*")) if path not in (own if path.is_symlink() or not path.is_dir() else folders)]
    foreign += [path for path, entry in listed.items() if path.is_symlink() or (path.is_file() and _changed(path, entry, contents))]
    if foreign:
        raise PlaitError(
            f"save_model: {target} holds what its {seal.NAME} does not list, or what was changed since ({_shown(foreign, target)}): "
            "move that away, or give another folder"
        )


def _changed(path: Path, entry: File, contents: bool) -> bool:
    return path.stat().st_size != entry.size or (contents and listing.sha256(path) != entry.sha256)


def _shown(paths: list[Path], folder: Path) -> str:
    return first_names([str(path.relative_to(folder)) for path in paths])


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `target` that nobody else has, and remove it."""
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _swap(work: Path, target: Path) -> None:
    """Rename `work`/new to `target`. What is there goes to `work`, back where the renaming fails, once it is looked at again."""
    if target.exists():
        check_replaceable(target, contents=False)
        target.rename(work / "old")
    try:
        (work / "new").rename(target)
    except BaseException:
        if (work / "old").exists():
            (work / "old").rename(target)
        raise
    files.sync_folder(target.parent)


def _manifest(stage: Stage) -> dict[str, Any]:
    """Return what the manifest of a checkpoint would say of the model as it is."""
    plan, state, bundle = stage.plan, stage.state, stage.bundle
    told = state.metadata()
    if state.step - state.stage_start >= plan.steps:
        told["stage_done"] = PLANNED
    return {
        **plan.manifest(bundle.model, state.ever_trained, stage.ranks.size, torch.__version__),
        "base": bundle.family.base(bundle.section),
        "frozen_xxh3": bundle.frozen_xxh3(state.ever_trained),
        "state": told,
    }


@contextlib.contextmanager
def averaged(stage: Stage) -> Iterator[None]:
    """Put the averaged weights, if there are any, in place of those that train, while the `with` lasts."""
    ema, parameters = stage.state.ema, dict(stage.bundle.model.named_parameters())
    if ema is None:
        yield
        return
    ema.swap(parameters)
    try:
        yield
    finally:
        ema.swap(parameters)


def _copied(bundle: ModelBundle) -> ModelBundle:
    """Return a copy of a model with adapters, which merging changes and training needs as it is; any other model itself."""
    if bundle.adapters is None:
        return bundle
    model = copy.deepcopy(bundle.model)
    layers = {component: {name: model.get_submodule(name) for name in names} for component, names in bundle.adapters.layers.items()}
    return replace(bundle, model=model, adapters=replace(bundle.adapters, model=model, layers=layers))
