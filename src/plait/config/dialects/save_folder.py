"""Translate the Molmo guide's `--save_folder=gs://bucket/run`: a run on this machine's disk, whose checkpoints are mirrored there."""

from plait.config.dialects.builder import TranslationBuilder


def mirrored(builder: TranslationBuilder) -> None:
    """Translate an address in `save_folder` to `checkpoint.mirror`, and `run` to runs/NAME, its last part."""
    address = str(builder.get("save_folder") or "")
    if "://" in address and not address.startswith("file://"):
        folder = f"runs/{address.rstrip('/').rpartition('/')[2]}"
        builder.assign("run", folder, "save_folder")
        builder.translate("checkpoint.mirror", address, "save_folder", note=f"a copy of each checkpoint; the run itself is in {folder}")
