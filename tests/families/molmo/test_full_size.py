"""Full size, on the meta device: the published counts and the published tensors. No network, no memory."""

from pathlib import Path

import pytest
import torch

from plait.engine.parallel import memory_estimate
from plait.families.molmo import family, published
from plait.families.molmo.config import Config


def built(**section):
    with torch.device("meta"):
        return family.build(Config(**section), None, seed=0)


@pytest.fixture(scope="module")
def seven_b():
    return built()


def counts(model) -> dict[str, int]:
    return {name: sum(p.numel() for p in part.values()) for name, part in family.components(model).items()}


def test_full_size_7b_has_the_published_counts(seven_b):
    assert counts(seven_b) == {"connector": 114_499_584, "vision": 290_909_184, "language": 7_615_616_512}
    assert sum(p.numel() for p in seven_b.parameters()) == 8_021_025_280


def test_full_size_builds_23_of_24_clip_layers_and_listens_to_the_22nd_and_15th(seven_b):
    assert len(seven_b.vision.layers) == 23
    assert [layer + 1 for layer in seven_b.vision.feature_layers] == [22, 15]


def test_full_size_extra_rows_are_the_connectors_and_not_in_the_head(seven_b):
    assert family.components(seven_b)["connector"]["connector.new_embedding"].shape == (128, 3584)
    assert seven_b.head.shape == (152_064, 3584)


def test_full_size_olmoe_has_its_published_count():
    assert counts(built(language="olmoe"))["language"] == 6_919_161_856


def decoder(layers, width, keys, mlp, words, per_layer):
    """Weights of an untied decoder: embedding and head, attention with `keys` wide keys and values, a gated MLP, a last norm."""
    return 2 * words * width + layers * (2 * width * width + 2 * width * keys + 3 * width * mlp + per_layer) + width


def test_full_size_72b_and_7b_o_are_their_publishers_sizes():
    bias_and_norms = 8192 + 2 * 1024 + 2 * 8192
    assert counts(built(language="qwen2_72b"))["language"] == decoder(80, 8192, 1024, 29568, 152_064, bias_and_norms)
    assert counts(built(language="olmo_1024_preview"))["language"] == decoder(32, 4096, 4096, 11008, 100_352, 4 * 4096)


def transformer(layers, width, mlp):
    """Weights of pre-norm layers: four square matrices, two of the MLP, two norms, with biases."""
    return layers * (4 * (width**2 + width) + 2 * width * mlp + mlp + width + 4 * width)


def test_full_size_other_towers_are_their_publishers_less_last_norm_and_head():
    siglip = transformer(27, 1152, 4304) + 588 * 1152 + 1152 + 729 * 1152
    dino = transformer(24, 1024, 4096) + 24 * 2 * 1024 + 588 * 1024 + 1024 + 1370 * 1024 + 2 * 1024  # scales; CLS and mask tokens
    assert counts(built(vision_backbone="siglip", language="debug"))["vision"] == siglip
    assert counts(built(vision_backbone="dino", language="debug"))["vision"] == dino


# Independent of published.py: the layout as the facts write it.
LAYER = {
    "att_proj.weight": (4608, 3584),
    "att_proj.bias": (4608,),
    "attn_out.weight": (3584, 3584),
    "attn_norm.weight": (3584,),
    "ff_norm.weight": (3584,),
    "ff_proj.weight": (37888, 3584),
    "ff_out.weight": (3584, 18944),
}
VIT_LAYER = {f"attention.{name}": (1024, 1024) for name in ("wq", "wk", "wv", "wo")}
VIT_LAYER |= {"feed_forward.w1": (4096, 1024), "feed_forward.w2": (1024, 4096)}
VIT_NORMS = ("attention_norm", "ffn_norm")
POOLING = {"wq": (1024, 2048), "wk": (1024, 2048), "wv": (1024, 2048), "wo": (1024, 1024)}


def layout() -> dict[str, tuple[int, ...]]:
    vit, backbone = "vision_backbone.image_vit.", "vision_backbone."
    shapes = {"transformer.wte.embedding": (152064, 3584), "transformer.wte.new_embedding": (128, 3584)}
    shapes |= {"transformer.ln_f.weight": (3584,), "transformer.ff_out.weight": (152064, 3584), f"{backbone}pad_embed": (2, 2048)}
    shapes |= {f"transformer.blocks.{n}.{name}": shape for n in range(28) for name, shape in LAYER.items()}
    shapes |= {f"{vit}class_embedding": (1024,), f"{vit}positional_embedding": (577, 1024), f"{vit}patch_embedding.weight": (1024, 588)}
    shapes |= {f"{vit}pre_ln.{part}": (1024,) for part in ("weight", "bias")}
    for n in range(23):
        block = f"{vit}transformer.resblocks.{n}."
        shapes |= {f"{block}{name}.weight": shape for name, shape in VIT_LAYER.items()}
        shapes |= {f"{block}{name}.bias": shape[:1] for name, shape in VIT_LAYER.items()}
        shapes |= {f"{block}{name}.{part}": (1024,) for name in VIT_NORMS for part in ("weight", "bias")}
    for name, shape in POOLING.items():
        shapes |= {f"{backbone}image_pooling_2d.{name}.weight": shape, f"{backbone}image_pooling_2d.{name}.bias": shape[:1]}
    shapes |= {f"{backbone}image_projector.{name}.weight": (18944, 1024) for name in ("w1", "w3")}
    shapes[f"{backbone}image_projector.w2.weight"] = (3584, 18944)
    return {f"model.{name}": shape for name, shape in shapes.items()}


def test_full_size_export_has_every_published_tensor_and_none_extra(seven_b):
    assert {name: tuple(value.shape) for name, value in published.to_published(seven_b).items()} == layout()


def test_full_size_export_of_olmo_norms_after_and_has_no_bias():
    model = built(language="olmo_1024_preview")
    weights = {name.removeprefix("model."): tuple(value.shape) for name, value in published.to_published(model).items()}
    block = {name.removeprefix("transformer.blocks.31."): shape for name, shape in weights.items() if ".blocks.31." in name}
    norms = dict.fromkeys(("attn_norm.weight", "ff_norm.weight", "q_norm.weight", "k_norm.weight"), (4096,))
    shapes = {"att_proj.weight": (12288, 4096), "attn_out.weight": (4096, 4096)}
    assert block == norms | shapes | {"ff_proj.weight": (22016, 4096), "ff_out.weight": (4096, 11008)}
    assert weights["transformer.wte.embedding"] == weights["transformer.ff_out.weight"] == (100_352, 4096)
    assert weights["vision_backbone.image_projector.w1.weight"] == (11008, 1024)
    settings = published.model_settings(model)
    assert [settings[name] for name in ("norm_after", "attention_layer_norm", "qkv_bias", "rope_theta")] == [True, True, False, 5e5]


STAGES = {
    "all parts (both presets)": ("connector", "vision", "language"),
    "connector and tower": ("connector", "vision"),
    "connector alone": ("connector",),
}


LAYOUTS = (
    memory_estimate.Layout("ddp"),
    memory_estimate.Layout("fsdp", 8),
    memory_estimate.Layout("shard_grad_op", 8),
    memory_estimate.Layout("fsdp", 64),
)
PAGE = (Path(__file__).resolve().parents[3] / "docs" / "molmo.md").read_text(encoding="utf-8")


def held(model, parts, layout):
    """GB of state per rank in bf16."""
    trained = [name for part in parts for name in family.components(model)[part]]
    weights = memory_estimate.count_parameters(model, trained, trained, family.blocks(model))
    return memory_estimate.memory(weights, layout, memory_estimate.Storage.of("bf16")).total / 1e9


@pytest.mark.parametrize("language", ["qwen2_7b", "qwen2_72b", "olmo_1024_preview", "olmoe"])
def test_full_size_tables_of_the_docs_are_computed(language):
    model = built(language=language)
    sizes = [*counts(model).values(), sum(p.numel() for p in model.parameters())]
    assert f"| `{language}` + `openai` | {' | '.join(f'{size:,}' for size in sizes)} |" in PAGE
    for name, parts in STAGES.items():
        columns = [f"{held(model, parts, layout):,.1f} GB" for layout in LAYOUTS]
        assert f"| `{language}` | {name} | {' | '.join(columns)} |" in PAGE
