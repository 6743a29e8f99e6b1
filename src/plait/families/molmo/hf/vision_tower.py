"""The vision tower: embeddings and transformer layers of CLIP, SigLIP or DINOv2, as transformers has them, whose outputs are features."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    PreTrainedConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from plait.families.molmo.hf.sizes import Tower

KINDS: dict[str, tuple[Any, Any]] = {
    "clip": (CLIPVisionConfig, CLIPVisionModel),
    "siglip": (SiglipVisionConfig, SiglipVisionModel),
    "dino": (Dinov2Config, Dinov2Model),
}


class VisionTower(nn.Module):
    """An image encoder: embeddings and layers of `model` (transformers' CLIP, SigLIP, DINOv2). Outputs of two layers are the features."""

    def __init__(self, model: Any, tower: Tower):
        super().__init__()
        self.tower = tower
        self.embeddings: nn.Module = model.embeddings
        self.pre_norm: nn.Module | None = model.pre_layrnorm if tower.kind == "clip" else None
        stack = model.encoder.layer if tower.kind == "dino" else model.encoder.layers
        self.layers = nn.ModuleList(stack[: tower.layers])
        self.prefix = 0 if tower.kind == "siglip" else 1  # CLS stands before the patches
        self.feature_layers = [tower.layers + layer for layer in tower.features]

    def forward(self, crops: Tensor) -> Tensor:
        """Encode uint8 crops (n, 3, S, S) to features (n, p * p, 2 * hidden). There are p patches a side, and no CLS."""
        unit = crops.float() / 255
        mean, std = (torch.cat([unit.new_full((1, 1, 1), value) for value in values]) for values in (self.tower.mean, self.tower.std))
        x = self.embeddings(((unit - mean) / std).to(next(self.embeddings.parameters()).dtype))
        x = x if self.pre_norm is None else self.pre_norm(x)
        outputs = []
        for layer in self.layers[: max(self.feature_layers) + 1]:
            x = layer(x, None)
            outputs.append(x)
        return torch.cat([outputs[i] for i in self.feature_layers], dim=-1)[:, self.prefix :]

    def unused(self) -> list[nn.Parameter]:
        """Return the parameters that get no gradient, as no feature depends on them: layers above the last used, DINO's mask token."""
        unused = [p for layer in self.layers[max(self.feature_layers) + 1 :] for p in layer.parameters()]
        return unused + [p for name, p in self.embeddings.named_parameters() if name == "mask_token"]


def vision_config(tower: Tower) -> PreTrainedConfig:
    """Return the transformers configuration that builds a tower of the table TOWERS."""
    shared: dict[str, Any] = {"hidden_size": tower.hidden, "num_hidden_layers": tower.layers, "num_attention_heads": tower.heads}
    shared |= {"patch_size": tower.patch, "hidden_act": tower.act, "layer_norm_eps": tower.eps, "image_size": tower.positions * tower.patch}
    if tower.kind == "dino":
        return Dinov2Config(**shared, mlp_ratio=tower.mlp // tower.hidden)
    config_class: Callable[..., PreTrainedConfig] = KINDS[tower.kind][0]
    return config_class(**shared, intermediate_size=tower.mlp, **({"vision_use_head": False} if tower.kind == "siglip" else {}))
