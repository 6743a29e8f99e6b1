"""Where a run starts from: its own newest checkpoint, another run's weights, or step 0; what changes is logged before the first step.

A view is the configuration of one stage (part of a run); a bundle, the model with its family (kind of model); a group, a kind of tensor.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors.torch import load_file
from torch import Tensor

from plait import files
from plait.assembly import checkpoint_specs
from plait.assembly.model import ModelBundle
from plait.config.resolved import StageView
from plait.config.schema import RunConfig
from plait.engine import optim, power_ema, schedule
from plait.engine.checkpoints import checkpoint, migrate, post_hoc_ema
from plait.engine.checkpoints.checkpoint import Checkpoint
from plait.engine.parallel.distributed import Ranks, StoredTensor
from plait.engine.state import GROUPS, State
from plait.errors import PlaitError
from plait.families import registry

LINEAGE = "lineage.json"
"""In a run directory: the start that `from:` or a fork gave the run."""

_FORMS = f"from: {checkpoint_specs.FORMS}, a folder of safetensors, or a Hub repository as owner/name"
_PROBE_TOLERANCE = 1e-3
_BARS = " ▁▂▃▄▅▆▇█"
_CURVE_COLUMNS = 48
Tensors = dict[str, dict[str, Tensor]]

log = logging.getLogger(__name__)


def resume(
    state: State, bundle: ModelBundle, views: Sequence[StageView], *, run: Path, ranks: Ranks, allow_inexact: bool
) -> Checkpoint | None:
    """Restore the run's newest intact checkpoint into `state` and log it; returns it, or None when none was saved yet.

    `views`: the run's stages. Raises PlaitError when no checkpoint is intact, when a frozen weight is not the one the run was trained
    against, or when something saved would be lost, unless `allow_inexact`.
    """
    found: tuple[Checkpoint | None, str | None] = ranks.agree(_find_newest(run) if ranks.first else (None, None))  # one reader hashes
    newest, refusal = found
    if refusal is not None:
        raise PlaitError(refusal)
    if newest is None:
        return None
    saved = newest.manifest["state"]
    if saved["stage"] > len(views):
        raise PlaitError(f"{newest.folder} is of stage {saved['stage']}, but the configuration has {len(views)} stages; give them back")
    if bundle.frozen_xxh3(set(saved["trained"])) != newest.manifest["frozen_xxh3"]:
        raise PlaitError(f"the frozen weights are not those that {newest.folder} was trained against: {newest.manifest['base']}")
    tensors = {group: newest.stored(group) for group in GROUPS}
    view = views[saved["stage"] - 1]
    rows = migration_table(tensors, set(saved["trained"]), view.config, bundle)
    accept(rows, [], run=run, origin=f"{newest.folder}", ranks=ranks, allow_inexact=allow_inexact)
    state.restore(saved, tensors)
    if ranks.first:
        post_hoc_ema.forget(run, state.step)
    before = newest.manifest["world"]
    layout = "exact" if before == ranks.size else f"remapped: {before} ranks then, {ranks.size} now; same global batches, same noise"
    log.info(f"  step {state.step}, order of data, noise    exact: functions of (seed, step)\n  ranks    {layout}")
    for line in freezing_changes(newest.manifest, bundle, view.config) if saved["stage_done"] is None else ():
        log.info(f"  {line}")
    return newest


def _find_newest(run: Path) -> tuple[Checkpoint | None, str | None]:
    """Return the newest intact checkpoint, or why the run cannot go on; (None, None) for a run that saved none yet.

    Damaged checkpoints that are newer are set aside.
    """
    checkpoint.clear_unfinished(run)
    newest, faults = checkpoint.newest_intact(run)
    for fault in faults:
        log.info(f"passed over: {fault}")
    if newest is None:
        damaged = checkpoint.published(run)
        if damaged:
            lost = f"{len(damaged)} checkpoints, up to step {checkpoint.step_of(damaged[0])}"
            cure = "mend the disk, or --restart begins anew and keeps this run aside"
            return None, f"{run} has {lost}, and none is intact: {faults[0]}; {cure}"
        log.info(f"{run} has no checkpoint yet: it starts at step 0")
        return None, None
    for folder in checkpoint.set_aside_damaged(run, newest):
        log.info(f"set aside as {folder}")
    log.info(f"continuing from {newest.folder}")
    return newest, None


def check_named(spec: str) -> None:
    """Raise PlaitError where `spec`, the setting `from:`, is neither a path here nor named as a Hub repository; downloads nothing."""
    path, _ = checkpoint_specs.split(spec)
    if not path.exists() and not checkpoint_specs.may_be_hub(spec.partition("@")[0]):
        checkpoint_specs.locate(spec, _FORMS)


def begin_from(state: State, bundle: ModelBundle, view: StageView, *, run: Path, ranks: Ranks, allow_inexact: bool) -> None:
    """Start at step 0 with the weights, averages and moments that `from:` names; what is frozen is up to this run's configuration.

    Raises PlaitError when `from:` names nothing usable, or something saved would be lost, unless `allow_inexact`.
    """
    spec = str(view.config.from_)
    tensors, manifest, folder = read_from(spec)
    publisher = registry.publisher(bundle.family.name)
    if manifest is None and publisher is not None:
        tensors = {**tensors, "weights": publisher.imported(tensors["weights"], bundle.model)}
    if tensors["ema"] and view.config.optim.ema is None:
        tensors = {**tensors, **{group: {} for group in ("ema", *power_ema.KEPT)}}
        log.info("averages are left behind: optim.ema is off here")
    trained = set(manifest["state"]["trained"]) if manifest else set(tensors["weights"])
    rows = migration_table(tensors, trained, view.config, bundle)
    notes = []
    if manifest and bundle.frozen_xxh3(trained) != manifest["frozen_xxh3"]:
        notes.append(f"base weights: frozen there {manifest['base']}, here {bundle.family.base(bundle.section)}")
    if ranks.first:
        log.info(f"starting from {folder}")
        for line in freezing_changes(manifest, bundle, view.config):
            log.info(f"  {line}")
        lineage = {"kind": "from", "from": spec, "folder": str(folder), "step": manifest["state"]["step"] if manifest else None}
        files.write_json(run / LINEAGE, lineage)
    accept(rows, notes, run=run, origin=spec, ranks=ranks, allow_inexact=allow_inexact)
    kept = {name for row in rows if row.group == "weights" and row.verdict == "keep" for name in row.names}
    fitting: Tensors = {
        group: {name: value for name, value in part.items() if (name.rpartition(".")[0] if group == "moments" else name) in kept}
        for group, part in tensors.items()
    }
    state.restore(State(bundle.model).metadata() | {"trained": sorted(kept)}, fitting)


def read_from(spec: str) -> tuple[Tensors, dict[str, Any] | None, Path]:
    """Read what `from: SPEC` names: tensors {group: {name: tensor}}, the manifest (None for bare weights), and the folder.

    `spec`: a checkpoint (RUN, RUN@STEP, RUN/STAGE@best, ...), a folder of safetensors, or a Hub repository (owner/name). Raises PlaitError
    for anything else, and for a damaged checkpoint.
    """
    path, mark = checkpoint_specs.split(spec)
    name = spec.partition("@")[0]
    if not path.exists() and not (path.parent / "config.yaml").is_file() and checkpoint_specs.may_be_hub(name):
        return _read_folder(_download(name, mark or None))
    if path.exists() and not checkpoint.is_step(path) and not checkpoint.published(checkpoint.run_of(path)):
        return _read_folder(path)
    located = checkpoint_specs.locate(spec, _FORMS)
    return {group: located.tensors(group) for group in GROUPS}, located.manifest, located.folder


def _read_folder(folder: Path) -> tuple[Tensors, dict[str, Any] | None, Path]:
    """Read a folder outside of a run: a checkpoint with its manifest, or bare safetensors."""
    if (folder / "manifest.json").is_file():
        if faults := checkpoint.verify(folder):
            raise PlaitError(faults[0])
        located = checkpoint.read(folder)
        return {group: located.tensors(group) for group in GROUPS}, located.manifest, folder
    parts = sorted(folder.glob("*.safetensors"))
    if not parts:
        raise PlaitError(f"from: {folder} is neither a run nor a folder with safetensors weights")
    return {"weights": {name: value for part in parts for name, value in load_file(part).items()}, "ema": {}, "moments": {}}, None, folder


def _download(repository: str, revision: str | None) -> Path:
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=["*.safetensors", "manifest.json"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PlaitError(f"from: {repository!r} is no run, stage or folder here, and the Hub did not give it: {reason}") from error


def migration_table(
    tensors: Mapping[str, Mapping[str, StoredTensor]], trained: set[str], config: RunConfig, bundle: ModelBundle
) -> list[migrate.Row]:
    """Compare saved tensors, {group: {name: tensor}}, with what a stage needs. `trained`: names that the saved state had trained."""
    components = bundle.family.components(bundle.model)
    now = {name for part in optim.select(components, config.trainable, bundle.family.never_trained).values() for name in part}
    wanted = {"weights": now, "moments": now, "ema": now if config.optim.ema is not None else set()}
    if config.optim.ema is not None and config.optim.ema.post_hoc:
        wanted |= dict.fromkeys(power_ema.KEPT, now)
    return migrate.compare(tensors, components, wanted, trained)


def accept(rows: Sequence[migrate.Row], notes: Sequence[str], *, run: Path, origin: str, ranks: Ranks, allow_inexact: bool) -> None:
    """Log the table `rows` of kept, new and lost tensors, and append it to RUN/migrations.jsonl. `notes`: further losses, a line each.

    `origin`: the checkpoint that the start is from, for the table. Raises PlaitError when something would be lost, unless `allow_inexact`.
    """
    lost = [*migrate.inexact(rows), *notes]
    if ranks.first:
        log.info(migrate.table(rows))
        row = {"from": origin, "rows": [vars(row) for row in rows], "inexact": lost}
        files.append_rows(run / "migrations.jsonl", [row])
        for line in lost:
            log.info(f"  inexact: {line}")
    if lost and not allow_inexact:
        raise PlaitError(f"this start is inexact ({'; '.join(lost)}); if that is meant, add --allow-inexact")


def freezing_changes(manifest: Mapping[str, Any] | None, bundle: ModelBundle, config: RunConfig) -> list[str]:
    """Return a log line for each component (part of the model) that trains here but not in the checkpoint's stage, or vice versa."""
    if manifest is None:
        return []
    components = bundle.family.components(bundle.model)
    now = set(optim.select(components, config.trainable, bundle.family.never_trained))
    before = set(manifest["trainable"])
    lines = [f"{name}: trained there, frozen here (its trained weights stay in every checkpoint)" for name in sorted(before - now)]
    return lines + [f"{name}: frozen there, trains here" for name in sorted(now - before)]


def describe_changes(before: RunConfig, after: RunConfig, differences: Sequence[tuple[str, Any, Any]], steps: int) -> str:
    """Describe a changed configuration: each key, and both learning-rate curves. `steps`: their length where `train.steps` is unset."""
    lines = [f"  {key}: {json.dumps(old)} -> {json.dumps(new)}" for key, old, new in differences]
    if any(key.startswith(("optim", "train", "stages")) for key, _, _ in differences):
        for name, config in (("then", before), ("now", after)):
            lines.append(f"  learning rate {name:<4} {curve(config, config.train.steps or steps)}")
    return "\n".join(lines)


def curve(config: RunConfig, steps: int) -> str:
    """Draw the learning-rate curve over `steps` as a line of text: bars, peak and end, as "▁▄█▆▃ peak 0.0003, end 0, 1000 steps"."""
    values, end, units = schedule.curve(config.optim, steps, _CURVE_COLUMNS)
    bars = "".join(_BARS[round(value * (len(_BARS) - 1))] for value in values)
    return f"{bars} peak {config.optim.lr:.2g}, end {config.optim.lr * values[-1]:.2g}, {end} {units}"


def check_data(saved: Checkpoint, now: Mapping[str, str], run: Path, allow_inexact: bool) -> str:
    """Compare the data's hashes `now`, {source: hash}, with the checkpoint's; returns a log line. A source is one data set.

    Raises PlaitError when they differ, unless the run was forked at this step to change its data, or `allow_inexact`.
    """
    before = saved.manifest["data"]
    by_name = {name: (before.get(name, "not there"), now.get(name, "gone")) for name in {**before, **now}}
    changes = [f"{name}: {old} -> {new}" for name, (old, new) in by_name.items() if old != new]
    if not changes:
        return f"data     exact: {', '.join(now)}"
    line = f"the training data is not what {saved.folder} was trained on ({'; '.join(changes)})"
    if not allow_inexact and not _forked_for_data(run, saved.step):
        raise PlaitError(f"{line}; put it back, fork the run with the new data, or add --allow-inexact")
    return f"data     changed: {line}"


def _forked_for_data(run: Path, step: int) -> bool:
    """Return whether the run is a fork at this very step that changed the data."""
    path = run / LINEAGE
    lineage: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {"kind": None}
    return lineage["kind"] == "fork" and lineage["step"] == step and any("data." in f"{key}." for key, _, _ in lineage["differences"])


def check_probe(stored: float | None, now: float, allow_inexact: bool) -> str:
    """Compare the loss of a few fixed samples `now` with the one `stored` in the checkpoint (None: none); returns a log line.

    Raises PlaitError when they are further apart than 0.1 %, too far to be of the same model, unless `allow_inexact`.
    """
    if stored is None:
        return f"probe loss {now:.6f}: none stored to compare with"
    if stored == now:
        return f"probe loss {now:.6f}: exact"
    gap = abs(now - stored) / max(abs(stored), 1e-12)
    line = f"probe loss {now:.6f}, stored {stored:.6f}: {gap:.1e} apart"
    if gap > _PROBE_TOLERANCE and not allow_inexact:
        raise PlaitError(f"{line}: this is not the model that was saved (code, base weights or data changed); --allow-inexact goes on")
    return f"{line} (another device, thread count or number of ranks)"
