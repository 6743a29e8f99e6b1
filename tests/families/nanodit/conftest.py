"""A tiny transformer, woken up so that its output is not zero, and samples made of noise."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plait.families.nanodit import family
from plait.families.nanodit.config import Config

SMALL = {"depth": 2, "hidden": 32, "heads": 2, "channels": 4, "text_dim": 8, "image_dim": 6}


@pytest.fixture
def make(tmp_path):
    """`make(**model section)` gives (config, model in evaluation mode, inputs). With `woken`, gates and output are not zero."""

    def build(*, seed: int = 1, woken: bool = True, inputs: dict[str, Any] | None = None, **section: Any):
        config = Config(**{**SMALL, **section})
        model = family.build(config, tmp_path / "assets", seed=seed).eval()
        if woken:
            wake(model)
        return config, model, family.Inputs(config, tmp_path / "assets", **(inputs or {}))

    return build


@torch.no_grad()
def wake(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def sample(number: int, *, size: tuple[int, int] = (8, 8), tokens: int = 3, text: str | None = None, **arrays: Any) -> dict[str, Any]:
    """Sample `number`: latents (4, *size), `tokens` text states, image features; arrays given by name replace them, None removes."""
    random = np.random.default_rng(number)
    given = {
        "vae": random.standard_normal((4, *size)).astype(np.float32),
        "t5h": random.standard_normal((tokens, 8)).astype(np.float16),
        "dinov3": random.standard_normal(6).astype(np.float32),
        **arrays,
    }
    messages = [{"role": "assistant", "content": f"caption {number}" if text is None else text}]
    present = {name: value for name, value in given.items() if value is not None}
    return {"id": f"s{number}", "images": [], "messages": messages, "fields": {}, "arrays": present}


@pytest.fixture
def directory(tmp_path) -> Path:
    return tmp_path / "assets"
