"""Continue a run: accept its configuration, restore its newest checkpoint, and compare the saved tensors with what it needs.

A view is the configuration of one stage (part of a run); a bundle, the model with its family (kind of model). Tensors are in groups:
weights, ema (their average), moments (of the optimizer).
"""

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from torch import nn

from plait import files
from plait.assembly.model import ModelBundle
from plait.assembly.run_configuration import open_accepted
from plait.assembly.saved import check_frozen
from plait.config import signed
from plait.config.resolved import Resolved, StageView, difference
from plait.config.schema import RunConfig
from plait.config.sections import continued
from plait.engine import averages, optim
from plait.engine.checkpoints import chain, checkpoint, integrity, migrate, post_hoc_ema, renames, rundir
from plait.engine.checkpoints.checkpoint import Checkpoint
from plait.engine.parallel.distributed import Ranks, StoredTensor
from plait.engine.precision import TYPES
from plait.engine.state import GROUPS, State
from plait.errors import PlaitError
from plait.training import changes
from plait.training.moments import kept

log = logging.getLogger(__name__)

_NEEDED = ("base", "data", "frozen_xxh3", "ranks", "trainable")
_NEEDED_STATE = ("best", "evaluated_step", "history", "probe", "stage", "stage_done", "stage_start", "step", "totals", "trained")
"""Keys of a manifest's `state` that a start needs; `order` and `state.batches` may be missing, as in older manifests."""


def resume(
    state: State, bundle: ModelBundle, views: Sequence[StageView], *, run: Path, ranks: Ranks, allow_inexact: bool
) -> Checkpoint | None:
    """Restore the newest intact checkpoint of the directory `run` into `state` and log it. Returns it, or None if none was saved yet.

    `views`: the run's stages. All ranks call this. Raises PlaitError if there are checkpoints and none is intact, if the frozen weights are
    not those that the run was trained with, or if something saved would be lost, unless `allow_inexact`.
    """
    newest, tensors = _read_newest(run, ranks)
    if newest is None:
        return None
    saved = newest.manifest["state"]
    check_stage(newest, views)
    former = renames.of_checkpoint(bundle.section.renames, newest.manifest, bundle.base_hashes)
    check_frozen(newest, bundle, views[0].config.seed, former)
    saved = {**saved, "trained": [former.get(name, name) for name in saved["trained"]]}
    tensors = renames.mapped(tensors, former)
    view = views[saved["stage"] - 1]
    rows = migration_table(tensors, set(saved["trained"]), view.config, bundle)
    accept(rows, [], run=run, origin=f"{newest.folder}", ranks=ranks, allow_inexact=allow_inexact)
    state.restore(saved, tensors, mapped=ranks.device.type != "cpu")
    if ranks.first:
        post_hoc_ema.forget(run, state.step)
    before = newest.manifest["ranks"]
    layout = "exact" if before == ranks.size else f"remapped: {before} ranks then, {ranks.size} now; same global batches, same noise"
    log.info(f"  step     {state.step}\n  ranks    {layout}")
    for line in changes.freezing_changes(newest.manifest, bundle, view.config) if saved["stage_done"] is None else ():
        log.info(f"  {line}")
    return newest


def reconcile_configuration(run: Path, resolved: Resolved, allow_inexact: bool) -> None:
    """Compare the configuration `resolved` with that of the last start, `run`/config.yaml or a checkpoint's copy, and log what differs.

    Where no checkpoint was saved, and a difference would change results or the old configuration cannot be read, `run`/assets and
    `run`/lineage.json are deleted and nothing else: the run begins with the new one. Without such a difference nothing is deleted. Raises
    PlaitError if one would change the results of a run with checkpoints, unless `allow_inexact`, and if the configuration of such a run
    cannot be read.
    """
    saved = checkpoint.published(run)
    try:
        before = open_accepted(run)
    except PlaitError as error:
        if isinstance(error.__context__, OSError):
            raise
        has_copy = signed.newest_copy(run) is not None
        fault = f"{error}" if has_copy else f"{run / signed.NAME} is damaged, or not of this version of plait ({error})"
        if not saved:
            log.warning(f"{fault}; nothing was saved: the run begins with the new one")
            rundir.clear(run)
            return
        cure = "use the version that began the run, or, if the file is damaged, put a copy of it back"
        raise PlaitError(f"{fault}{'' if has_copy else ', and no checkpoint has a copy'}; {cure}") from error
    differences = difference(before, resolved)
    if differences:
        log.info(f"configuration changed:\n{changes.describe_changes(before, resolved, differences, saved[0] if saved else None)}")
    binding = continued.binding(differences)
    if binding and not saved:
        log.info("nothing was saved under the old configuration: the run begins with the new one")
        rundir.clear(run)
    elif binding and not allow_inexact:
        continued.refuse(run, changes.without_more_steps(before, resolved, binding, _newest_intact(run, saved)))


def _newest_intact(run: Path, saved: Sequence[Path]) -> Checkpoint:
    """Return the checkpoint that a start is from, and log why newer ones of `saved` are not. Raises PlaitError if none is intact."""
    newest, faults = integrity.newest_intact(run)
    if newest is None:
        raise PlaitError(integrity.none_intact(run, saved, faults[0]))
    for fault in faults:
        log.info(f"passed over: {fault}")
    return newest


def check_stage(saved: Checkpoint, views: Sequence[StageView]) -> None:
    """Raise PlaitError if the checkpoint is of a stage that the run's stages `views` do not have."""
    stage = saved.manifest["state"]["stage"]
    if stage > len(views):
        raise PlaitError(f"{saved.folder} is of stage {stage}, but the configuration has {len(views)} stages; give them back")


def _read_newest(run: Path, ranks: Ranks) -> tuple[Checkpoint | None, dict[str, dict[str, StoredTensor]]]:
    """Return the newest checkpoint that is intact and that every rank can read, with its tensors by group and name. (None, {}) for none.

    Raises PlaitError when the run has checkpoints and none is intact.
    """
    unread: dict[Path, str] = {}
    while True:
        found: tuple[Checkpoint | None, str | None] = ranks.agree(_find_newest(run, unread) if ranks.first else (None, None))
        newest, refusal = found  # one rank hashes, all read
        if refusal is not None:
            raise PlaitError(refusal)
        if newest is None:
            return None, {}
        tensors, failure = {}, None
        try:
            check_complete(newest)
            tensors = {group: newest.stored(group) for group in GROUPS}
        except (OSError, SafetensorError, PlaitError) as error:
            failure = f"{newest.folder} cannot be read on rank {ranks.rank}: {error}"
        failures = [line for line in ranks.gather(failure) if line is not None]
        if not failures:
            return newest, tensors
        unread[newest.folder] = failures[0]


def check_complete(found: Checkpoint) -> None:
    """Raise PlaitError, naming the missing keys, if a checkpoint's manifest.json lacks some that are needed to start from it."""
    state = found.manifest["state"]
    missing = [name for name in _NEEDED if name not in found.manifest] + [f"state.{name}" for name in _NEEDED_STATE if name not in state]
    if missing:
        raise PlaitError(f"{found.folder / 'manifest.json'} lacks {', '.join(missing)}")


def _find_newest(run: Path, unread: Mapping[Path, str]) -> tuple[Checkpoint | None, str | None]:
    """Return the newest intact checkpoint, or why the run cannot go on; (None, None) for a run that saved none yet.

    Damaged checkpoints that are newer are set aside. `unread`: those whose files match their hashes and could not be read all the same,
    with why.
    """
    checkpoint.clear_unfinished(run)
    newest, faults = integrity.newest_intact(run, unread)
    for fault in faults:
        log.info(f"passed over: {fault}")
    if newest is None:
        damaged = checkpoint.published(run)
        if damaged:
            return None, integrity.none_intact(run, damaged, faults[0])
        log.info(f"{run} has no checkpoint yet: it starts at step 0")
        return None, None
    if changed := chain.changed_asset(newest):
        return None, changed
    for folder in integrity.set_aside_damaged(run, newest):
        log.info(f"set aside as {folder}")
    log.info(f"continuing from {newest.folder}")
    return newest, None


def migration_table(
    tensors: Mapping[str, Mapping[str, StoredTensor]], trained: set[str], config: RunConfig, bundle: ModelBundle
) -> list[migrate.Row]:
    """Compare saved tensors, {group: {name: tensor}}, with what a stage with settings `config` needs; return rows: kept, new or lost.

    `trained`: names of the parameters that were trained before the tensors were saved. Raises PlaitError if `trainable` names no component.
    """
    components = bundle.components()
    trains = optim.select(components, config.trainable, bundle.family.never_trained)
    now = {name for part in trains.values() for name in part}
    wanted = {"weights": now, "moments": now, "ema": now if config.optim.ema is not None else set()}
    if config.optim.ema is not None and config.optim.ema.post_hoc:
        wanted |= dict.fromkeys(averages.KEPT, now)
    unusable = kept.misfits(tensors["moments"], kept.kinds(trains, config.optim, bundle.blocks))
    return migrate.compare(tensors, components, wanted, trained, unusable)


def accept(rows: Sequence[migrate.Row], notes: Sequence[str], *, run: Path, origin: str, ranks: Ranks, allow_inexact: bool) -> None:
    """Log the rows of `migration_table` and append them to `run`/migrations.jsonl; refuse a start that loses something.

    `notes`: further losses, a line each; `origin`: name of the checkpoint that the start is from. Raises PlaitError if anything is lost,
    unless `allow_inexact`.
    """
    lost = [*migrate.inexact(rows), *notes]
    if ranks.first:
        log.info(migrate.table(rows))
        row = {"from": origin, "time_s": time.time(), "rows": [vars(row) for row in rows], "inexact": lost}
        files.append_rows(run / "migrations.jsonl", [row])
        for line in lost:
            log.info(f"  inexact: {line}")
    if lost and not allow_inexact:
        raise PlaitError(f"this start is inexact ({'; '.join(lost)}); if that is meant, add --allow-inexact")


def round_frozen(model: nn.Module, ever_trained: Collection[str], precision: str) -> None:
    """Cast weights not in `ever_trained` (names) to the frozen dtype of `precision`, as was done before the run was stopped and resumed."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and name not in ever_trained:
            parameter.data = parameter.data.to(TYPES[precision].frozen)
