"""An export at full size, on the meta device: files, index, names, shapes, types, and what transformers builds. No network or weights."""

import json
from collections import Counter

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from transformers import Qwen2Config

from plait.families.molmo import export, family, towers
from plait.families.molmo.config import TOWERS, Config
from plait.families.molmo.hf.configuration_plait_molmo import PlaitMolmoConfig
from plait.families.molmo.hf.modeling_plait_molmo import PlaitMolmoForConditionalGeneration
from tests.families.theworld.test_full_size_export import write_without_values

# Independent of the code: one layer of Qwen2-7B and of CLIP ViT-L/14, and the connector of the published Molmo-7B-D
LAYER = {"mlp.gate_proj.weight": (18944, 3584), "mlp.up_proj.weight": (18944, 3584), "mlp.down_proj.weight": (3584, 18944)}
LAYER |= {"self_attn.q_proj.weight": (3584, 3584), "self_attn.o_proj.weight": (3584, 3584), "self_attn.q_proj.bias": (3584,)}
LAYER |= {f"self_attn.{name}_proj.{part}": (512, 3584)[: 2 - (part == "bias")] for name in "kv" for part in ("weight", "bias")}
LAYER |= {f"{name}_layernorm.weight": (3584,) for name in ("input", "post_attention")}
VISION = {f"self_attn.{name}_proj": (1024, 1024) for name in ("q", "k", "v", "out")} | {"mlp.fc1": (4096, 1024), "mlp.fc2": (1024, 4096)}
POOLING = {"wq": (1024, 2048), "wk": (1024, 2048), "wv": (1024, 2048), "wo": (1024, 1024)}
CONNECTOR = {"projector.w1.weight": (18944, 1024), "projector.w3.weight": (18944, 1024), "projector.w2.weight": (3584, 18944)}
CONNECTOR |= {f"pooling.{name}.weight": shape for name, shape in POOLING.items()} | {f"pooling.{name}.bias": (1024,) for name in POOLING}
CONNECTOR |= {"pad_embed": (2, 2048), "new_embedding": (128, 3584)}
CODE = ("configuration_plait_molmo", "connector", "image_processing_plait_molmo", "modeling_plait_molmo", "processing_plait_molmo")
CODE += ("resizing", "rgb", "sizes", "tiling", "vision_tower")
BESIDE = ("config", "generation_config", "preprocessor_config", "processor_config", "tokenizer", "tokenizer_config")


def layout() -> dict[str, tuple[int, ...]]:
    words, tower = "language.model.", "vision."
    shapes = {
        f"{words}embed_tokens.weight": (152_064, 3584),
        f"{words}norm.weight": (3584,),
        "language.lm_head.weight": (152_064, 3584),
    }
    shapes |= {f"{words}layers.{n}.{name}": shape for n in range(28) for name, shape in LAYER.items()}
    shapes |= {f"{tower}embeddings.class_embedding": (1024,), f"{tower}embeddings.position_embedding.weight": (577, 1024)}
    shapes |= {f"{tower}embeddings.patch_embedding.weight": (1024, 3, 14, 14)}
    norms = [f"{tower}pre_norm", *(f"{tower}layers.{n}.layer_norm{i}" for n in range(23) for i in (1, 2))]
    shapes |= {f"{norm}.{part}": (1024,) for norm in norms for part in ("weight", "bias")}
    for n in range(23):
        shapes |= {f"{tower}layers.{n}.{name}.weight": shape for name, shape in VISION.items()}
        shapes |= {f"{tower}layers.{n}.{name}.bias": shape[:1] for name, shape in VISION.items()}
    return shapes | {f"connector.{name}": shape for name, shape in CONNECTOR.items()}


@pytest.fixture
def exported(directory, tmp_path, monkeypatch):
    """`exported(**model section)` writes a model of the meta device in bfloat16, with the tokenizer of a tiny one."""

    def write(**section):
        config = Config(**section)
        with torch.device("meta"):
            model = family.build(config, None, seed=0).to(torch.bfloat16)
        monkeypatch.setattr(safetensors.torch, "save_file", write_without_values)
        monkeypatch.setattr(towers, "load_tokenizer", lambda *given: tiny)
        export.write_hf(model, config, directory, tmp_path / config.vision_backbone)
        return tmp_path / config.vision_backbone, model

    tiny = towers.load_tokenizer(Config(language="debug"), directory)
    return write


def test_a_full_size_export_has_its_files_names_shapes_and_types(exported):
    out, _ = exported(language="qwen2_7b")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    weights = sorted(path.name for path in out.glob("*.safetensors"))
    others = {*(f"{name}.py" for name in CODE), *(f"{name}.json" for name in BESIDE), "chat_template.jinja", "model.safetensors.index.json"}
    assert {path.name for path in out.iterdir()} == {*weights, *others}
    assert index["metadata"]["total_size"] == 2 * 8_021_025_280 == sum(2 * torch.Size(shape).numel() for shape in layout().values())
    assert Counter(index["weight_map"].values()).keys() == set(weights) == {f"model-0000{n}-of-00004.safetensors" for n in (1, 2, 3, 4)}
    shapes = {}
    for name in weights:
        assert (out / name).stat().st_size < 5.001e9
        with safe_open(out / name, "pt") as file:
            for tensor in file.keys():  # noqa: SIM118  no mapping
                part = file.get_slice(tensor)
                assert (index["weight_map"][tensor], part.get_dtype()) == (name, "BF16")
                shapes[tensor] = tuple(part.get_shape())
    assert shapes == layout()
    settings = json.loads((out / "config.json").read_text())
    assert (settings["image_token_id"], settings["connector_hidden"], settings["dtype"]) == (152_066, 18_944, "bfloat16")
    assert (settings["text_config"]["num_hidden_layers"], settings["vision_config"]["num_hidden_layers"]) == (28, 23)
    assert (settings["tower"]["features"], settings["vision_config"]["image_size"]) == ([-2, -9], 336)


@pytest.mark.parametrize("backbone", [name for name in TOWERS if name != "debug"])
def test_transformers_builds_every_tower_as_it_was_exported(exported, backbone):
    out, model = exported(language="debug", vision_backbone=backbone)
    config = PlaitMolmoConfig.from_pretrained(out)
    assert isinstance(config.text_config, Qwen2Config) and config.dtype == torch.bfloat16
    with torch.device("meta"):
        theirs = PlaitMolmoForConditionalGeneration(config)
    assert {name: value.shape for name, value in theirs.named_parameters()} == {name: p.shape for name, p in model.named_parameters()}
    assert (config.image_token_id, theirs.rows, config.connector_hidden) == (770, 768, 256)
    assert theirs.vision.feature_layers == model.vision.feature_layers
