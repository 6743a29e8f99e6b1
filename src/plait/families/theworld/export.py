"""`plait export --to hf` and its inverse: Gemma 3 alone, as `Gemma3ForConditionalGeneration.from_pretrained` loads it.

The world encoder and the projector are part of no published class. The projector's weights are written beside Gemma's, under plait's names,
so that `from:` can load them again. `directory` is the run's folder `assets`, which holds a tiny model's tokenizer.
"""

import copy
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerFast
from transformers.utils.hub import cached_file

from plait.engine.checkpoints.folders import new_folder
from plait.families.theworld import chat, towers
from plait.families.theworld.config import TINY, Config
from plait.families.theworld.model import TheWorld

PROJECTOR = "projector.safetensors"
_TOKENIZER_FILES = (
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
# Prefixes of names in Gemma 3's files, and of the same parameters here; the first row that fits counts.
_NAMES = (
    ("language_model.lm_head.", "gemma.lm_head."),
    ("language_model.model.", "gemma.model.language_model."),
    ("vision_tower.", "gemma.model.vision_tower."),
    ("multi_modal_projector.", "gemma.model.multi_modal_projector."),
    ("model.", "gemma.model."),
    ("lm_head.", "gemma.lm_head."),
)


def write_hf(model: TheWorld, config: Config, directory: Path, out: Path) -> list[str]:
    """Write Gemma, its tokenizer and processor files, and the projector to the new folder `out`; return lines on how to load it."""
    with new_folder(out) as folder:
        model.gemma.save_pretrained(folder)
        _write_tokenizer(config, directory, folder)
        _write_generation(model, chat.stops(towers.load_tokenizer(config, directory)), folder)
        if model.projector is None:
            return []
        weights = {f"projector.{name}": value.detach().contiguous() for name, value in model.projector.state_dict().items()}
        save_file(weights, folder / PROJECTOR)
        return [f"transformers loads Gemma 3 without the world; the projector is in {PROJECTOR}, for `from:`"]


exports: dict[str, Callable[[TheWorld, Config, Path, Path], list[str]]] = {"hf": write_hf}
"""Writers by the name after `--to`: (model, `model:` section, the run's folder `assets`, new folder) -> lines to print."""


def imported(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename weights of a Gemma 3 directory or an export to this model's parameter names; other names stay as they are."""
    known = {name for name, _ in model.named_parameters()}
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        candidates = (new + name.removeprefix(old) for old, new in _NAMES if name.startswith(old))
        target = next((candidate for candidate in candidates if candidate in known), name)
        if target != "gemma.lm_head.weight" or target in known:  # of a tied head
            renamed[target] = value
    return renamed


def _write_generation(model: TheWorld, stops: frozenset[int], out: Path) -> None:
    """Write generation_config.json: Gemma's own with plait's stops added, so that answers end where plait ends them."""
    own: GenerationConfig = copy.deepcopy(model.gemma.generation_config)
    ends = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    own.eos_token_id = sorted(stops.union(end for end in ends if end is not None))
    own.save_pretrained(out)


def _write_tokenizer(config: Config, directory: Path, out: Path) -> None:
    """Copy the base's own tokenizer files; for a tiny base, write the tokenizer trained for the run."""
    if config.base == TINY:
        wrapped = PreTrainedTokenizerFast(
            tokenizer_object=towers.load_tokenizer(config, directory), bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
        )
        wrapped.save_pretrained(out)
        return
    for name in _TOKENIZER_FILES:
        path = Path(config.base) / name
        if not Path(config.base).is_dir():
            fetched = cached_file(config.base, name, revision=config.base_revision, _raise_exceptions_for_missing_entries=False)
            path = Path(fetched) if fetched else path
        if path.is_file():
            shutil.copyfile(path, out / name)
