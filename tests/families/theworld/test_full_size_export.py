"""An export at full size, on the meta device: files, index, names, shapes and types of the published base. No network, no weights."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers.modeling_utils
from safetensors import safe_open
from transformers import Gemma3Config

from plait.families.theworld import export, family, towers
from plait.families.theworld.config import COSMOS, Config
from plait.families.theworld.hf import encoder_weights
from plait.families.theworld.hf.configuration import TheWorldConfig
from plait.families.theworld.hf.modeling import TheWorldForConditionalGeneration
from plait.families.theworld.pretrained import published

BASE = "google/gemma-3-4b-it"
BESIDE = ("added_tokens.json", "chat_template.json", "preprocessor_config.json", "processor_config.json", "special_tokens_map.json")
BESIDE += ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
WEIGHTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json")

# Independent of transformers: the layout as the base is published.
LAYER = {f"{name}_layernorm.weight": (2560,) for name in ("input", "post_attention", "pre_feedforward", "post_feedforward")}
LAYER |= {"mlp.gate_proj.weight": (10240, 2560), "mlp.up_proj.weight": (10240, 2560), "mlp.down_proj.weight": (2560, 10240)}
LAYER |= {"self_attn.q_proj.weight": (2048, 2560), "self_attn.k_proj.weight": (1024, 2560), "self_attn.v_proj.weight": (1024, 2560)}
LAYER |= {"self_attn.o_proj.weight": (2560, 2048), "self_attn.q_norm.weight": (256,), "self_attn.k_norm.weight": (256,)}
VISION = {f"self_attn.{name}_proj": (1152, 1152) for name in ("q", "k", "v", "out")} | {"mlp.fc1": (4304, 1152), "mlp.fc2": (1152, 4304)}


def layout() -> dict[str, tuple[int, ...]]:
    words, tower = "language_model.model.", "vision_tower.vision_model."
    shapes = {f"{words}embed_tokens.weight": (262_208, 2560), f"{words}norm.weight": (2560,)}
    shapes |= {f"{words}layers.{n}.{name}": shape for n in range(34) for name, shape in LAYER.items()}
    shapes |= {f"{tower}embeddings.patch_embedding.weight": (1152, 3, 14, 14), f"{tower}embeddings.patch_embedding.bias": (1152,)}
    shapes |= {f"{tower}embeddings.position_embedding.weight": (4096, 1152)}
    norms = [f"{tower}post_layernorm", *(f"{tower}encoder.layers.{n}.layer_norm{i}" for n in range(27) for i in (1, 2))]
    shapes |= {f"{norm}.{part}": (1152,) for norm in norms for part in ("weight", "bias")}
    for n in range(27):
        shapes |= {f"{tower}encoder.layers.{n}.{name}.weight": shape for name, shape in VISION.items()}
        shapes |= {f"{tower}encoder.layers.{n}.{name}.bias": shape[:1] for name, shape in VISION.items()}
    return shapes | {
        "multi_modal_projector.mm_input_projection_weight": (1152, 2560),
        "multi_modal_projector.mm_soft_emb_norm.weight": (1152,),
    }


def write_without_values(tensors, filename, metadata=None):
    """Write a safetensors file whose values are a hole, which takes no space on the disk: header and length are those of the tensors."""
    header, end = {"__metadata__": metadata} if metadata else {}, 0
    for name, value in tensors.items():
        assert value.is_meta
        start, end = end, end + value.numel() * value.element_size()
        header[name] = {
            "dtype": {torch.bfloat16: "BF16", torch.float32: "F32"}[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    with Path(filename).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


@pytest.fixture
def base(directory, tmp_path) -> Path:
    """A folder with the base's configuration and processor files."""
    base = tmp_path / "base"
    shutil.copytree(directory / towers.TOKENIZER, base)
    for name in BESIDE:
        if not (base / name).exists():
            (base / name).write_text("{}")
    Gemma3Config(**{**published.gemma(BASE), "dtype": "bfloat16"}).save_pretrained(base)
    return base


@pytest.fixture
def exported(base, directory, tmp_path, monkeypatch) -> Path:
    """The export of a model on the meta device."""
    with torch.device("meta"):
        model = family.build(Config(base=str(base), world="off"), None, seed=0)
    monkeypatch.setattr(safetensors.torch, "save_file", write_without_values)
    export.write_hf(model, Config(base=str(base), world="off"), directory, tmp_path / "out")
    return tmp_path / "out"


def test_a_full_size_export_has_the_files_names_shapes_and_types_of_the_published_base(exported):
    assert {path.name for path in exported.iterdir()} - {"chat_template.jinja"} == {
        "config.json",
        "generation_config.json",
        *WEIGHTS,
        *BESIDE,
    }
    index = json.loads((exported / WEIGHTS[-1]).read_text())
    assert index["metadata"]["total_size"] == 8_600_158_944
    assert index["weight_map"].keys() == layout().keys()
    shapes = {}
    for name in WEIGHTS[:2]:
        with safe_open(exported / name, "pt") as file:
            for tensor in file.keys():  # noqa: SIM118  no mapping
                part = file.get_slice(tensor)
                assert (index["weight_map"][tensor], part.get_dtype()) == (name, "BF16")
                shapes[tensor] = tuple(part.get_shape())
    assert shapes == layout()
    assert [round((exported / name).stat().st_size / 1e9, 2) for name in WEIGHTS[:2]] == [4.96, 3.64]


def test_gemma_is_imported_by_its_published_names_and_by_those_of_transformers():
    with torch.device("meta"):
        model = family.build(Config(world="off"), None, seed=0)
    named = {name for name, _ in model.named_parameters()}
    nested = ["model." + name.replace("language_model.model.", "language_model.") for name in layout()]
    for names in (layout(), nested, [name.replace("vision_model.", "") for name in layout()]):
        assert export.imported(dict.fromkeys(names), model).keys() == named


PIN = {"source": COSMOS, "revision": "0123456789abcdef0123456789abcdef01234567", "xxh3": "0123456789abcdef"}
PROJECTOR = {"projector.connector.first.weight": (2560, 16), "projector.connector.first.bias": (2560,), "projector.brackets": (2, 2560)}
PROJECTOR |= {"projector.connector.second.weight": (2560, 2560), "projector.connector.second.bias": (2560,), "projector.steps": (17, 2560)}


def as_here(name):
    """Our name of one of the published base: of a module of transformers inside the whole model."""
    name = name.replace("language_model.model.", "language_model.").replace("vision_tower.vision_model.", "vision_tower.")
    return f"gemma.model.{name}"


def test_a_full_size_whole_export_holds_gemma_the_projector_and_the_pin(base, directory, tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.modeling_utils, "safe_save_file", write_without_values)
    monkeypatch.setattr(encoder_weights, "pin_of", lambda *_: PIN)
    monkeypatch.setattr(encoder_weights, "fits", lambda *_: True)
    config = Config(base=str(base), world={"steps": 1})
    with torch.device("meta"):
        model = family.build(config, None, seed=0)
    model.to(torch.bfloat16)
    torch.nn.Module.to(model.projector, torch.float32)
    export.write_whole(model, config, directory, tmp_path / "out")
    index = json.loads((tmp_path / "out" / WEIGHTS[-1]).read_text())["weight_map"]
    shapes = {}
    for name in WEIGHTS[:2]:
        with safe_open(tmp_path / "out" / name, "pt") as file:
            for tensor in file.keys():  # noqa: SIM118  no mapping
                part = file.get_slice(tensor)
                assert (index[tensor], part.get_dtype()) == (name, "F32" if tensor.startswith("projector.") else "BF16")
                shapes[tensor] = tuple(part.get_shape())
    assert shapes == {as_here(name): shape for name, shape in layout().items()} | PROJECTOR
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert settings.keys() >= {"model_type", "architectures", "dtype", "gemma_config", "section", "encoder_config", "encoder_pin"}
    assert (settings["model_type"], settings["encoder_pin"], settings["dtype"]) == ("theworld", PIN, "bfloat16")
    assert settings["gemma_config"]["text_config"]["num_hidden_layers"] == 34 and settings["section"]["world"]["steps"] == 1
    assert len(settings["encoder_config"]["latents_mean"]) == settings["encoder_config"]["z_dim"] == 16
    grid = {"name": "AutoencoderKLWan", "channels": 16, "side": 64, "first": 1, "later": 4, "most": None}
    sizes = json.loads((tmp_path / "out" / "processor_config.json").read_text())["sizes"]
    assert sizes == {"image_size": 896, "image_tokens": 256, "positions": 131_072, "grid": grid}
    with torch.device("meta"):
        again = TheWorldForConditionalGeneration(TheWorldConfig.from_pretrained(tmp_path / "out"))
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
