"""Export Gemma 3 for transformers' AutoModelForImageTextToText, AutoProcessor and pipeline (`plait export --to hf`), and import it.

The world encoder and the projector are part of no published class. The projector's weights are written to a file next to Gemma's, with
plait's names, so that `from:` can load them. `assets` is the folder of the model's files, which holds a tiny model's tokenizer.
"""

import copy
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Gemma3Processor, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.utils.hub import cached_file

from plait.engine.checkpoints.folders import new_folder
from plait.families.theworld import chat, towers
from plait.families.theworld.config import TINY, Config
from plait.families.theworld.model import TheWorld
from plait.families.theworld.pretrained.hub import MAIN
from plait.nn import trust

PROJECTOR = "projector.safetensors"
SHARD = "5GB"
"""The size of a file of weights at most, as the base is published."""
PROCESSOR_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
)
# Prefixes of names in Gemma 3's files, and of the same parameters here; the first row that fits counts. A whole export has plait's names.
_NAMES = (
    ("language_model.lm_head.", "gemma.lm_head."),
    ("language_model.model.", "gemma.model.language_model."),
    ("vision_tower.vision_model.", "gemma.model.vision_tower."),
    ("vision_tower.", "gemma.model.vision_tower."),
    ("multi_modal_projector.", "gemma.model.multi_modal_projector."),
    ("model.vision_tower.vision_model.", "gemma.model.vision_tower."),
    ("model.", "gemma.model."),
    ("lm_head.", "gemma.lm_head."),
)

_PUBLISHED = {
    "lm_head.": "language_model.lm_head.",
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
}
"""Prefixes of Gemma's parameters in transformers, and of the same in the published files."""


def write_hf(model: TheWorld, config: Config, assets: Path, out: Path) -> list[str]:
    """Write Gemma, its tokenizer and processor files, and the projector to the new folder `out`; return lines on how to load it.

    Trained weights are float32 in a run; Gemma's are converted, in place, to the dtype of the base model.
    """
    dtype, lines = base_dtype(model), rounding(model)
    stops = chat.stops(towers.load_tokenizer(config, assets))  # first, as it names a damaged file
    with new_folder(out) as folder:
        nn.Module.to(model.gemma, dtype=dtype)
        settings = copy.deepcopy(model.gemma.config)
        settings.architectures, settings.dtype = [type(model.gemma).__name__], dtype
        settings.save_pretrained(folder)
        save_torch_state_dict(_published(model.gemma), folder, max_shard_size=SHARD, metadata={"format": "pt"})
        _write_processor(config, assets, folder)
        generation(model, stops).save_pretrained(folder)
        if model.projector is None:
            return lines
        weights = {f"projector.{name}": value.detach().contiguous() for name, value in model.projector.state_dict().items()}
        save_file(weights, folder / PROJECTOR)
        return [*lines, f"transformers loads Gemma 3 without the world; the projector is in {PROJECTOR}, for `from:`"]


def imported(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return weights of a Gemma 3 directory or an export, {name: tensor}, under this model's parameter names; other names are kept."""
    known = {name for name, _ in model.named_parameters()}
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        candidates = (new + name.removeprefix(old) for old, new in _NAMES if name.startswith(old))
        target = next((candidate for candidate in candidates if candidate in known), name)
        if target != "gemma.lm_head.weight" or target in known:  # of a tied head
            renamed[target] = value
    return renamed


def _published(gemma: PreTrainedModel) -> dict[str, Tensor]:
    """Return Gemma's weights under their published names, which other software reads; a tied head is its embedding, and left out.

    transformers' own writer restores the names of the files that a model was loaded from; one that was built would have others.
    """
    weights = {}
    for name, value in gemma.state_dict().items():
        ours = next((prefix for prefix in _PUBLISHED if name.startswith(prefix)), "")
        if ours != "lm_head." or not gemma.config.tie_word_embeddings:
            weights[_PUBLISHED.get(ours, "") + name.removeprefix(ours)] = value
    return weights


def generation(model: TheWorld, stops: frozenset[int]) -> GenerationConfig:
    """Return Gemma's own settings of `generate` with plait's stops added, so that answers end where plait ends them."""
    own: GenerationConfig = copy.deepcopy(model.gemma.generation_config)
    ends = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    own.eos_token_id = sorted(stops.union(end for end in ends if end is not None))
    return own


def rounding(model: TheWorld) -> list[str]:
    """Return the line that Gemma's weights are rounded to the dtype of the base, if any are."""
    dtype = base_dtype(model)
    rounded = any(value.dtype != dtype for value in model.gemma.parameters())
    return [f"weights that were trained in float32 are rounded to {dtype}, which the base has".replace("torch.", "")] if rounded else []


def base_dtype(model: TheWorld) -> torch.dtype:
    """Return the dtype that the base's weights were saved in; float32 of a tiny base."""
    named = model.gemma.config.dtype
    return named if isinstance(named, torch.dtype) else torch.float32


def _write_processor(config: Config, assets: Path, out: Path) -> None:
    """Copy the base's own tokenizer, processor and chat template; of a tiny base, write those that fit it."""
    if config.base == TINY:
        words = tokenizer(config, assets)
        side, tokens = config.tiny.image_size, config.tiny.image_tokens
        pictures = Gemma3ImageProcessorPil(size={"height": side, "width": side})
        Gemma3Processor(pictures, words, chat_template=words.chat_template, image_seq_length=tokens).save_pretrained(out)
        return
    copy_files(config, out, PROCESSOR_FILES)


def tokenizer(config: Config, assets: Path) -> Any:
    """Return transformers' tokenizer of the base, or of a tiny model: that of tokenizer.json, and not one built of its words."""
    if config.base == TINY:
        return PreTrainedTokenizerFast.from_pretrained(assets / towers.TOKENIZER, **trust.CONFIG)
    return PreTrainedTokenizerFast.from_pretrained(config.base, revision=config.base_revision or MAIN, **trust.CONFIG)


def copy_files(config: Config, out: Path, names: Sequence[str]) -> None:
    """Copy those of the files `names` that the base has; a tiny one has none."""
    for name in names if config.base != TINY else ():
        path = Path(config.base) / name
        if not Path(config.base).is_dir():
            fetched = cached_file(config.base, name, revision=config.base_revision, _raise_exceptions_for_missing_entries=False)
            path = Path(fetched) if fetched else path
        if path.is_file():
            shutil.copyfile(path, out / name)
