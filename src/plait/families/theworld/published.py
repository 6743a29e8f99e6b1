"""Configurations of published checkpoints, so that a run can be planned offline; loading the weights reads the checkpoint's own instead."""

from typing import Any

from plait.families.theworld.config import COSMOS

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

GEMMA: dict[str, dict[str, Any]] = {"google/gemma-3-4b-it": _GEMMA_3_4B, "google/gemma-3-4b-pt": _GEMMA_3_4B}
"""Configurations of published Gemma 3 models by Hub name."""

# vae/config.json of the Cosmos 2 models: 126,892,531 parameters; diffusers' defaults hold the published latents_mean and latents_std.
WAN: dict[str, dict[str, Any]] = {
    COSMOS: {"base_dim": 96, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "temperal_downsample": [False, True, True]},
}
