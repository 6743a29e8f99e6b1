"""What `plait ckpt` does: list, verify, consolidate and compare checkpoints, and write post-hoc averages of weights.

A run is a folder with one folder per stage (a part of the training with settings of its own), and a step folder in it per checkpoint. A
component is a part of the model, such as the projector, that trains or stays frozen as a whole. `spec` names checkpoints: RUN,
RUN/STAGE, RUN@STEP or RUN/STAGE@best; where one is needed and several are named, the newest is taken.
"""

import logging
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from plait import files
from plait.assembly import checkpoint_specs
from plait.assembly import saved as saved_models
from plait.assembly.model import build_model
from plait.assembly.run_configuration import open_of_checkpoint
from plait.assembly.saved import SavedModel
from plait.commands.actions.passport import write
from plait.config.resolved import difference
from plait.engine.checkpoints import checkpoint, integrity, post_hoc_ema, stored_files
from plait.engine.checkpoints.checkpoint import Checkpoint
from plait.engine.checkpoints.folders import new_folder
from plait.engine.monitoring.json_output import show_json
from plait.engine.parallel.distributed import Ranks
from plait.errors import PlaitError, command
from plait.training import start

log = logging.getLogger(__name__)

_FILE = "5GB"
"""The largest file of consolidated weights, as the Hub recommends."""


def folders(spec: str | Path) -> list[Path]:
    """Return the step folders that `spec` names (RUN, RUN/STAGE: all of them; RUN@STEP: one), oldest first, without verifying them.

    Raises PlaitError if there is none.
    """
    path, mark = checkpoint_specs.split(str(spec))
    if not path.exists():
        checkpoint_specs.locate(str(spec))  # says what is not there, and what is
    if mark:
        return [checkpoint_specs.marked(path, mark)]
    if checkpoint.is_step(path):
        return [path]
    steps = [folder for folder in checkpoint.published(checkpoint.run_of(path)) if path in folder.parents]
    if not steps:
        raise PlaitError(f"{path} holds no checkpoint; checkpoints are RUN/stage-N-NAME/step-NNNNNNNN")
    return steps[::-1]


def inspect(spec: str | Path, *, as_json: bool = False) -> None:
    """Print the content of the checkpoint that `spec` names: step, files, numbers of trained parameters, base weights, data.

    `as_json`: as one JSON object. Raises PlaitError if there is none.
    """
    newest = _read(folders(spec)[-1])
    manifest = newest.manifest
    state = manifest["state"]
    counts: Counter[str] = Counter()
    for name, size in _sizes(newest).items():
        counts[".".join(name.split(".")[:2])] += size
    if as_json:
        told = {name: manifest[name] for name in ("state", "stage", "files", "base", "frozen_xxh3", "data")}
        show_json({"checkpoint": str(newest.folder), **told, "parameters": counts})
        return
    complete = ", complete" if state["stage_done"] else ""
    log.info(f"{newest.folder}: step {state['step']}, stage {state['stage']} ({manifest['stage']}){complete}")
    for name, file in manifest["files"].items():
        log.info(f"  {name:<24} {file['size']:>14,} bytes  xxh3 {file['xxh3']}")
    log.info(f"  trained now or ever: {sum(counts.values()):,} parameters")
    for name, count in counts.items():
        log.info(f"    {name:<40} {count:>14,}")
    for part in manifest["base"]:
        log.info(f"  base {part['part']}: {part['name']}" + (f" @ {part['revision']}" if part["revision"] else ""))
    log.info(f"  frozen weights xxh3 {manifest['frozen_xxh3']}")
    for name, fingerprint in manifest["data"].items():
        log.info(f"  data {name}: {fingerprint}")


def _read(folder: Path) -> Checkpoint:
    """Read the manifest in `folder`. Raises PlaitError where it is damaged, with where to look on."""
    try:
        return checkpoint.read(folder)
    except PlaitError as error:
        raise PlaitError(f"{error}; {_look(folder)}") from error


def _sizes(saved: Checkpoint) -> dict[str, int]:
    """Return the number of elements of each weight by name. Raises PlaitError where a file's header cannot be read."""
    try:
        return stored_files.sizes(saved.folder, "weights", list(saved.manifest["files"]))
    except (OSError, SafetensorError) as error:
        raise PlaitError(f"the weights of {saved.folder} cannot be read: {error}; {_look(saved.folder)}") from error


def _look(folder: Path) -> str:
    return f"`{command('ckpt', 'verify', checkpoint.run_of(folder))}` says which checkpoints are intact"


def verify(spec: str | Path, *, as_json: bool = False) -> None:
    """Hash every file of the checkpoints that `spec` names, and print "intact" or "DAMAGED", with what is wrong, for each checkpoint.

    `as_json`: as one JSON object, too. Raises Damaged, a PlaitError with exit code 1, if any is damaged or
    incomplete; its message says what to do. Raises PlaitError if there is none.
    """
    named = folders(spec)
    damaged: dict[Path, str] = {}
    for folder in named:
        faults = integrity.verify(folder) or _lacks(folder)
        damaged |= {folder: faults[0]} if faults else {}
        log.info("\n        ".join([f"{'DAMAGED' if faults else 'intact '} {folder}", *faults]))
    if as_json:
        show_json({"checkpoints": [str(folder) for folder in named], "damaged": {str(folder): fault for folder, fault in damaged.items()}})
    if not damaged:
        return
    run, newest_first = checkpoint.run_of(named[0]), sorted(damaged, key=named.index, reverse=True)
    if len(damaged) == len(checkpoint.published(run)):
        raise Damaged(integrity.none_intact(run, newest_first, damaged[newest_first[0]]))
    intact = [folder for folder in named if folder not in damaged]
    whole = intact and len(named) == len(checkpoint.published(run))
    goes_on, look = command("train", run), command("ckpt", "verify", run)
    advice = f"`{goes_on}` goes on from {intact[-1]}" if whole else f"`{look}` says what is intact"
    raise Damaged(f"{len(damaged)} of {len(named)} damaged: {damaged[newest_first[0]]}; {advice}")


def _lacks(folder: Path) -> list[str]:
    """Return a line where the manifest in `folder` lacks what a start needs of it, else nothing."""
    try:
        start.check_complete(checkpoint.read(folder))
    except PlaitError as error:
        return [str(error)]
    return []


def consolidate(spec: str, out: Path, averaged: bool) -> None:
    """Write the full weights of a checkpoint into the new folder `out`: model.safetensors (or several and an index), and weights.json.

    `averaged`: use the EMA weights if there are any. weights.json holds hashes and origin, and a passport is beside it. A new run can begin
    with the folder's weights (`from:`), but none can continue from it. Raises PlaitError if `out` exists or `spec` names no checkpoint.
    """
    saved = checkpoint_specs.locate(spec)
    if out.exists():
        raise PlaitError(f"{out} exists already: give a new folder, or remove it")
    weights = saved.tensors("weights")
    averages = saved.tensors("ema") if averaged else {}
    with new_folder(out) as folder:
        save_torch_state_dict({**weights, **averages}, folder, max_shard_size=_FILE)
        listed = {path.name: {"size": path.stat().st_size, "xxh3": files.xxh3(path)} for path in sorted(folder.iterdir())}
        metadata = {"kind": "weights", "of": str(saved.folder), "step": saved.step, "averaged": bool(averages), "files": listed}
        files.write_json(folder / "weights.json", metadata | {name: saved.manifest[name] for name in ("base", "frozen_xxh3", "versions")})
        if (resolved := saved_models.run_settings(saved.folder)) is not None:
            saved_models.write_model_settings(folder, saved_models.settings(resolved.config))
            whose = SavedModel(saved, resolved)
            write.of_folder(whose, folder, kind="weights", layout=None, weights=f"{'averaged' if averages else 'last'} weights")
    log.info(f"{saved.folder}: {len(weights)} {'averaged' if averages else 'last'} weights, whole, in {out}")


def diff(a: str, b: str, *, as_json: bool = False) -> None:
    """Print how far the weights of each component moved from checkpoint `a` to `b`, and which state, data and settings differ.

    Printed are |b - a| / |a| over all values of a component, and the largest change of one value. For a weight that only one of them has
    saved, the other's is that of the base model, which is built for it. `as_json`: as one JSON object. Raises PlaitError if `a` or `b`
    names no intact checkpoint.
    """
    first, second = checkpoint_specs.locate(a), checkpoint_specs.locate(b)
    states = {name: [one.manifest["state"][name] for one in (first, second)] for name in ("step", "stage", "stage_done")}
    changed = {name: pair for name, pair in states.items() if pair[0] != pair[1]}
    moved, frozen = _moved(first, second)
    differences = _differences(first, second)
    if as_json:
        folders_of = {"a": str(first.folder), "b": str(second.folder)}
        components = [row._asdict() for row in moved]
        show_json({**folders_of, "state": changed, "components": components, "frozen": frozen, "differences": differences})
        return
    log.info(f"A {first.folder}\nB {second.folder}")
    for name, (before, after) in changed.items():
        log.info(f"  {name:<12} {before} -> {after}")
    log.info(f"  {'component':<16} {'values':>14} {'moved |B-A|/|A|':>16} {'largest':>10}")
    for row in moved:
        log.info(f"  {row.component:<16} {row.values:>14,} {row.moved:>16.3g} {row.largest:>10.3g}{'  (averages)' if row.averages else ''}")
    for component in frozen:
        log.info(f"  {component:<16} {'':>14} {'frozen in both':>16}")
    for line in differences or ["config and data: the same"]:
        log.info(f"  {line}")


class Damaged(PlaitError):
    """Raised, after all is printed, when checkpoints that were to be verified are damaged. Exit code 1."""

    exit_code = 1


class Moved(NamedTuple):
    """How far a component moved: |b - a| / |a| over its `values`, and the largest change of one. `averages`: its averaged weights."""

    component: str
    values: int
    moved: float
    largest: float
    averages: bool


def _moved(first: Checkpoint, second: Checkpoint) -> tuple[list[Moved], list[str]]:
    """Return how far each component moved from the first checkpoint to the second, and the names of those that neither has trained."""
    manifests = [first.manifest["components"], second.manifest["components"]]
    component_of = {name: component for listed in manifests for component, row in listed.items() for name in row["weights"]}
    components = list(dict.fromkeys(name for listed in manifests for name in listed))
    moved = []
    for group in ("weights", "ema"):
        in_a, in_b = _completed(first, second, group)
        for component in components:
            names = [name for name in in_a if component_of[name] == component]
            if not names:
                continue
            relative, largest = distance([in_a[name] for name in names], [in_b[name] for name in names])
            moved.append(Moved(component, sum(in_a[name].numel() for name in names), relative, largest, group == "ema"))
    return moved, [component for component in components if component not in component_of.values()]


def distance(before: list[Tensor], after: list[Tensor]) -> tuple[float, float]:
    """Return (|after - before| / |before| over all tensors together, the largest change of one value), computed in float64."""
    changes = [(b.double() - a.double()) for a, b in zip(before, after, strict=True)]
    moved = sum(float(change.square().sum()) for change in changes) ** 0.5
    size = sum(float(value.double().square().sum()) for value in before) ** 0.5
    largest = max((float(change.abs().max()) for change in changes if change.numel()), default=0.0)
    return (moved / size if size else float(moved > 0)), largest


def _completed(first: Checkpoint, second: Checkpoint, group: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a group's tensors of both checkpoints under the same names. Weights that only one has saved are those of the base model."""
    in_a, in_b = first.tensors(group), second.tensors(group)
    if group != "weights":
        common = [name for name in in_a if name in in_b]
        return {name: in_a[name] for name in common}, {name: in_b[name] for name in common}
    for short, long, saved in ((in_a, in_b, first), (in_b, in_a, second)):
        if missing := long.keys() - short.keys():
            short.update(_base(saved, missing))
    common = sorted(name for name in in_a if name in in_b and in_a[name].shape == in_b[name].shape)
    return {name: in_a[name] for name in common}, {name: in_b[name] for name in common}


def _base(saved: Checkpoint, names: set[str]) -> dict[str, Tensor]:
    """Return the named weights of the base model, before any training, in the run of a checkpoint."""
    run = checkpoint.run_of(saved.folder)
    bundle = build_model(open_of_checkpoint(run, saved.folder).config, run, Ranks(0, 1, torch.device("cpu")))
    return {name: value.detach() for name, value in bundle.model.named_parameters() if name in names}


def _differences(first: Checkpoint, second: Checkpoint) -> list[str]:
    """Return a line for each source whose content differs, and for each setting of the two stages that differs."""
    old_data, new_data = first.manifest["data"], second.manifest["data"]
    changed_data = [name for name in {**old_data, **new_data} if old_data.get(name) != new_data.get(name)]
    lines = [f"data {name}: {old_data.get(name)} -> {new_data.get(name)}" for name in changed_data]
    resolved = [(open_of_checkpoint(checkpoint.run_of(saved.folder), saved.folder), saved) for saved in (first, second)]
    stages = [config.stages[saved.manifest["state"]["stage"] - 1].config for config, saved in resolved]
    changed = [item for item in difference(*stages) if not item[0].startswith("stages") and item[0] != "run"]
    return lines + [f"config {key}: {old} -> {new}" for key, old, new in changed]


def ema(spec: str | Path, length: float, out: Path | None) -> None:
    """Write weights averaged over the last part of a run (post-hoc EMA) as safetensors, which a new run can begin with (`from:`).

    `length`: width of the average as a share of the run up to `spec`'s newest checkpoint, such as 0.07. `out`: folder; None:
    RUN/averages/length-LENGTH-step-STEP. It may exist: its weights.safetensors is overwritten, other files stay. Raises PlaitError if there
    is no checkpoint, or the run kept no averages to make this one from (`optim.ema.post_hoc`).
    """
    newest = _read(folders(spec)[-1])
    run = checkpoint.run_of(newest.folder)
    made = post_hoc_ema.of_length(run, length, newest.step)
    folder = out or run / checkpoint.AVERAGES / f"length-{length:g}-step-{newest.step:08d}"
    files.write_whole(
        folder / "weights.safetensors", save(made.tensors, metadata={"format": "pt", "plait": f"length {length:g} at step {made.step}"})
    )
    summary = f"{folder}: average of length {length:g} (share of the run) at step {made.step}, {len(made.tensors)} weights"
    log.info(f"{summary}\n  from averages at {made.saves} steps; their profile is {made.misfit:.1%} off the wanted one")
    measure = command("eval", run, "--bench=loss", f"--ema-length={length:g}")
    log.info(f"  {measure} measures it; from: {folder} begins a run with it")
