"""`plait export --to hf`: Gemma 3 alone, which plain `Gemma3ForConditionalGeneration.from_pretrained` loads; and weights of it read back.

The world encoder and the projector are no part of any published class. The projector's weights are written beside, under plait's names, so
that `from:` takes them up again.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from transformers.utils.hub import cached_file

from plait.families.theworld import towers
from plait.families.theworld.config import TINY, Config
from plait.families.theworld.model import TheWorld
from plait.files import new_folder

PROJECTOR = "projector.safetensors"
_BESIDE = (
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
# How Gemma 3's files name their parts, and where those are in ours; earlier rows first.
_NAMES = (
    ("language_model.lm_head.", "gemma.lm_head."),
    ("language_model.model.", "gemma.model.language_model."),
    ("vision_tower.", "gemma.model.vision_tower."),
    ("multi_modal_projector.", "gemma.model.multi_modal_projector."),
    ("model.", "gemma.model."),
    ("lm_head.", "gemma.lm_head."),
)


def write_hf(model: TheWorld, config: Config, directory: Path, out: Path) -> list[str]:
    """Gemma with its tokenizer and processor files, and the projector beside. Returns what to say about it."""
    with new_folder(out) as whole:
        model.gemma.save_pretrained(whole)
        _tokenizer(config, directory, whole)
        if model.projector is None:
            return []
        save_file(
            {f"projector.{name}": value.detach().contiguous() for name, value in model.projector.state_dict().items()}, whole / PROJECTOR
        )
        return [f"transformers loads Gemma 3 without the world; the projector is in {PROJECTOR}, for `from:`"]


exports: dict[str, Callable[[TheWorld, Config, Path, Path], list[str]]] = {"hf": write_hf}
"""By the name after `--to`: (model, `model:` section, the run's assets, new directory)."""


def imported(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Weights under plait's names: those of a Gemma 3 directory, of our export, or ours already; others keep theirs."""
    ours = {name for name, _ in model.named_parameters()}
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        moved = next(
            (new + name.removeprefix(old) for old, new in _NAMES if name.startswith(old) and new + name.removeprefix(old) in ours), name
        )
        if moved != "gemma.lm_head.weight" or moved in ours:
            found[moved] = value
    return found


def _tokenizer(config: Config, directory: Path, out: Path) -> None:
    """The base's own files; of a tiny base, the tokenizer trained on the spot."""
    if config.base == TINY:
        wrapped = PreTrainedTokenizerFast(
            tokenizer_object=towers.load_tokenizer(config, directory), bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
        )
        wrapped.save_pretrained(out)
        return
    for name in _BESIDE:
        place = Path(config.base) / name
        if not Path(config.base).is_dir():
            fetched = cached_file(config.base, name, revision=config.base_revision, _raise_exceptions_for_missing_entries=False)
            place = Path(fetched) if fetched else place
        if place.is_file():
            shutil.copyfile(place, out / name)
