"""Write a directory that other software loads (`plait export`). `hf`: for transformers, without plait; `molmo`: the published layout.

It holds weights as safetensors with an index, the configuration, the tokenizer with the image tokens at their ids, and the preprocessor's
settings. `assets` is the folder of the model's files, with a debug model's tokenizer; `out`, the new directory.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from tokenizers import AddedToken, Tokenizer
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast

import plait.data.pixels.rgb
import plait.data.resizing
import plait.families.molmo.hf
from plait.engine.checkpoints.folders import new_folder
from plait.engine.parallel.distributed import to_device
from plait.families.module_contracts import Check
from plait.families.molmo import published, styles, towers
from plait.families.molmo.config import Config
from plait.families.molmo.generate import answers
from plait.families.molmo.hf.configuration_plait_molmo import PlaitMolmoConfig
from plait.families.molmo.hf.sizes import IMAGE_TOKENS, PATCH
from plait.families.molmo.hf.vision_tower import vision_config
from plait.families.molmo.inputs import Inputs, TextTokenizer
from plait.families.molmo.model import Molmo
from plait.families.molmo.pretrained import held
from plait.families.molmo.published import imported
from plait.files import write_json, write_whole

__all__ = ["checks", "exports", "imported", "load"]

SHARD = "5GB"
MAX_NEW_TOKENS = 16
_STANDALONE = Path(str(plait.families.molmo.hf.__file__)).parent
"""The folder of the code that an export holds a copy of, and its chat template."""
_ALSO = (Path(plait.data.resizing.__file__), Path(plait.data.pixels.rgb.__file__))
"""Code from elsewhere that it imports."""
_IMPORT = re.compile(r"^from plait(?:\.\w+)*\.(\w+) import", re.MULTILINE)
_AUTO_MAP = {
    "AutoConfig": "configuration_plait_molmo.PlaitMolmoConfig",
    "AutoModelForImageTextToText": "modeling_plait_molmo.PlaitMolmoForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_plait_molmo.PlaitMolmoForConditionalGeneration",
    "AutoImageProcessor": "image_processing_plait_molmo.PlaitMolmoImageProcessor",
    "AutoProcessor": "processing_plait_molmo.PlaitMolmoProcessor",
}
"""Where transformers finds its classes: `auto_map` of config.json and of the processor's settings."""


def write_hf(model: Molmo, config: Config, assets: Path, out: Path) -> list[str]:
    """Write a directory that transformers loads by the code in it, without plait; return lines on how to load it.

    `config`: the `model:` section; `assets`: the run's folder with its tokenizer; `out`: the new directory.
    """
    once = {*dict(model.named_parameters()), *dict(model.named_buffers())}  # without a head that is tied
    weights = {name: value.detach() for name, value in model.state_dict().items() if name in once}
    code = {f"{path.stem}.py": _IMPORT.sub(r"from .\1 import", path.read_text(encoding="utf-8")) for path in standalone()}
    settings = {"config.json": _model_settings(model, config), **_processor_settings(config)}
    text = _text_tokenizer(model, config, assets)
    longest = {} if text.positions is None else {"model_max_length": text.positions}
    tokenizer = _tokenizer(model, text, bos_token=text.tokenizer.id_to_token(text.bos), padding_side="left", **longest)
    _write(out, weights, settings | code | {"chat_template.jinja": chat_template(config)}, text, tokenizer)
    load = 'pipeline("image-text-to-text", model=DIR, trust_remote_code=True), AutoProcessor and AutoModelForImageTextToText load it'
    return [f"{load}, by the code in it: transformers without plait"]


def standalone() -> list[Path]:
    """Return the files of code that an export holds copies of."""
    return [*sorted(path for path in _STANDALONE.glob("*.py") if path.stem != "__init__"), *_ALSO]


def _model_settings(model: Molmo, config: Config) -> dict[str, Any]:
    """Return the content of config.json for transformers. Its dtype is the widest of the weights, so that none is rounded unasked."""
    widest = max((parameter.dtype for parameter in model.parameters()), key=lambda dtype: dtype.itemsize)
    settings = PlaitMolmoConfig(
        text_config=model.language.config.to_dict(),
        vision_config=vision_config(config.tower),
        tower=asdict(config.tower),
        connector_hidden=model.connector.projector.w2.in_features,
        image_token_id=model.rows + PATCH,
        tie_word_embeddings=model.language.config.tie_word_embeddings,
        dtype=widest,
        architectures=["PlaitMolmoForConditionalGeneration"],
    )
    written: dict[str, Any] = json.loads(settings.to_json_string(use_diff=False))
    return written | {"auto_map": _AUTO_MAP}


def _processor_settings(config: Config) -> dict[str, Any]:
    """Return the contents of preprocessor_config.json and processor_config.json for transformers."""
    names = {"processor_class": "PlaitMolmoProcessor", "auto_map": _AUTO_MAP}
    pictures = {**asdict(config.tiling), "image_processor_type": "PlaitMolmoImageProcessor", **names}
    return {"preprocessor_config.json": pictures, "processor_config.json": names}


def chat_template(config: Config) -> str:
    """Return the chat template of this model: how training frames a conversation, with the settings of `config` above it."""
    model = {
        "format": config.format,
        "style": config.style,
        "default_style": config.default_style or "",
        "caption_length": "" if config.caption_length is None else str(config.caption_length),
        "demo": sorted(styles.DEMO_STYLES),
        "unnamed": sorted(styles.UNNAMED_STYLES),
        "renamed": styles.EVALUATION_STYLES,
    }
    return f"{{%- set model = {json.dumps(model)} -%}}\n" + (_STANDALONE / "chat_template.jinja").read_text(encoding="utf-8")


def write_molmo(model: Molmo, config: Config, assets: Path, out: Path) -> list[str]:
    """Write the directory `out` in the published Molmo layout; return lines to print. Arguments as of `write_hf`.

    Raises PlaitError unless the language model is Qwen2 or OLMo 2 and the tower is OpenAI's CLIP.
    """
    settings = {"config.json": published.model_settings(model), "preprocessor_config.json": published.image_settings(config)}
    settings["processor_config.json"] = published.processor_settings()
    settings[held.LANGUAGE] = json.loads(model.language.config.to_json_string(use_diff=False))
    text = _text_tokenizer(model, config, assets)
    _write(out, published.to_published(model), settings, text, _tokenizer(model, text))
    lines = ["weights, config.json, tokenizer and preprocessor settings in the published layout; its code, which they name, is on the Hub"]
    if config.preprocessing != "published":
        lines.append("trained with model.preprocessing corrected: readers of this layout mark padding one crop on, and answers may differ")
    return lines


exports: dict[str, Callable[[Molmo, Config, Path, Path], list[str]]] = {"hf": write_hf, "molmo": write_molmo}
"""Writers by layout, as in `--to hf`: functions from (model, `model:` section, run's assets, new directory) to lines to print."""


def _weights(model: Molmo, config: Config, assets: Path) -> dict[str, Tensor]:
    """Return the weights as transformers loads them: all in the widest dtype."""
    widest = max((parameter.dtype for parameter in model.parameters()), key=lambda dtype: dtype.itemsize)
    return {name: value.to(widest) for name, value in model.named_parameters()}


def _asked(inputs: Inputs, files: Sequence[Path]) -> list[Any]:
    """Return chats: about one picture, about two, and about none."""
    chats = []
    for ask, paths in (("How many circles are there?", files[:1]), ("Which of the two is larger?", files[1:3]), ("Name a colour.", [])):
        parts: list[dict[str, str]] = [{"type": "image", "url": str(path)} for path in paths]
        chats.append([{"role": "user", "content": [*parts, {"type": "text", "text": ask}]}])
    return chats


def _results(model: Molmo, inputs: Inputs, chat: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return ids, logits and the greedy answer of a chat."""
    parts = chat[0]["content"]
    images = [Path(part["url"]).read_bytes() for part in parts if part["type"] == "image"]
    messages = [{"role": "user", "content": "".join(part.get("text", "") for part in parts)}]
    example = inputs.prompt({"id": "check", "images": images, "messages": messages, "fields": {}})
    batch = to_device(inputs.collate([example], left=True), model.head.device)
    logits = model.logits(model.hidden(model.embed(batch), batch))
    return {"ids": batch["ids"], "logits": logits, "answer": answers(model, inputs, [example], max_new_tokens=[MAX_NEW_TOKENS])[0]}


def _stops(model: Molmo, inputs: Inputs) -> dict[str, Any]:
    return {"eos_token_id": sorted(inputs.tokenizer.stops)}


checks = {"hf": Check("transformers", _weights, _asked, _results, _stops, trust=True)}
"""How `plait export --check` asks a layout; the published one is loaded by code that nothing installed here has."""


def _write(
    out: Path, weights: dict[str, Tensor], contents: dict[str, Any], text: TextTokenizer, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Write all files to a temporary folder beside `out`, renamed when it is complete. Answers of the export end at plait's own stops.

    `contents`: those of its other files by name, a text or what becomes JSON.
    """
    generation = GenerationConfig(eos_token_id=sorted(text.stops), pad_token_id=text.eos, bos_token_id=text.bos)
    with new_folder(out) as folder:
        save_torch_state_dict(weights, folder, max_shard_size=SHARD, safe_serialization=True)
        tokenizer.save_pretrained(folder)
        generation.save_pretrained(folder)
        for name, content in contents.items():
            if isinstance(content, str):
                write_whole(folder / name, content)
            else:
                write_json(folder / name, content)


def _text_tokenizer(model: Molmo, config: Config, assets: Path) -> TextTokenizer:
    return TextTokenizer(towers.load_tokenizer(config, assets), model.language.config)


def _tokenizer(model: Molmo, text: TextTokenizer, **settings: Any) -> PreTrainedTokenizerFast:
    """Return the run's tokenizer, extended to the embedding's rows, with the image tokens after them. `settings`: more of transformers'."""
    extended = Tokenizer.from_str(text.tokenizer.to_str())
    unnamed = range(model.rows - extended.get_vocab_size(with_added_tokens=True))
    names = [*(f"|<EXTRA_TOKENS_{n}>|" for n in unnamed), *IMAGE_TOKENS]
    extended.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    first = extended.token_to_id(IMAGE_TOKENS[0])
    assert first == model.rows, f"{IMAGE_TOKENS[0]} has id {first}, not {model.rows}"
    end_of_text = extended.id_to_token(text.eos)
    return PreTrainedTokenizerFast(tokenizer_object=extended, eos_token=end_of_text, pad_token=end_of_text, **settings)


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
