"""`plait ckpt`: what checkpoints hold, and whether they are intact."""

import tempfile
from collections import Counter
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save
from torch import Tensor

from plait import files
from plait.assembly import checkpoint_specs
from plait.assembly.configuration import open_run_config
from plait.assembly.model import build_model
from plait.config.resolved import difference
from plait.engine.checkpoints import checkpoint, post_hoc_ema, sharded_files
from plait.engine.checkpoints.checkpoint import Checkpoint
from plait.engine.parallel.distributed import Ranks
from plait.errors import PlaitError

_FILE = "5GB"
"""The largest file that consolidated weights are written in: what the Hub likes."""


def folders(path: Path) -> list[Path]:
    """The step folders that `path` means, oldest first: itself, or those of a stage folder or run. Raises PlaitError for none."""
    if not path.exists():
        raise PlaitError(f"{path} does not exist; give a run, a stage folder or a step folder")
    found = (
        [path]
        if checkpoint.is_step(path)
        else [folder for folder in checkpoint.published(checkpoint.run_of(path)) if path in folder.parents]
    )
    if not found:
        raise PlaitError(f"{path} holds no checkpoint; checkpoints are RUN/stage-N-NAME/step-NNNNNNNN")
    return sorted(found)


def inspect(path: Path) -> None:
    """Print what the newest checkpoint under `path` holds: step, files, parameters by their first names, base weights, data."""
    found = checkpoint.read(folders(path)[-1])
    manifest = found.manifest
    state = manifest["state"]
    print(
        f"{found.folder}: step {state['step']}, stage {state['stage']} ({manifest['stage']}){', complete' if state['stage_done'] else ''}"
    )
    for name, facts in manifest["files"].items():
        print(f"  {name:<24} {facts['size']:>14,} bytes  xxh3 {facts['xxh3']}")
    counts: Counter[str] = Counter()
    for name, size in sharded_files.sizes(found.folder, "weights", list(manifest["files"])).items():
        counts[".".join(name.split(".")[:2])] += size
    print(f"  trained now or ever: {sum(counts.values()):,} parameters")
    for name, count in counts.items():
        print(f"    {name:<40} {count:>14,}")
    for part in manifest["base"]:
        print(f"  base {part['part']}: {part['name']}" + (f" @ {part['revision']}" if part["revision"] else ""))
    print(f"  frozen weights xxh3 {manifest['frozen_xxh3']}")
    for name, fingerprint in manifest["data"].items():
        print(f"  data {name}: {fingerprint}")


def verify(path: Path) -> None:
    """Check every file of every checkpoint under `path`; prints a line each. Raises PlaitError naming the damage when there is any."""
    faults = []
    for folder in folders(path):
        found = checkpoint.verify(folder)
        faults += found
        print(f"{'DAMAGED' if found else 'intact '} {folder}")
        print(*(f"        {fault}" for fault in found), sep="\n", end="\n" if found else "")
    if faults:
        raise PlaitError(f"{len(faults)} damaged: {faults[0]}; `plait train` goes on from the newest intact one")


def consolidate(spec: str, out: Path, averaged: bool) -> None:
    """Write the weights of a checkpoint, whole, into `out`: model.safetensors (or several and an index), and weights.json saying whose.

    The averaged weights where there are any. Weights alone: `from:` takes the folder, but no run continues from it.
    """
    found = checkpoint_specs.locate(spec)
    if out.exists():
        raise PlaitError(f"{out} exists already: give a new folder, or remove it")
    weights = found.tensors("weights")
    averages = found.tensors("ema") if averaged else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as beside:
        whole = Path(beside) / out.name
        whole.mkdir()
        save_torch_state_dict({**weights, **averages}, whole, max_shard_size=_FILE)
        listed = {path.name: {"size": path.stat().st_size, "xxh3": files.xxh3(path)} for path in sorted(whole.iterdir())}
        about = {"kind": "weights", "of": str(found.folder), "step": found.step, "averaged": bool(averages), "files": listed}
        files.write_json(whole / "weights.json", about | {name: found.manifest[name] for name in ("base", "frozen_xxh3", "versions")})
        whole.rename(out)
    print(f"{found.folder}: {len(weights)} {'averaged' if averages else 'last'} weights, whole, in {out}")


def diff(a: str, b: str) -> None:
    """Print how far the weights moved from checkpoint `a` to `b`, per component, and what differs in place, data and configuration.

    |b - a| / |a| over all values of a component, and the largest change of one value. A weight that only one of them has saved was
    still the base's in the other: the base is built for it.
    """
    one, other = checkpoint_specs.locate(a), checkpoint_specs.locate(b)
    print(f"A {one.folder}\nB {other.folder}")
    for name in ("step", "stage", "stage_done"):
        mine, theirs = one.manifest["state"][name], other.manifest["state"][name]
        print(f"  {name:<12} {mine} -> {theirs}") if mine != theirs else None
    every = [*dict.fromkeys([*one.manifest["components"], *other.manifest["components"]])]
    owner = {name: part for found in (one, other) for part, facts in found.manifest["components"].items() for name in facts["weights"]}
    print(f"  {'component':<16} {'values':>14} {'moved |B-A|/|A|':>16} {'largest':>10}")
    for group in ("weights", "ema"):
        mine, theirs = _completed(one, other, group)
        for part in every:
            names = [name for name in mine if owner[name] == part]
            if not names:
                continue
            relative, largest = distance([mine[name] for name in names], [theirs[name] for name in names])
            values = sum(mine[name].numel() for name in names)
            print(f"  {part:<16} {values:>14,} {relative:>16.3g} {largest:>10.3g}{'  (averages)' if group == 'ema' else ''}")
    for part in every:
        if part not in owner.values():
            print(f"  {part:<16} {'':>14} {'frozen in both':>16}")
    for line in _differences(one, other):
        print(f"  {line}")


def distance(before: list[Tensor], after: list[Tensor]) -> tuple[float, float]:
    """|after - before| / |before| over all tensors together, in float64, and the largest change of one value."""
    changes = [(b.double() - a.double()) for a, b in zip(before, after, strict=True)]
    moved = sum(float(change.square().sum()) for change in changes) ** 0.5
    size = sum(float(value.double().square().sum()) for value in before) ** 0.5
    return (moved / size if size else float(moved > 0)), max(
        (float(change.abs().max()) for change in changes if change.numel()), default=0.0
    )


def _completed(one: Checkpoint, other: Checkpoint, group: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The group's tensors of both under the same names: of weights, what only one has saved is taken from the base for the other."""
    mine, theirs = one.tensors(group), other.tensors(group)
    if group != "weights":
        common = [name for name in mine if name in theirs]
        return {name: mine[name] for name in common}, {name: theirs[name] for name in common}
    for short, long, found in ((mine, theirs, one), (theirs, mine, other)):
        if lacking := long.keys() - short.keys():
            short.update(_base(found, lacking))
    common = sorted(name for name in mine if name in theirs and mine[name].shape == theirs[name].shape)
    return {name: mine[name] for name in common}, {name: theirs[name] for name in common}


def _base(found: Checkpoint, names: set[str]) -> dict[str, Tensor]:
    """Those weights as they are before any training, for the run of `found`."""
    run = checkpoint.run_of(found.folder)
    bundle = build_model(open_run_config(run).config, run, Ranks(0, 1, torch.device("cpu")))
    return {name: value.detach() for name, value in bundle.model.named_parameters() if name in names}


def _differences(one: Checkpoint, other: Checkpoint) -> list[str]:
    """Data by content, and settings, a line each."""
    mine, theirs = one.manifest["data"], other.manifest["data"]
    lines = [f"data {name}: {mine.get(name)} -> {theirs.get(name)}" for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
    before, after = (open_run_config(checkpoint.run_of(found.folder)) for found in (one, other))
    stages = [resolved.stages[found.manifest["state"]["stage"] - 1].config for resolved, found in ((before, one), (after, other))]
    changed = [item for item in difference(*stages) if not item[0].startswith("stages") and item[0] != "run"]
    return lines + [f"config {key}: {old} -> {new}" for key, old, new in changed] or ["config and data: the same"]


def ema(path: Path, length: float, out: Path | None) -> None:
    """Write the average of relative `length` at the newest checkpoint under `path`, as one safetensors file that `from:` takes."""
    found = checkpoint.read(folders(path)[-1])
    run = checkpoint.run_of(found.folder)
    made = post_hoc_ema.of_length(run, length, found.step)
    folder = out or run / checkpoint.AVERAGES / f"length-{length:g}-step-{found.step:08d}"
    files.write_whole(
        folder / "weights.safetensors", save(made.tensors, metadata={"format": "pt", "plait": f"length {length:g} at step {made.step}"})
    )
    said = f"{folder}: average of length {length:g} (share of the run) at step {made.step}, {len(made.tensors)} weights"
    print(f"{said}\n  from averages at {made.moments} steps; their profile is {made.misfit:.1%} off the wanted one")
    print(f"  plait eval {run} --bench=loss --ema-length={length:g} measures it; from: {folder} begins a run with it")
