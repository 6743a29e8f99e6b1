"""Configurations of published checkpoints by Hub name, so that a run can be planned offline: of world encoders, and of Gemma 3.

Loading the weights reads the checkpoint's own configuration instead.
"""

from typing import Any

from plait.errors import PlaitError

COSMOS = "nvidia/Cosmos-Predict2-2B-Video2World"
"""Hub name of the default world encoder, of which only the `vae` folder is fetched (507 MB in float32)."""

# config.json of google/gemma-3-4b-it: 4,300,079,472 parameters.
_GEMMA_3_4B: dict[str, Any] = {
    "dtype": "bfloat16",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262_208,
        "sliding_window": 1024,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 896,
        "patch_size": 14,
        "vision_use_head": False,
    },
    "mm_tokens_per_image": 256,
    "boi_token_index": 255_999,
    "eoi_token_index": 256_000,
    "image_token_index": 262_144,
    "tie_word_embeddings": True,
}

_GEMMA: dict[str, dict[str, Any]] = {"google/gemma-3-4b-it": _GEMMA_3_4B, "google/gemma-3-4b-pt": _GEMMA_3_4B}

# vae/config.json of the Cosmos 2 models: 126,892,531 parameters; diffusers' defaults hold the published latents_mean and latents_std.
_WAN_2_1: dict[str, Any] = {
    "_class_name": "AutoencoderKLWan",
    "base_dim": 96,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
}

# fmt: off
_WAN_2_2: dict[str, Any] = {  # vae/config.json of Wan-AI/Wan2.2-TI2V-5B-Diffusers
    **_WAN_2_1, "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "in_channels": 12, "out_channels": 12,
    "patch_size": 2, "scale_factor_temporal": 4, "scale_factor_spatial": 16,
    "latents_mean": [
        -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
        0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
        -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
        -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
    ],
    "latents_std": [
        0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
        0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
        0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
        0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
    ],
}
# fmt: on

_COSMOS_1: dict[str, Any] = {"_class_name": "AutoencoderKLCosmos"}  # the tokenizer CV8x8x8, which diffusers' defaults describe

_DINOV3_VIT: dict[str, Any] = {"_class_name": "DINOv3ViTModel", "patch_size": 16, "num_register_tokens": 4, "image_size": 224}
_DINOV3_CONVNEXT: dict[str, Any] = {"_class_name": "DINOv3ConvNextModel", "image_size": 224}
_VJEPA_2: dict[str, Any] = {"_class_name": "VJEPA2Model", "patch_size": 16, "tubelet_size": 2, "crop_size": 256}


def _vit(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}


_ENCODERS: dict[str, dict[str, Any]] = {
    COSMOS: _WAN_2_1,
    "nvidia/Cosmos-Predict2-14B-Video2World": _WAN_2_1,
    "nvidia/Cosmos-Predict2.5-2B": _WAN_2_1,
    "nvidia/Cosmos-Predict2.5-14B": _WAN_2_1,
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": _WAN_2_1,
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": _WAN_2_2,
    "nvidia/Cosmos-1.0-Diffusion-7B-Video2World": _COSMOS_1,
    "facebook/dinov3-vits16-pretrain-lvd1689m": {**_DINOV3_VIT, **_vit(384, 12, 6), "intermediate_size": 1536},
    "facebook/dinov3-vitb16-pretrain-lvd1689m": {**_DINOV3_VIT, **_vit(768, 12, 12), "intermediate_size": 3072},
    "facebook/dinov3-vitl16-pretrain-lvd1689m": {**_DINOV3_VIT, **_vit(1024, 24, 16), "intermediate_size": 4096},
    "facebook/dinov3-convnext-tiny-pretrain-lvd1689m": {
        **_DINOV3_CONVNEXT,
        "hidden_sizes": [96, 192, 384, 768],
        "depths": [3, 3, 9, 3],
    },
    "facebook/dinov3-convnext-base-pretrain-lvd1689m": {
        **_DINOV3_CONVNEXT,
        "hidden_sizes": [128, 256, 512, 1024],
        "depths": [3, 3, 27, 3],
    },
    "facebook/vjepa2-vitl-fpc64-256": {**_VJEPA_2, **_vit(1024, 24, 16)},
    "facebook/vjepa2-vith-fpc64-256": {**_VJEPA_2, **_vit(1280, 32, 16)},
}
"""Configurations of published world encoders, and of their controls, by Hub name; diffusers and transformers know the rest of them."""
_REVISIONS = dict.fromkeys(("nvidia/Cosmos-Predict2.5-2B", "nvidia/Cosmos-Predict2.5-14B"), "diffusers/base/post-trained")
"""Where a repository has its diffusers folders; its main branch has NVIDIA's own files, and no `vae`."""


def gemma(name: str) -> dict[str, Any] | None:
    """Return the configuration of a published Gemma 3 by its Hub name; None for another name."""
    return _GEMMA.get(name)


def encoder(name: str) -> dict[str, Any] | None:
    """Return the configuration of a published encoder by its Hub name, with its class, `_class_name`; None for another name."""
    return _ENCODERS.get(name)


def check_branch(name: str, revision: str | None, setting: str, cure: str) -> None:
    """Raise PlaitError where a published pipeline is in another branch than `revision`. `setting`, `cure`: how the message begins, ends."""
    branch = _REVISIONS.get(name)
    if branch is not None and revision in (None, "main"):
        raise PlaitError(f"{setting}{name} has its diffusers folders in another branch: {cure}{branch}")
