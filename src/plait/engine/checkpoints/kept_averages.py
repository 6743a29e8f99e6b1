"""Keep the post-hoc averages of a checkpoint that is deleted, from which any other length is still made."""

import shutil
from pathlib import Path

from plait import files
from plait.engine import averages
from plait.engine.checkpoints import checkpoint


def keep(folder: Path) -> None:
    """Keep the post-hoc averages of a checkpoint that is about to be deleted, as RUN/averages/step-N with a manifest of their own."""
    located = checkpoint.read(folder)
    listed = located.manifest["files"].items()
    kept = {name: entry for name, entry in listed if name.split("/")[0].removesuffix(".safetensors") in averages.KEPT}
    if not kept:
        return
    target = folder.parent.parent / checkpoint.AVERAGES / folder.name
    unfinished = target.with_name(f"{checkpoint.UNFINISHED}{target.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    for name in kept:
        (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            (unfinished / name).hardlink_to(folder / name)
        except OSError:  # a file system without links
            shutil.copyfile(folder / name, unfinished / name)
    manifest = {"format": checkpoint.FORMAT, "kind": "averages", "state": {"step": located.step}, "files": kept}
    files.write_json(unfinished / "manifest.json", {**manifest, "xxh3": checkpoint.manifest_hash(manifest)})
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)
