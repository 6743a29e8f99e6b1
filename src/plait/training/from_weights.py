"""Start a run from the weights that the setting `from:` names: another run, a folder of safetensors, or a Hub repository.

A view is the configuration of one stage (part of a run); a bundle, the model with its family (kind of model). Tensors are in groups:
weights, ema (their average), moments (of the optimizer).
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from plait import files
from plait.assembly import checkpoint_specs, hub_start, saved, weight_files
from plait.assembly.model import ModelBundle
from plait.config.resolved import StageView
from plait.engine import averages, optim
from plait.engine.checkpoints import checkpoint, integrity, renames
from plait.engine.parallel.distributed import Ranks
from plait.engine.state import GROUPS, State
from plait.errors import PlaitError
from plait.families import offers
from plait.training import changes, start
from plait.training.figures import forgetting
from plait.training.moments import kept

log = logging.getLogger(__name__)

Tensors = dict[str, dict[str, Tensor]]
"""{group: {parameter name: tensor}}."""


def check_named(spec: str) -> None:
    """Raise PlaitError if `spec`, the value of `from:`, is neither an existing path nor has the form of a Hub repository's name."""
    path, _ = checkpoint_specs.split(spec)
    if not path.exists() and not checkpoint_specs.may_be_hub(str(path)):
        checkpoint_specs.locate(spec, checkpoint_specs.START)


def begin_from(state: State, bundle: ModelBundle, view: StageView, *, run: Path, ranks: Ranks, allow_inexact: bool) -> None:
    """Fill `state`, at step 0, with the weights, their averages and the optimizer moments that `view.config`'s `from:` names.

    Logs what is kept and what is new. `run`: the new run's directory. Raises PlaitError when `from:` names nothing usable, or when
    something saved would be lost, unless `allow_inexact`.
    """
    spec = str(view.config.from_)
    downloaded = hub_start.fetch(spec, ranks)
    tensors, manifest, folder = read_from(spec if downloaded is None else str(downloaded))
    publisher = offers.publisher(bundle.family.name)
    if manifest is None and publisher is not None:
        tensors = {**tensors, "weights": publisher.imported(tensors["weights"], bundle.model)}
    if tensors["ema"] and view.config.optim.ema is None:
        tensors = {**tensors, **{group: {} for group in ("ema", *averages.KEPT)}}
        log.info("averages are left behind: optim.ema is off here")
    former = renames.of_checkpoint(bundle.section.renames, manifest, bundle.base_hashes) if manifest else {}
    tensors = _without_misfits(renames.mapped(tensors, former), view, bundle)
    _check_names(spec, set(tensors["weights"]), bundle)
    trained = {former.get(name, name) for name in manifest["state"]["trained"]} if manifest else set(tensors["weights"])
    rows = start.migration_table(tensors, trained, view.config, bundle)
    lacking = [] if manifest else [name for name in saved.left_out(folder) if name in bundle.component_names]
    notes = [f"{folder} leaves out what its run trained of {', '.join(lacking)}"] if lacking else []
    if manifest and bundle.frozen_xxh3(trained, {now: then for then, now in former.items()}) != manifest["frozen_xxh3"]:
        notes.append(f"base weights: frozen there {manifest['base']}, here {bundle.family.base(bundle.section)}")
    if ranks.first:
        log.info(f"starting from {folder}")
        for line in [*changes.freezing_changes(manifest, bundle, view.config), *changes.model_changes(folder, bundle)]:
            log.info(f"  {line}")
        files.write_json(run / changes.LINEAGE, _lineage(spec, folder, manifest))
    start.accept(rows, notes, run=run, origin=spec, ranks=ranks, allow_inexact=allow_inexact)
    kept = {name for row in rows if row.group == "weights" and row.verdict == "keep" for name in row.names}
    fitting: Tensors = {
        group: {name: value for name, value in part.items() if (name.rpartition(".")[0] if group == "moments" else name) in kept}
        for group, part in tensors.items()
    }
    state.restore(State(bundle.model).metadata() | {"trained": sorted(kept)}, fitting, mapped=ranks.device.type != "cpu")


def _without_misfits(tensors: Tensors, view: StageView, bundle: ModelBundle) -> Tensors:
    """Return the tensors without the moments of another optimizer than that of the stage `view`, which it logs."""
    trained = optim.select(bundle.components(), view.config.trainable, bundle.family.never_trained)
    misfits = kept.misfits(tensors["moments"], kept.kinds(trained, view.config.optim, bundle.blocks))
    if misfits:
        log.info(f"moments of {len(misfits)} parameters are left behind: optim.name is {view.config.optim.name} here")
    return {**tensors, "moments": {name: value for name, value in tensors["moments"].items() if name.rpartition(".")[0] not in misfits}}


def _lineage(spec: str, folder: Path, manifest: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the record of where a run begins, with that of the run it began from, and hashes of what it read there."""
    parent = checkpoint.run_of(folder)
    identity = parent / "identity"
    return {
        "kind": "from",
        "from": spec,
        "folder": str(folder.resolve()),
        "parent": identity.read_text(encoding="utf-8").strip() if identity.is_file() else None,
        "step": manifest["state"]["step"] if manifest else None,
        "manifest_xxh3": manifest["xxh3"] if manifest else None,
        "passport": weight_files.passport_digest(folder),
        "before": forgetting.read_object(parent / changes.LINEAGE),
    }


def _check_names(spec: str, given: set[str], bundle: ModelBundle) -> None:
    """Raise PlaitError where none of the tensors' names `given` is one of the model: such a start would be one from nothing."""
    names = {name for name, _ in bundle.model.named_parameters()}
    if not given & names:
        adapters = all(".lora_" in name for name in given)
        theirs, ours = (", ".join(sorted(some)[:3]) + (", ..." if len(some) > 3 else "") for some in (given, names))
        raise PlaitError(
            f"from: none of the {len(given)} tensors of {spec} has a name of this model: there {theirs or 'none'}; here {ours}. "
            f"{'They are adapters: set `adapters:` as that run does' if adapters else 'Is family, or `model:`, another?'}"
        )


def read_from(spec: str) -> tuple[Tensors, dict[str, Any] | None, Path]:
    """Read a checkpoint or weights; return (tensors {group: {name: tensor}}, the manifest or None for bare weights, their folder).

    `spec`: a checkpoint (RUN, RUN@STEP, RUN/STAGE@best, ...) or a folder of safetensors; nothing is downloaded. Raises PlaitError for
    anything else, and for a damaged checkpoint.
    """
    path, _ = checkpoint_specs.split(spec)
    if path.exists() and not checkpoint.is_step(path) and not checkpoint.published(checkpoint.run_of(path)):
        return _read_folder(path)
    located = checkpoint_specs.locate(spec, checkpoint_specs.START)
    return {group: located.tensors(group) for group in GROUPS}, located.manifest, located.folder


def _read_folder(folder: Path) -> tuple[Tensors, dict[str, Any] | None, Path]:
    """Read a folder outside of a run: a checkpoint with its manifest, or bare weights."""
    if (folder / "manifest.json").is_file():
        if faults := integrity.verify(folder):
            raise PlaitError(faults[0])
        located = checkpoint.read(folder)
        return {group: located.tensors(group) for group in GROUPS}, located.manifest, folder
    return {"weights": weight_files.read(folder), "ema": {}, "moments": {}}, None, folder
