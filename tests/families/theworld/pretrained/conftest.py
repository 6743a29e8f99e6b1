"""Small random models of each class of encoder, saved as their libraries save them, for a configuration that names the directory."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLCosmos, AutoencoderKLWan
from transformers import DINOv3ConvNextConfig, DINOv3ConvNextModel, DINOv3ViTConfig, DINOv3ViTModel, VJEPA2Config, VJEPA2Model

MEAN, STD = [0.1, -0.2, 0.3, 0.0], [0.5, 1.0, 2.0, 1.5]
COLOURS = {"image_mean": [0.43, 0.411, 0.296], "image_std": [0.213, 0.156, 0.143]}  # of the satellite models of DINOv3
_TRANSFORMER = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 8}


def wan21():
    return AutoencoderKLWan(base_dim=8, z_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1, latents_mean=MEAN, latents_std=STD)


def wan22():
    channels = {"in_channels": 12, "out_channels": 12, "is_residual": True, "patch_size": 2, "scale_factor_spatial": 16}
    sizes = {"base_dim": 8, "decoder_base_dim": 4, "z_dim": 4, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}
    return AutoencoderKLWan(**sizes, **channels, latents_mean=MEAN, latents_std=STD)


def cosmos1():
    blocks = (8, 16, 16, 16)
    sizes = {"latent_channels": 4, "encoder_block_out_channels": blocks, "decode_block_out_channels": blocks, "num_layers": 1}
    random = torch.Generator().manual_seed(8)
    frames = {"latents_mean": torch.randn(4 * 3, generator=random).tolist(), "latents_std": torch.rand(4 * 3, generator=random).tolist()}
    return AutoencoderKLCosmos(**sizes, **frames)


def dinov3():
    return DINOv3ViTModel(DINOv3ViTConfig(**_TRANSFORMER, intermediate_size=96, num_register_tokens=3))


def convnext():
    return DINOv3ConvNextModel(DINOv3ConvNextConfig(hidden_sizes=[16, 24], depths=[1, 2], layer_scale_init_value=1.0))


def vjepa2():
    predictor = {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    return VJEPA2Model(VJEPA2Config(**_TRANSFORMER, **predictor, mlp_ratio=2.0, crop_size=32, tubelet_size=2))


MODELS = {make.__name__: make for make in (wan21, wan22, cosmos1, dinov3, convnext, vjepa2)}


def saved(folder: Path, name: str) -> tuple[torch.nn.Module, str]:
    """(a random model of this name in evaluation mode, the directory that it is saved in): of a VAE the pipeline's."""
    torch.manual_seed(3)
    model = MODELS[name]().eval()
    if name in ("wan21", "wan22", "cosmos1"):
        model.save_pretrained(folder / name / "vae")
    else:
        model.save_pretrained(folder / name)
        file = "video_preprocessor_config.json" if name == "vjepa2" else "preprocessor_config.json"
        (folder / name / file).write_text(json.dumps({**COLOURS, "do_rescale": True, "rescale_factor": 1 / 255}))
    return model, str(folder / name)


@pytest.fixture
def stored(tmp_path):
    return lambda name: saved(tmp_path, name)
