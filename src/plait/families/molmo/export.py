"""Write a directory that other software loads (`plait export`). `hf`: for transformers with plait; `molmo`: the published layout.

It holds weights as safetensors with an index, the configuration, the tokenizer with the image tokens at their ids, and the preprocessor's
settings. `assets` is the folder of the model's files, with a debug model's tokenizer; `out`, the new directory.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from tokenizers import AddedToken, Tokenizer
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast

from plait.engine.checkpoints.folders import new_folder
from plait.families.molmo import published, towers
from plait.families.molmo.config import IMAGE_TOKENS, Config
from plait.families.molmo.inputs import TextTokenizer
from plait.families.molmo.model import Molmo
from plait.families.molmo.published import imported
from plait.files import write_json

__all__ = ["exports", "imported", "load"]

SHARD = "5GB"
MODEL_TYPE = "plait_molmo"
"""The `model_type` of an export's config.json, which hf.py registers."""


def write_hf(model: Molmo, config: Config, assets: Path, out: Path) -> list[str]:
    """Write a directory that AutoModelForCausalLM and AutoProcessor load once hf.py is imported; return lines to print on loading it.

    `config`: the `model:` section; `assets`: the run's folder with its tokenizer; `out`: the new directory.
    """
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
    _write(out, weights, {"config.json": settings, **extra}, model, config, assets)
    return ["to load it: import plait.families.molmo.hf, then AutoModelForCausalLM.from_pretrained and AutoProcessor.from_pretrained"]


def write_molmo(model: Molmo, config: Config, assets: Path, out: Path) -> list[str]:
    """Write the directory `out` in the published Molmo layout; return lines to print. Arguments as of `write_hf`.

    Raises PlaitError unless the language model is Qwen2 or OLMo 2 and the tower is OpenAI's CLIP.
    """
    settings = {"config.json": published.model_settings(model), "preprocessor_config.json": published.image_settings(config)}
    settings["processor_config.json"] = {"processor_class": "MolmoProcessor"}
    _write(out, published.to_published(model), settings, model, config, assets)
    lines = [
        "weights, config.json, tokenizer and preprocessor settings in the published layout; the modelling code comes from who reads it"
    ]
    if config.preprocessing != "published":
        lines.append("trained with model.preprocessing corrected: readers of this layout mark padding one crop on, and answers may differ")
    return lines


exports: dict[str, Callable[[Molmo, Config, Path, Path], list[str]]] = {"hf": write_hf, "molmo": write_molmo}
"""Writers by layout, as in `--to hf`: functions from (model, `model:` section, run's assets, new directory) to lines to print."""


def _write(out: Path, weights: dict[str, Tensor], settings: dict[str, Any], model: Molmo, config: Config, assets: Path) -> None:
    """Write all files to a temporary folder beside `out`, renamed when it is complete. Answers of the export end at plait's own stops."""
    text = TextTokenizer(towers.load_tokenizer(config, assets), model.language.config)
    generation = GenerationConfig(eos_token_id=sorted(text.stops), pad_token_id=text.eos, bos_token_id=text.bos)
    with new_folder(out) as folder:
        save_torch_state_dict(weights, folder, max_shard_size=SHARD, safe_serialization=True)
        _tokenizer(model, config, assets).save_pretrained(folder)
        generation.save_pretrained(folder)
        for name, content in settings.items():
            write_json(folder / name, content)


def _tokenizer(model: Molmo, config: Config, assets: Path) -> PreTrainedTokenizerFast:
    """Return the run's tokenizer, extended to the embedding's rows, with the image tokens after them."""
    tokenizer = towers.load_tokenizer(config, assets)
    extended = Tokenizer.from_str(tokenizer.to_str())
    unnamed = range(model.rows - extended.get_vocab_size(with_added_tokens=True))
    names = [*(f"|<EXTRA_TOKENS_{n}>|" for n in unnamed), *IMAGE_TOKENS]
    extended.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    first = extended.token_to_id(IMAGE_TOKENS[0])
    assert first == model.rows, f"{IMAGE_TOKENS[0]} has id {first}, not {model.rows}"
    sizes = model.language.config.get_text_config()
    end = sizes.eos_token_id[0] if isinstance(sizes.eos_token_id, list) else sizes.eos_token_id
    end_of_text = extended.id_to_token(end)
    return PreTrainedTokenizerFast(tokenizer_object=extended, eos_token=end_of_text, pad_token=end_of_text)


@torch.no_grad()
def load(model: Molmo, weights: dict[str, Tensor]) -> list[str]:
    """Copy exported weights, in the layout `hf`, `molmo` or plait's, into the model; return the names of parameters without weights.

    Raises PlaitError when a published tensor is missing or has another shape.
    """
    parameters = dict(model.named_parameters())
    values = imported(weights, model)
    for name, value in values.items():
        parameters[name].copy_(value)
    return [name for name in parameters if name not in values]
