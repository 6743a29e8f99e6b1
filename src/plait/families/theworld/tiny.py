"""The tiny model for tests and trials: random weights, and a tokenizer trained on the run's own texts and saved with it."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, PreTrainedTokenizerFast

from plait.families.theworld.pretrained import classes, pooled
from plait.families.theworld.pretrained.encoder import WorldEncoder
from plait.families.theworld.tiny_sizes import POOLED, TINY_ENCODERS, Tiny
from plait.keys import key
from plait.nn.connectors import seeded
from plait.nn.tokenizer import train_tokenizer

# Gemma's special tokens under Gemma's names; the index in the list is the id.
SPECIAL = {
    "pad_token": "<pad>",
    "eos_token": "<eos>",
    "bos_token": "<bos>",
    "unk_token": "<unk>",
    "start_of_turn": "<start_of_turn>",
    "end_of_turn": "<end_of_turn>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
}
_ID = {name: i for i, name in enumerate(SPECIAL)}

# Gemma 3's chat format, as its own template writes it.
CHAT_TEMPLATE = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% if messages[0]['content'] is string %}\
{% set prefix = messages[0]['content'] + '\\n\\n' %}{% else %}{% set prefix = messages[0]['content'][0]['text'] + '\\n\\n' %}{% endif %}\
{% set turns = messages[1:] %}{% else %}{% set prefix = '' %}{% set turns = messages %}{% endif %}\
{% for message in turns %}{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}\
{{ prefix if loop.first else '' }}{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}\
{% for item in message['content'] %}{% if item['type'] == 'image' %}{{ '<start_of_image>' }}{% else %}{{ item['text'] | trim }}\
{% endif %}{% endfor %}\
{% endif %}{{ '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""


def gemma_sizes(tiny: Tiny) -> dict[str, Any]:
    """Return the keyword arguments of transformers' Gemma3Config for the sizes of `model.tiny`."""
    text = {
        "vocab_size": tiny.vocabulary,
        "initializer_range": tiny.initializer_range,
        "hidden_size": tiny.hidden,
        "intermediate_size": tiny.mlp,
        "num_hidden_layers": tiny.layers,
        "num_attention_heads": tiny.heads,
        "num_key_value_heads": tiny.kv_heads,
        "head_dim": tiny.head_dim,
        "query_pre_attn_scalar": tiny.head_dim,
        "sliding_window": tiny.window,
        "layer_types": ["sliding_attention" if (i + 1) % tiny.global_every else "full_attention" for i in range(tiny.layers)],
        "max_position_embeddings": tiny.positions,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": tiny.vision_hidden,
        "intermediate_size": tiny.vision_mlp,
        "num_hidden_layers": tiny.vision_layers,
        "num_attention_heads": tiny.vision_heads,
        "image_size": tiny.image_size,
        "patch_size": tiny.patch,
        "vision_use_head": False,
    }
    return {
        "text_config": text,
        "vision_config": vision,
        "mm_tokens_per_image": tiny.image_tokens,
        "boi_token_index": _ID["boi_token"],
        "eoi_token_index": _ID["eoi_token"],
        "image_token_index": _ID["image_token"],
    }


def encoder_settings(tiny: Tiny, name: str) -> dict[str, Any]:
    """Return the configuration, with its class, of the random encoder `name` of TINY_ENCODERS, by the sizes of `model.tiny`."""
    base, channels, width = tiny.world_base, tiny.world_channels, 8 * tiny.world_base
    scale = {"latents_mean": [0.0] * channels, "latents_std": [1.0] * channels}
    wan = {"base_dim": base, "z_dim": channels, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1, **scale}
    blocks = [base, 2 * base, 2 * base, 2 * base]
    transformer = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 8}
    predictor = {"pred_hidden_size": width // 2, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    sizes: dict[str, dict[str, Any]] = {
        "wan": wan,
        POOLED: wan,
        "wan2.2": {**wan, "is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16},
        "cosmos1": {
            "latent_channels": channels,
            "encoder_block_out_channels": blocks,
            "decode_block_out_channels": blocks,
            "num_layers": 1,
            **scale,
        },
        "dinov3": {**transformer, "intermediate_size": 2 * width, "num_register_tokens": 2},
        "dinov3-convnext": {"hidden_sizes": [width // 2, width], "depths": [1, 1], "layer_scale_init_value": 1.0},
        "vjepa2": {**transformer, "mlp_ratio": 2.0, "tubelet_size": 2, **predictor},
    }
    return {"_class_name": TINY_ENCODERS[name], **sizes[name]}


def gemma(settings: Gemma3Config, seed: int) -> Gemma3ForConditionalGeneration:
    """Return a random Gemma, drawn from `seed`."""
    model = seeded(key(seed, "theworld", "gemma") >> 1, lambda: Gemma3ForConditionalGeneration(settings))
    seeded(key(seed, "theworld", "image matrix") >> 1, lambda: init_image_projection(model))
    return model


def encoder(settings: dict[str, Any], name: str, image_size: int, seed: int) -> WorldEncoder:
    """Return the random world encoder `name`, drawn from `seed`; latents of a VAE have unit scale. `settings`: of `encoder_settings`."""
    model = seeded(key(seed, "theworld", "world encoder") >> 1, lambda: classes.file_of(settings).make(settings, image_size))
    if name == POOLED:
        seeded(key(seed, "theworld", "pooled kernels") >> 1, lambda: pooled.pool(model))
    if "latents_mean" in settings:
        pictures = pooled.squares if name == POOLED else _tiles
        seeded(key(seed, "theworld", "latents") >> 1, lambda: measure_latent_statistics(model, pictures()))
        settings = settings | {name: model.config[name] for name in ("latents_mean", "latents_std")}
    return classes.wrapped(model, settings, image_size)


@torch.no_grad()
def init_image_projection(gemma: Gemma3ForConditionalGeneration) -> None:
    """Initialise Gemma's image projection at random, in place, so that image tokens have the rms of the embeddings.

    Its input has rms 1, so std = rms(embeddings) / sqrt(rows) gives outputs of that rms. Transformers leaves the
    matrix zero, which gives the vision tower no gradient.
    """
    matrix = gemma.get_parameter("model.multi_modal_projector.mm_input_projection_weight")
    text = gemma.config.get_text_config()
    nn.init.normal_(matrix, std=text.initializer_range * (text.hidden_size / matrix.shape[0]) ** 0.5)


@torch.no_grad()
def measure_latent_statistics(vae: Any, pictures: Tensor) -> None:
    """Set latents_mean and latents_std of a VAE's configuration to those of its latents of `pictures`, to give them unit scale.

    `pictures` (n, 3, S, S): pixels in -1..+1.
    """
    latents = vae.encode(pictures[:, :, None]).latent_dist.mode()
    vae.register_to_config(latents_mean=latents.mean((0, 2, 3, 4)).tolist(), latents_std=latents.std((0, 2, 3, 4)).tolist())


def _tiles() -> Tensor:
    """Return pictures (16, 3, 32, 32) of random flat tiles, as pictures are smooth."""
    return torch.rand(16, 3, 4, 4).repeat_interleave(8, -1).repeat_interleave(8, -2) * 2 - 1


def write_tokenizer(folder: Path, texts: Iterable[str], rows: int) -> None:
    """Train a tokenizer of `rows` tokens on `texts` and write it to `folder`, atomically, in the format that transformers loads."""
    tokenizer = train_tokenizer(texts, rows=rows, special=list(SPECIAL.values()))
    named = {name: token for name, token in SPECIAL.items() if name.endswith("_token")}
    standard = {name: named.pop(name) for name in ("pad_token", "eos_token", "bos_token", "unk_token")}
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **standard, extra_special_tokens=named, chat_template=CHAT_TEMPLATE, padding_side="left"
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        wrapped.save_pretrained(Path(temporary) / "tokenizer")
        (Path(temporary) / "tokenizer").rename(folder)
