"""The published layout as its readers take it: every tensor of an export is one that they ask for, of its shape, and none is missing.

vLLM's `MolmoForCausalLM` (vllm/model_executor/models/molmo.py): what it calls its parameters, the shapes it makes from config.json, and
how it renames published tensors; the tower is CLIP ViT-L/14 at 336 px, whatever config.json says. The reference: the arguments of its
`MolmoConfig` and `MolmoImageProcessor` (config_molmo.py and image_preprocessing_molmo.py of allenai/Molmo-7B-D-0924).
"""

import json

import pytest
import torch
from transformers import AutoProcessor

from plait.families.molmo import export, family, published
from plait.families.molmo.config import Config

INSIDE = {
    "image_projector.w1.": "image_projector.gate_proj.",
    "image_projector.w3.": "image_projector.up_proj.",
    "image_projector.w2.": "image_projector.down_proj.",
    "att_proj": "self_attn.qkv_proj",
    "attn_out": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "ff_proj": "mlp.gate_up_proj",
    "ff_out": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
}
BEGINNINGS = {
    "model.vision_backbone.": "vision_backbone.",
    "model.transformer.blocks.": "model.layers.",
    "model.transformer.ln_f.": "model.norm.",
    "model.transformer.mlp.down_proj.": "lm_head.",
}
EXTRA_ROWS, LAYERS, WIDTH, MLP, POSITIONS, PIXELS = 128, 23, 1024, 4096, 577, 588
"""What vLLM does not read from config.json: rows after the vocabulary, and the sizes of the tower."""


def renamed(weights):
    """Published tensors as vLLM loads them: under its names, embeddings joined and the projector's first layers as one."""
    loaded = {}
    rows = [weights[f"model.transformer.wte.{name}"] for name in ("embedding", "new_embedding")]
    for published_name, value in weights.items():
        name = published_name
        for old, new in INSIDE.items():
            name = name.replace(old, new)
        for old, new in BEGINNINGS.items():
            name = new + name.removeprefix(old) if name.startswith(old) else name
        loaded |= {} if ".wte." in name else {name: value.shape}
    halves = [loaded.pop(f"vision_backbone.image_projector.{part}_proj.weight") for part in ("gate", "up")]
    loaded["vision_backbone.image_projector.gate_up_proj.weight"] = torch.cat([torch.empty(half, device="meta") for half in halves]).shape
    return {**loaded, "model.embed_tokens.weight": torch.cat(rows).shape}


def linear(name, out, inner, *, bias):
    return {f"{name}.weight": (out, inner), **({f"{name}.bias": (out,)} if bias else {})}


def asked(config):
    """The parameters of vLLM's model for a config.json, by name."""
    hidden, heads, half = config["hidden_size"], config["num_attention_heads"], config["intermediate_size"] // 2
    keys = hidden // heads * (config["num_key_value_heads"] or heads)
    shapes = {
        "model.embed_tokens.weight": ((config["embedding_size"] or config["vocab_size"]) + EXTRA_ROWS, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (config["embedding_size"] or config["vocab_size"], hidden),
    }
    assert config["layer_norm_type"] == "rms" and not config["weight_tying"]
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}."
        shapes |= linear(f"{layer}self_attn.qkv_proj", hidden + 2 * keys, hidden, bias=config["qkv_bias"])
        shapes |= linear(f"{layer}self_attn.o_proj", hidden, hidden, bias=False)
        shapes |= linear(f"{layer}mlp.gate_up_proj", 2 * half, hidden, bias=False) | linear(
            f"{layer}mlp.down_proj", hidden, half, bias=False
        )
        shapes |= {f"{layer}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
        if config["attention_layer_norm"]:
            shapes |= {f"{layer}self_attn.q_norm.weight": (hidden,), f"{layer}self_attn.k_norm.weight": (keys,)}
    return shapes | {f"vision_backbone.{name}": shape for name, shape in vision(hidden, half).items()}


def vision(hidden, half):
    shapes = {"image_vit.class_embedding": (WIDTH,), "image_vit.positional_embedding": (POSITIONS, WIDTH), "pad_embed": (2, 2 * WIDTH)}
    shapes |= linear("image_vit.patch_embedding", WIDTH, PIXELS, bias=False)
    norms = ["image_vit.pre_ln"]
    for number in range(LAYERS):
        block = f"image_vit.transformer.resblocks.{number}."
        for name in ("wq", "wk", "wv", "wo"):
            shapes |= linear(f"{block}attention.{name}", WIDTH, WIDTH, bias=True)
        shapes |= linear(f"{block}feed_forward.w1", MLP, WIDTH, bias=True) | linear(f"{block}feed_forward.w2", WIDTH, MLP, bias=True)
        norms += [f"{block}attention_norm", f"{block}ffn_norm"]
    shapes |= {f"{norm}.{part}": (WIDTH,) for norm in norms for part in ("weight", "bias")}
    for name in ("wq", "wk", "wv"):
        shapes |= linear(f"image_pooling_2d.{name}", WIDTH, 2 * WIDTH, bias=True)
    shapes |= linear("image_pooling_2d.wo", WIDTH, WIDTH, bias=True)
    return (
        shapes
        | linear("image_projector.gate_up_proj", 2 * half, WIDTH, bias=False)
        | linear("image_projector.down_proj", hidden, half, bias=False)
    )


@pytest.mark.parametrize("language", ["qwen2_7b", "qwen2_72b", "olmo_1024_preview"])
def test_vllm_finds_every_parameter_and_no_other_tensor(language):
    with torch.device("meta"):
        model = family.build(Config(language=language), None, seed=0)
    loaded = renamed(published.to_published(model))
    wanted = asked(json.loads(json.dumps(published.model_settings(model))))
    assert loaded.keys() == wanted.keys()
    assert {name: tuple(shape) for name, shape in loaded.items()} == wanted


def test_the_image_tokens_are_the_four_ids_that_vllm_looks_for():
    with torch.device("meta"):
        model = family.build(Config(language="qwen2_7b"), None, seed=0)
    names = export.IMAGE_TOKENS[:4]
    assert {model.rows + number for number in range(len(names))} == {152_064, 152_065, 152_066, 152_067}
    assert set(names) == {"<im_start>", "<im_end>", "<im_patch>", "<im_col>"}


CONFIG = {"vocab_size", "embedding_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}
CONFIG |= {"num_key_value_heads", "max_position_embeddings", "initializer_range", "use_cache", "layer_norm_eps", "rope_theta", "clip_qkv"}
CONFIG |= {"qkv_bias", "weight_tying", "use_position_ids", "tie_word_embeddings", "attention_layer_norm", "norm_after", "layer_norm_type"}
PICTURES = {"max_crops", "overlap_margins", "base_image_input_size", "image_token_length_w", "image_token_length_h", "image_patch_size"}
PICTURES |= {"image_padding_mask", "do_normalize", "image_mean", "image_std"}
GENERAL = {"architectures", "model_type", "auto_map", "bos_token_id", "eos_token_id"}
"""What config.json of any model may have."""


def test_settings_are_all_arguments_of_the_reference_and_no_others(make, directory, tmp_path):
    config, model, _ = make()
    export.write_molmo(model, config, directory, tmp_path / "out")
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written.keys() == CONFIG | GENERAL
    pictures = json.loads((tmp_path / "out/preprocessor_config.json").read_text())
    assert pictures.keys() == PICTURES | {"image_processor_type", "processor_class", "auto_map"}


def test_a_reader_without_the_code_is_told_so_and_gets_no_bare_tokenizer(make, directory, tmp_path):
    config, model, _ = make()
    export.write_molmo(model, config, directory, tmp_path / "out")
    with pytest.raises(ValueError, match=r"allenai/Molmo-7B-D-0924|trust_remote_code=True"):
        AutoProcessor.from_pretrained(tmp_path / "out", trust_remote_code=False)
    assert not list((tmp_path / "out").glob("*.py"))
