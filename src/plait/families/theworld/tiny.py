"""The tiny model for tests and trials: random weights, and a tokenizer trained on the run's own texts and saved with it."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import nn
from transformers import Gemma3ForConditionalGeneration, PreTrainedTokenizerFast

from plait.families.theworld.config import Tiny
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


def wan_sizes(tiny: Tiny) -> dict[str, Any]:
    """Return the keyword arguments of diffusers' AutoencoderKLWan for the sizes of `model.tiny`."""
    channels = tiny.world_channels
    sizes = {"base_dim": tiny.world_base, "z_dim": channels, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}
    return {**sizes, "latents_mean": [0.0] * channels, "latents_std": [1.0] * channels}


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
def measure_latent_statistics(vae: AutoencoderKLWan) -> None:
    """Set latents_mean and latents_std of the VAE's configuration to those of its latents of random images, to give them unit scale."""
    picture = torch.rand(16, 3, 4, 4).repeat_interleave(8, -1).repeat_interleave(8, -2) * 2 - 1  # flat tiles, as pictures are smooth
    latents = vae.encode(picture[:, :, None]).latent_dist.mode()
    vae.register_to_config(latents_mean=latents.mean((0, 2, 3, 4)).tolist(), latents_std=latents.std((0, 2, 3, 4)).tolist())


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
