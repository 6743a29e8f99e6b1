"""Export the whole model, its world included, as a model of transformers whose class plait has (`plait export --to theworld`)."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from torch import nn
from transformers.utils import logging

from plait.engine.checkpoints.folders import new_folder
from plait.errors import PlaitError
from plait.families.theworld.config import Config
from plait.families.theworld.export import gemma
from plait.families.theworld.hf import encoder_weights, modeling, processing
from plait.families.theworld.hf.modeling import TheWorldForConditionalGeneration
from plait.families.theworld.hf.processing import TheWorldProcessor
from plait.families.theworld.model import TheWorld
from plait.families.theworld.pretrained import hub


def write_whole(model: TheWorld, config: Config, assets: Path, out: Path, *, encoder: bool = False) -> list[str]:
    """Write the whole model to the new folder `out`, for plait.theworld and plait.hf; return lines on how to load it.

    The world encoder is named by its pin, or held in the files: with `encoder`, or where it is nowhere else. Arguments as of `write_hf`.
    Raises PlaitError for an encoder that cannot be loaded, to compare it, and where there is none to hold.
    """
    check_encoder(config, encoder, "--to theworld-with-encoder", "export it --to theworld")
    joined = as_transformers(model, config, assets)  # first, as it names a damaged file
    with new_folder(out) as folder:
        lines = save(*joined, folder, encoder=encoder)
        gemma.copy_files(config, folder, [name for name in gemma.PROCESSOR_FILES if "token" in name])
    return lines


def check_encoder(config: Config, encoder: bool, asked: str, cure: str) -> None:
    """Raise PlaitError where an encoder's weights are asked for, as `asked`, of a model that has no world encoder."""
    if encoder and config.world is None:
        raise PlaitError(f"{asked}: this model has no world encoder (model.world is off): {cure}")


def as_transformers(model: TheWorld, config: Config, assets: Path) -> tuple[TheWorldForConditionalGeneration, TheWorldProcessor]:
    """Return `model`, itself and not a copy, and its processor as transformers has them. Arguments as of `write_hf`."""
    processor = processing.processor(config, assets, gemma.tokenizer(config, assets))
    wrapped = modeling.wrapped(model, config)
    wrapped.generation_config = gemma.generation(model, processor.inputs.chat.stops)
    return wrapped, processor


def save(whole: TheWorldForConditionalGeneration, processor: TheWorldProcessor, folder: Path, *, encoder: bool = False) -> list[str]:
    """Write a model of transformers' kind and its processor to the empty `folder`; return lines on how to load it.

    Gemma's weights are converted, in place, to the dtype of the base. Raises PlaitError as `write_whole` does.
    """
    lines, section = gemma.rounding(whole.model), whole.config.plait
    nn.Module.to(whole.gemma, dtype=gemma.base_dtype(whole.model))
    if whole.world is not None and section.world is not None and not encoder:
        pin = whole.config.encoder_pin = encoder_weights.pin_of(whole.world, section, whole.config.encoder_pin)
        if pin is not None:
            at = f" at {pin['revision']}" if pin["revision"] else ""
            lines.append(f"the world encoder is {pin['source']}{at}, by its hash; theworld-with-encoder holds its weights too")
        else:
            why = "is random" if section.world.tiny is not None else f"is not that of {section.world.source}: it was trained"
            lines.append(f"the world encoder {why}, so that its weights are in the export")
    if section.world is not None and section.world.tiny is None and (encoder or whole.config.encoder_pin is None):
        whole.config.encoder_origin = whole.config.encoder_origin or hub.pin(section.world.source, section.world.revision)
    with _without_progress_bar():
        whole.save_pretrained(folder, encoder=encoder)
    processor.save_pretrained(folder)
    return [*lines, "plait.theworld.TheWorld.from_pretrained(DIR) loads it, and transformers' Auto classes do after `import plait.hf`"]


@contextlib.contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Have transformers show none, as the other layouts do."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def write_with_encoder(model: TheWorld, config: Config, assets: Path, out: Path) -> list[str]:
    """Write the whole model to the new folder `out`, its world encoder's weights too; return lines on how to load it."""
    return write_whole(model, config, assets, out, encoder=True)
