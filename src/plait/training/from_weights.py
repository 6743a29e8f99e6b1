"""The start of a run from the weights that `from:` names: another run, a folder of safetensors, or a Hub repository.

A view is the configuration of one stage (part of a run); a bundle, the model with its family (kind of model); a group, a kind of tensor.
"""

import logging
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
from plait.engine import power_ema
from plait.engine.checkpoints import checkpoint
from plait.engine.parallel.distributed import Ranks
from plait.engine.state import GROUPS, State
from plait.errors import PlaitError
from plait.families import registry
from plait.training import changes, start

log = logging.getLogger(__name__)

_FORMS = f"from: {checkpoint_specs.FORMS}, a folder of safetensors, or a Hub repository as owner/name"
Tensors = dict[str, dict[str, Tensor]]


def check_named(spec: str) -> None:
    """Raise PlaitError where `spec`, the setting `from:`, is neither a path here nor named as a Hub repository; downloads nothing."""
    path, _ = checkpoint_specs.split(spec)
    if not path.exists() and not checkpoint_specs.may_be_hub(str(path)):
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
    rows = start.migration_table(tensors, trained, view.config, bundle)
    notes = []
    if manifest and bundle.frozen_xxh3(trained) != manifest["frozen_xxh3"]:
        notes.append(f"base weights: frozen there {manifest['base']}, here {bundle.family.base(bundle.section)}")
    if ranks.first:
        log.info(f"starting from {folder}")
        for line in changes.freezing_changes(manifest, bundle, view.config):
            log.info(f"  {line}")
        lineage = {"kind": "from", "from": spec, "folder": str(folder), "step": manifest["state"]["step"] if manifest else None}
        files.write_json(run / changes.LINEAGE, lineage)
    start.accept(rows, notes, run=run, origin=spec, ranks=ranks, allow_inexact=allow_inexact)
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
    if not path.exists() and not (path.parent / "config.yaml").is_file() and checkpoint_specs.may_be_hub(str(path)):
        return _read_folder(_download(str(path), mark or None))
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
