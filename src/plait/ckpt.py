"""`plait ckpt`: what checkpoints hold, and whether they are intact."""

from collections import Counter
from pathlib import Path

from safetensors import safe_open

from plait.engine import checkpoint
from plait.errors import PlaitError


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
    with safe_open(found.folder / "weights.safetensors", "pt") as weights:
        for name in weights.keys():  # noqa: SIM118  safe_open is no mapping
            size = 1
            for length in weights.get_slice(name).get_shape():
                size *= length
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
