"""Convert weights to and from the published Molmo layout (names and shapes), which the reference code and vLLM read.

Each published tensor is made of one or more parameters of this model: one as it is, several stacked by rows, or the patch embedding
flattened. Only Qwen2 and OLMo 2 language models with the CLIP tower have a published layout.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from plait.errors import PlaitError
from plait.families.molmo import towers
from plait.families.molmo.config import Config
from plait.families.molmo.hf.sizes import POOL
from plait.families.molmo.hf.vision_tower import VisionTower
from plait.families.molmo.model import Molmo, assemble

log = logging.getLogger(__name__)

PREFIX = "model."
_READ_AS = "published weights were trained with `published` (padding marked one crop on); set it, unless these were not"
_NORMS = {
    "qwen2": {"attn_norm.weight": "input_layernorm.weight", "ff_norm.weight": "post_attention_layernorm.weight"},
    "olmo2": {
        "attn_norm.weight": "post_attention_layernorm.weight",
        "ff_norm.weight": "post_feedforward_layernorm.weight",
        "q_norm.weight": "self_attn.q_norm.weight",
        "k_norm.weight": "self_attn.k_norm.weight",
    },
}
"""The norms of a layer by type of the language model, {published name: parameter}; OLMo 2's follow attention and MLP."""
_BLOCK = {"attn_out.weight": "self_attn.o_proj.weight", "ff_out.weight": "mlp.down_proj.weight"}
_RESBLOCK = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.out_proj",
    "feed_forward.w1": "mlp.fc1",
    "feed_forward.w2": "mlp.fc2",
    "attention_norm": "layer_norm1",
    "ffn_norm": "layer_norm2",
}

_CODE = "allenai/Molmo-7B-D-0924--"
"""Where readers find the code of this layout, if they are told to run it: a repository of the Hub, in `auto_map`."""
_SAME_SETTINGS = (
    "hidden_size",
    "initializer_range",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "use_cache",
    "vocab_size",
    "bos_token_id",
    "eos_token_id",
)


class Entry(NamedTuple):
    """A published tensor, named `theirs`, made of the parameters named `ours`, stacked by rows.

    `patches`: it is the patch embedding, flattened over (row, column, channel).
    """

    theirs: str
    ours: tuple[str, ...]
    patches: bool = False


def entries(model: Molmo) -> list[Entry]:
    """Return an Entry for every published tensor of this model. Raises PlaitError unless it is Qwen2 or OLMo 2 with OpenAI's CLIP."""
    kind, tower = model.language.config.model_type, model.vision.tower.kind
    if kind not in _NORMS or tower != "clip":
        raise PlaitError(
            f"the published Molmo layout is for {' and '.join(_NORMS)} with the openai tower, not {kind} with {tower}: use --to hf"
        )
    return [*_language(model), *_vision(model), *_connector()]


def _language(model: Molmo) -> Iterator[Entry]:
    ours, kind = "language.model.", model.language.config.model_type
    yield Entry("transformer.wte.embedding", (f"{ours}embed_tokens.weight",))
    yield Entry("transformer.wte.new_embedding", ("connector.new_embedding",))
    yield Entry("transformer.ln_f.weight", (f"{ours}norm.weight",))
    if not model.language.config.tie_word_embeddings:
        yield Entry("transformer.ff_out.weight", ("language.lm_head.weight",))
    for n in range(model.language.config.num_hidden_layers):
        theirs, layer = f"transformer.blocks.{n}.", f"{ours}layers.{n}."
        for part in ("weight", "bias") if kind == "qwen2" else ("weight",):
            yield Entry(f"{theirs}att_proj.{part}", tuple(f"{layer}self_attn.{x}_proj.{part}" for x in "qkv"))
        # the reference halves ff_proj and computes silu(second) * first
        yield Entry(f"{theirs}ff_proj.weight", (f"{layer}mlp.up_proj.weight", f"{layer}mlp.gate_proj.weight"))
        yield from (Entry(theirs + name, (layer + parameter,)) for name, parameter in (_BLOCK | _NORMS[kind]).items())


def _vision(model: Molmo) -> Iterator[Entry]:
    ours, theirs = "vision.", "vision_backbone.image_vit."
    yield Entry(f"{theirs}class_embedding", (f"{ours}embeddings.class_embedding",))
    yield Entry(f"{theirs}positional_embedding", (f"{ours}embeddings.position_embedding.weight",))
    yield Entry(f"{theirs}patch_embedding.weight", (f"{ours}embeddings.patch_embedding.weight",), patches=True)
    for part in ("weight", "bias"):
        yield Entry(f"{theirs}pre_ln.{part}", (f"{ours}pre_norm.{part}",))
        for n in range(len(model.vision.layers)):
            for name, parameter in _RESBLOCK.items():
                yield Entry(f"{theirs}transformer.resblocks.{n}.{name}.{part}", (f"{ours}layers.{n}.{parameter}.{part}",))


def _connector() -> Iterator[Entry]:
    for name in ("wq", "wk", "wv", "wo"):
        for part in ("weight", "bias"):
            yield Entry(f"vision_backbone.image_pooling_2d.{name}.{part}", (f"connector.pooling.{name}.{part}",))
    for name in ("w1", "w2", "w3"):
        yield Entry(f"vision_backbone.image_projector.{name}.weight", (f"connector.projector.{name}.weight",))
    yield Entry("vision_backbone.pad_embed", ("connector.pad_embed",))


def to_published(model: Molmo) -> dict[str, Tensor]:
    """Return copies of the model's weights under published names. Raises PlaitError for parts that have no published layout."""
    parameters = dict(model.named_parameters())
    weights = {}
    for entry in entries(model):
        values = [parameters[name].detach() for name in entry.ours]
        value = values[0].permute(0, 2, 3, 1).flatten(1) if entry.patches else torch.cat(values) if len(values) > 1 else values[0]
        weights[PREFIX + entry.theirs] = value.contiguous()
    return weights


def imported(weights: Mapping[str, Tensor], model: Molmo) -> dict[str, Tensor]:
    """Return weights of an exported directory, in the published layout or that of `hf`, under this model's parameter names.

    Weights that this model has no parameter for keep their names. Raises PlaitError if a published tensor is missing or has another shape.
    """
    parameters = dict(model.named_parameters())
    if "transformer.wte.embedding" in weights:  # the reference's own files have no prefix
        weights = {f"{PREFIX}{name}": value for name, value in weights.items()}
    if f"{PREFIX}transformer.wte.embedding" not in weights:
        return {name.removeprefix(PREFIX): value for name, value in weights.items()}
    if model.training and model.config.preprocessing != "published" and not parameters["connector.pad_embed"].is_meta:  # a start
        log.warning(f"from: weights in the published layout, and model.preprocessing is {model.config.preprocessing}: {_READ_AS}")
    theirs = {PREFIX + entry.theirs for entry in entries(model)}
    renamed = {name: value for name, value in weights.items() if name not in theirs}
    for entry in entries(model):
        value = weights.get(PREFIX + entry.theirs)
        shapes = [parameters[name].shape for name in entry.ours]
        expected = (shapes[0][0], math.prod(shapes[0][1:])) if entry.patches else (sum(s[0] for s in shapes), *shapes[0][1:])
        if value is None or tuple(value.shape) != expected:
            given = "missing" if value is None else f"{tuple(value.shape)}"
            raise PlaitError(
                f"from: the published tensor {PREFIX + entry.theirs} is {given}; this model wants {expected}: is `model:` the same?"
            )
        if entry.patches:
            rows, channels, high, wide = shapes[0]
            renamed[entry.ours[0]] = value.view(rows, high, wide, channels).permute(0, 3, 1, 2).contiguous()
        else:
            renamed |= dict(zip(entry.ours, torch.split(value, [s[0] for s in shapes]), strict=True))
    return renamed


def model_settings(model: Molmo) -> dict[str, Any]:
    """Return the content of config.json in the published layout, for the reference code and vLLM."""
    sizes = model.language.config
    settings, after = sizes.to_dict(), sizes.model_type == "olmo2"
    return {
        **{name: settings[name] for name in _SAME_SETTINGS},
        "architectures": ["MolmoForCausalLM"],
        "model_type": "molmo",
        "auto_map": {
            "AutoConfig": f"{_CODE}config_molmo.MolmoConfig",
            "AutoModelForCausalLM": f"{_CODE}modeling_molmo.MolmoForCausalLM",
        },
        "embedding_size": sizes.vocab_size,
        "intermediate_size": 2 * sizes.intermediate_size,
        "layer_norm_eps": sizes.rms_norm_eps,
        "layer_norm_type": "rms",
        "attention_layer_norm": after,
        "norm_after": after,
        "clip_qkv": None,
        "qkv_bias": not after,
        "rope_theta": sizes.rope_parameters["rope_theta"],
        "tie_word_embeddings": sizes.tie_word_embeddings,
        "weight_tying": sizes.tie_word_embeddings,
        "use_position_ids": True,
    }


def processor_settings() -> dict[str, Any]:
    """Return the content of processor_config.json in the published layout: the processor's class, and where its code is."""
    classes = {"AutoImageProcessor": "image_preprocessing_molmo.MolmoImageProcessor", "AutoProcessor": "preprocessing_molmo.MolmoProcessor"}
    return {"processor_class": "MolmoProcessor", "auto_map": {auto: f"{_CODE}{name}" for auto, name in classes.items()}}


def image_settings(config: Config) -> dict[str, Any]:
    """Return the content of preprocessor_config.json in the published layout: sizes, normalisation and tiling."""
    tower, side = config.tower, -(-config.tower.side // POOL)
    return {
        "image_processor_type": "MolmoImageProcessor",
        **processor_settings(),
        "base_image_input_size": [tower.image, tower.image],
        "do_normalize": True,
        "image_mean": list(tower.mean),
        "image_std": list(tower.std),
        "image_padding_mask": True,
        "image_patch_size": tower.patch,
        "image_token_length_h": side,
        "image_token_length_w": side,
        "max_crops": config.max_crops,
        "overlap_margins": [config.overlap, config.overlap],
    }


def build_over(config: Config, assets: Path, *, seed: int, parts: frozenset[str]) -> Molmo:
    """Build the model without reading the weights of `parts` ("language", "vision"), which have any values until they are loaded.

    `seed`: of the connector. `assets` is not used. Raises PlaitError for a part that cannot be loaded.
    """
    language = _empty_language(config) if "language" in parts else towers.load_language(config, seed)
    vision = _empty_vision(config) if "vision" in parts else towers.load_vision(config, seed)
    return assemble(config, language, vision, seed=seed)


def _empty_language(config: Config) -> PreTrainedModel:
    """Build the language model with weights of any value, for a start that overwrites them; reads its configuration alone."""
    with no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(towers.language_config(config), dtype=torch.float32)
    model.tie_weights()
    model.get_input_embeddings().get_parameter("weight").data[: 1 << 16] = 1.0  # a new connector, overwritten too, is drawn at their scale
    return model


def _empty_vision(config: Config) -> VisionTower:
    """Build the tower with weights of any value, for a start that overwrites them."""
    with no_init_weights():
        return towers.new_vision(config)
