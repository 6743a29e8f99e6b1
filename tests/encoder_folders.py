"""Folders of pretrained encoders for tests, small and random: each function writes one and returns its model."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import DINOv3ViTConfig, DINOv3ViTModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel


def write_vae(folder: Path) -> AutoencoderKL:
    """4 channels, 2 pixels along a side of a latent."""
    torch.manual_seed(0)
    blocks = {"block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    model = AutoencoderKL(**blocks, latent_channels=4, norm_num_groups=4, sample_size=16, scaling_factor=0.5, shift_factor=0.1)
    model.save_pretrained(folder)
    return model.eval()


def write_t5(folder: Path) -> T5EncoderModel:
    """States of width 16, and ten words."""
    torch.manual_seed(0)
    words = ["<pad>", "</s>", "<unk>", "a", "red", "dog", "left", "of", "blue", "cat"]
    fast = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    model = T5EncoderModel(T5Config(vocab_size=10, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4))
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return model.eval()


def write_dino(folder: Path, registers: int = 4) -> DINOv3ViTModel:
    """Vectors of width 32, trained at 32 pixels a side."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32}
    model = DINOv3ViTModel(DINOv3ViTConfig(**sizes, num_register_tokens=registers)).eval()
    model.save_pretrained(folder)
    return model
