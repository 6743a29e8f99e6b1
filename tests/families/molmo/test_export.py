"""Exports: bit-equal back and forth, the reference's arithmetic on the published tensors. The verb is tested in tests/test_export.py."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from plait.errors import PlaitError
from plait.families.molmo import export, family, published
from plait.families.molmo.model import Molmo


@pytest.mark.parametrize("to", ["hf", "molmo"])
def test_export_and_import_give_back_every_bit(make, directory, tmp_path, to):
    config, model, _ = make()
    export.exports[to](model, config, directory, tmp_path / "out")
    other = family.build(config, directory, seed=9)
    missing = export.load(other, load_file(tmp_path / "out" / "model.safetensors"))
    assert missing == []
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_export_molmo_weights_compute_what_the_reference_computes(make):
    """silu(second half) * first half of ff_proj; rows of att_proj as q, k, v; patches flattened as (row, column, channel)."""
    _, model, _ = make()
    weights = published.to_published(model)
    layer, block = model.language.model.layers[0], "model.transformer.blocks.0."
    x = torch.randn(3, 128)
    first, second = (x @ weights[f"{block}ff_proj.weight"].T).chunk(2, -1)
    with torch.no_grad():
        assert torch.allclose((F.silu(second) * first) @ weights[f"{block}ff_out.weight"].T, layer.mlp(x), atol=1e-6)
        fused = F.linear(x, weights[f"{block}att_proj.weight"], weights[f"{block}att_proj.bias"]).split([128, 64, 64], -1)
        attention = layer.self_attn
        for projected, part in zip(fused, (attention.q_proj, attention.k_proj, attention.v_proj), strict=True):
            assert torch.allclose(projected, part(x), atol=1e-6)
        image = torch.randn(1, 3, 48, 48)
        patches = image[0].unfold(1, 6, 6).unfold(2, 6, 6).permute(1, 2, 3, 4, 0).reshape(64, -1)
        expected = model.vision.embeddings.patch_embedding(image).flatten(2)[0].T
        assert torch.allclose(patches @ weights["model.vision_backbone.image_vit.patch_embedding.weight"].T, expected, atol=1e-5)


def olmo(model):
    """The model with a small OLMo 2 in place of its language model."""
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256, "vocab_size": 768}
    language = AutoModelForCausalLM.from_config(AutoConfig.for_model("olmo2", **sizes, pad_token_id=1))
    with torch.no_grad():
        for name, parameter in language.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 2.0)
    return Molmo(model.config, language, model.vision, model.connector)


def test_export_of_olmo_is_what_the_reference_computes_and_comes_back(make):
    """x + norm(attention(x)), then x + norm(ffn(x)); queries and keys are normed over all heads."""
    model = olmo(make()[1])
    weights = published.to_published(model)
    layer, block = model.language.model.layers[1], "model.transformer.blocks.1."

    def normed(x, name):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * weights[f"{block}{name}.weight"]

    x = torch.randn(1, 1, 128)  # of a single position attention is the value, and its angle 0
    with torch.no_grad():
        query, key, value = F.linear(x, weights[f"{block}att_proj.weight"]).split(128, -1)
        attention = layer.self_attn
        assert torch.allclose(normed(query, "q_norm"), attention.q_norm(attention.q_proj(x)), atol=1e-6)
        assert torch.allclose(normed(key, "k_norm"), attention.k_norm(attention.k_proj(x)), atol=1e-6)
        middle = x + normed(F.linear(value, weights[f"{block}attn_out.weight"]), "attn_norm")
        first, second = F.linear(middle, weights[f"{block}ff_proj.weight"]).chunk(2, -1)
        expected = middle + normed(F.linear(F.silu(second) * first, weights[f"{block}ff_out.weight"]), "ff_norm")
        angles = (torch.ones(1, 1, 32), torch.zeros(1, 1, 32))
        assert torch.allclose(layer(x, position_embeddings=angles), expected, atol=1e-5)
    back = published.imported(weights, model)
    assert all(torch.equal(back[name], value) for name, value in model.named_parameters())


def test_export_tokenizer_has_the_image_tokens_at_their_ids(make, directory, tmp_path):
    config, model, inputs = make()
    export.write_molmo(model, config, directory, tmp_path / "out")
    vocabulary = {token["content"]: token["id"] for token in json.loads((tmp_path / "out/tokenizer.json").read_text())["added_tokens"]}
    assert [vocabulary[name] - inputs.tokenizer.image_start for name in ("<im_start>", "<im_end>", "<im_patch>", "<im_col>")] == [
        0,
        1,
        2,
        3,
    ]


@pytest.mark.parametrize("to", ["hf", "molmo"])
def test_export_holds_every_end_that_the_language_model_names(make, directory, tmp_path, to):
    config, model, _ = make()
    model.language.config.eos_token_id = [5, 0]
    export.exports[to](model, config, directory, tmp_path / "out")
    written = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (set(written.eos_token_id), written.pad_token_id, written.bos_token_id) == ({0, 5}, 5, 0)


def test_export_settings_name_the_published_sizes(make, directory, tmp_path):
    config, model, _ = make()
    export.write_molmo(model, config, directory, tmp_path / "out")
    settings = json.loads((tmp_path / "out/config.json").read_text())
    assert settings["model_type"] == "molmo"
    assert (settings["intermediate_size"], settings["embedding_size"]) == (512, 768)  # both halves of the MLP


def test_export_molmo_of_other_parts_is_refused(make):
    _, model, _ = make()
    model.vision.tower = family.Config(vision_backbone="dino").tower
    with pytest.raises(PlaitError, match="is for qwen2 and olmo2 with the openai tower, not qwen2 with dino: use --to hf"):
        published.to_published(model)


def test_import_names_a_tensor_of_another_shape(make):
    _, model, _ = make()
    weights = published.to_published(model)
    weights["model.transformer.ln_f.weight"] = torch.ones(7)
    with pytest.raises(PlaitError, match=r"model\.transformer\.ln_f\.weight is \(7,\); this model wants \(128,\)"):
        published.imported(weights, model)


def test_import_leaves_out_nothing_that_has_no_place_here(make):
    _, model, _ = make()
    for weights in (published.to_published(model), dict(model.named_parameters())):
        assert "other.weight" in published.imported({**weights, "other.weight": torch.ones(1)}, model)
