"""`plait export`: a directory that other software loads. `hf`: transformers, through plait; `molmo`: the published layout.

Weights as safetensors with an index, the configuration, the tokenizer with the image tokens at their ids, and the preprocessor's settings.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from tokenizers import AddedToken, Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from plait.families.molmo import published, towers
from plait.families.molmo.config import IMAGE_TOKENS, Config
from plait.families.molmo.model import Molmo
from plait.families.molmo.published import imported
from plait.files import new_folder, write_json

__all__ = ["exports", "imported", "load"]

SHARD = "5GB"
MODEL_TYPE = "plait_molmo"  # what hf.py registers


def write_hf(model: Molmo, config: Config, directory: Path, out: Path) -> list[str]:
    """A directory for `AutoModelForCausalLM` and `AutoProcessor` after `import plait.families.molmo.hf`. Returns what to say about it."""
    weights = {f"model.{name}": value.detach() for name, value in model.state_dict().items()}
    if model.language.config.tie_word_embeddings:
        weights["model.language.lm_head.weight"] = weights["model.language.lm_head.weight"].clone()
    settings = {
        "architectures": ["MolmoForCausalLM"],
        "model_type": MODEL_TYPE,
        "plait": config.model_dump(mode="json"),
        "text_config": {**model.language.config.to_dict(), "dtype": str(next(model.language.parameters()).dtype).removeprefix("torch.")},
    }
    extra = {"processor_config.json": {"processor_class": "MolmoProcessor"}}
    _write(out, weights, {"config.json": settings, **extra}, _tokenizer(model, config, directory))
    return ["to load it: import plait.families.molmo.hf, then AutoModelForCausalLM.from_pretrained and AutoProcessor.from_pretrained"]


def write_molmo(model: Molmo, config: Config, directory: Path, out: Path) -> list[str]:
    """A directory in the published Molmo layout. Returns what to say about it."""
    settings = {"config.json": published.model_settings(model), "preprocessor_config.json": published.image_settings(config)}
    settings["processor_config.json"] = {"processor_class": "MolmoProcessor"}
    _write(out, published.to_published(model), settings, _tokenizer(model, config, directory))
    return ["weights, config.json, tokenizer and preprocessor settings in the published layout; the modelling code comes from who reads it"]


exports: dict[str, Callable[[Molmo, Config, Path, Path], list[str]]] = {"hf": write_hf, "molmo": write_molmo}
"""By the name after `--to`: (model, `model:` section, the run's assets, new directory)."""


def _write(out: Path, weights: dict[str, Tensor], settings: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> None:
    """All files in a folder beside, renamed when it is whole."""
    with new_folder(out) as whole:
        save_torch_state_dict(weights, whole, max_shard_size=SHARD, safe_serialization=True)
        tokenizer.save_pretrained(whole)
        for name, content in settings.items():
            write_json(whole / name, content)


def _tokenizer(model: Molmo, config: Config, directory: Path) -> PreTrainedTokenizerFast:
    """The run's tokenizer, filled up to the embedding's rows, with the image tokens in the rows after them."""
    tokenizer = towers.load_tokenizer(config, directory)
    filled = Tokenizer.from_str(tokenizer.to_str())
    missing = range(model.rows - filled.get_vocab_size(with_added_tokens=True))
    names = [*(f"|<EXTRA_TOKENS_{n}>|" for n in missing), *IMAGE_TOKENS]
    filled.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    first = filled.token_to_id(IMAGE_TOKENS[0])
    assert first == model.rows, f"{IMAGE_TOKENS[0]} has id {first}, not {model.rows}"
    sizes = model.language.config.get_text_config()
    end = sizes.eos_token_id[0] if isinstance(sizes.eos_token_id, list) else sizes.eos_token_id
    text = filled.id_to_token(end)
    return PreTrainedTokenizerFast(tokenizer_object=filled, eos_token=text, pad_token=text)


@torch.no_grad()
def load(model: Molmo, weights: dict[str, Tensor]) -> list[str]:
    """Put exported weights, in any of the layouts, on the model; returns the names of parameters they do not have."""
    ours = dict(model.named_parameters())
    found = imported(weights, model)
    for name, value in found.items():
        ours[name].copy_(value)
    return [name for name in ours if name not in found]
