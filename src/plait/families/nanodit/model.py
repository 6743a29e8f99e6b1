"""Build the model, draw its first weights, and name its parts. The network itself is in network.py. `assets` is not used."""

from pathlib import Path

import torch
from torch import nn

from plait.families.nanodit.config import Config
from plait.families.nanodit.network.transformer import NanoDiT
from plait.keys import key
from plait.nn.connectors import seeded


def build(config: Config, assets: Path, *, seed: int) -> NanoDiT:
    """Return the model with weights drawn from `seed`, or without weights under `torch.device('meta')`. `assets` is not used."""

    def make() -> NanoDiT:
        model = NanoDiT(config.shape)
        initialise(model)
        return model

    return seeded(key(seed, "nanodit") >> 1, make)


@torch.no_grad()
def initialise(model: NanoDiT) -> None:
    """Initialise the weights in place: Xavier for linear layers, zeros for biases, for all modulation and for the output layer.

    The layers of the time and the learned vectors that stand for an absent caption or image are drawn from N(0, 0.02^2). At first the
    output is exactly 0 and each block the identity, so the first loss is E[target^2]: 1 + E[x0^2] for a velocity (x0: the clean sample).
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    conditioning = model.conditioning
    for vector in (conditioning.time_in.weight, conditioning.time_out.weight, conditioning.null_text):
        nn.init.normal_(vector, std=0.02)
    if conditioning.sees_image:
        nn.init.normal_(conditioning.null_image, std=0.02)
    for name, parameter in model.named_parameters():
        if ".modulation." in name or name.startswith("final.out."):
            nn.init.zeros_(parameter)


def components(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """Group the parameters by top-level module: {'embed': {name: parameter}, 'conditioning', 'blocks', 'final', maybe 'text'}."""
    groups: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault(name.partition(".")[0], {})[name] = parameter
    return groups


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the transformer blocks: the units that are sharded, recomputed in the backward pass and compiled one by one."""
    assert isinstance(model, NanoDiT)
    return list(model.blocks)
