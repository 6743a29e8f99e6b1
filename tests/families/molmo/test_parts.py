"""Parts given as directories: another causal language model, and a tower's weights, as transformers saved them."""

from dataclasses import replace

import pytest
import torch
from transformers import CLIPVisionModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from plait.errors import PlaitError
from plait.families.molmo import family
from plait.families.molmo.config import TOWERS, Config
from plait.families.molmo.generate import CachedMolmo
from plait.families.molmo.hf import vision_tower
from plait.nn.decoding import decode
from tests.families.molmo.conftest import sample
from tests.families.molmo.test_generate import recomputed, restless

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture
def language(directory, tmp_path):
    """Saves a small language model of a kind, with the debug tokenizer beside it."""

    def save(kind, config, **more):
        torch.manual_seed(0)
        kind(config(vocab_size=600, bos_token_id=0, eos_token_id=0, **SIZES, **more)).save_pretrained(tmp_path / "lm")
        (tmp_path / "lm/tokenizer.json").write_bytes((directory / "tokenizer/tokenizer.json").read_bytes())
        config = Config(language=str(tmp_path / "lm"), vision_backbone="debug", overlap=2, style="none")
        return family.build(config, directory, seed=1).eval(), family.Inputs(config, directory)

    return save


@pytest.mark.parametrize(
    ("kind", "config", "more"),
    [(LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}), (MistralForCausalLM, MistralConfig, {"sliding_window": 5})],
)
def test_any_causal_language_model_answers_alike_with_and_without_its_cache(language, kind, config, more):
    model, inputs = language(kind, config, **more)
    batch = inputs.collate([inputs.prompt(sample(1))], left=True)
    tokens = decode(CachedMolmo(restless(model), batch), max_new_tokens=[6], stops=frozenset({-1}))
    assert tokens == [recomputed(model, inputs, sample(1), 6)]


def test_a_tower_from_a_directory_has_its_weights_but_not_its_last_layer(directory, tmp_path):
    sizes = vision_tower.vision_config(TOWERS["debug"])
    sizes.num_hidden_layers = 4
    saved = CLIPVisionModel(sizes)
    saved.save_pretrained(tmp_path / "clip")
    model = family.build(Config(language="debug", vision_source=str(tmp_path / "clip")), directory, seed=1)
    assert len(model.vision.layers) == 3
    assert torch.equal(model.vision.layers[2].mlp.fc1.weight, saved.encoder.layers[2].mlp.fc1.weight)


def test_a_tower_of_other_sizes_is_refused(directory, tmp_path):
    CLIPVisionModel(vision_tower.vision_config(replace(TOWERS["debug"], hidden=64))).save_pretrained(tmp_path / "clip")
    with pytest.raises(PlaitError, match=r"vision_backbone debug wants \{'hidden_size': 96"):
        family.build(Config(language="debug", vision_source=str(tmp_path / "clip")), directory, seed=1)


def test_a_tower_with_fewer_positions_than_a_crop_has_patches_is_refused(directory, tmp_path):
    CLIPVisionModel(vision_tower.vision_config(replace(TOWERS["debug"], positions=5))).save_pretrained(tmp_path / "clip")
    with pytest.raises(PlaitError, match=r"has \{.*'patches of a side': 5\} and 3 layers; .* wants \{.*'patches of a side': 8\}"):
        family.build(Config(language="debug", vision_source=str(tmp_path / "clip")), directory, seed=1)


@torch.no_grad()
def test_tower_features_are_those_of_transformers(directory):
    sizes = vision_tower.vision_config(TOWERS["debug"])
    torch.manual_seed(0)
    whole = CLIPVisionModel(sizes).eval()
    tower = vision_tower.VisionTower(whole, TOWERS["debug"])
    crops = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (TOWERS["debug"].mean, TOWERS["debug"].std))
    states = whole((crops / 255 - mean) / std, output_hidden_states=True).hidden_states
    assert torch.allclose(tower(crops), torch.cat([states[-1], states[-2]], -1)[:, 1:], atol=1e-6)
