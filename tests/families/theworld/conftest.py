"""A tiny model with its tokenizer, made once, and samples made of noise pictures."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from plait.families.theworld import family
from plait.families.theworld.benchmarks.judge import judge
from plait.families.theworld.config import Config

TEXTS = ["What is this?", "a small green frog", "a cat on a mat", "Where is it?", "left of the red square", "You are terse."] * 20


@pytest.fixture(scope="session")
def directory(tmp_path_factory) -> Path:
    """A run's directory with the tokenizer trained on TEXTS."""
    folder = tmp_path_factory.mktemp("theworld")
    family.prepare(Config(base="tiny"), folder, lambda: TEXTS)
    return folder


@pytest.fixture(scope="session")
def make(directory):
    """`make(**model section)` gives (config, fresh model in evaluation mode, inputs)."""

    def build(*, seed: int = 1, inputs: dict[str, Any] | None = None, **section: Any):
        config = Config(**{"base": "tiny", **section})
        return config, family.build(config, directory, seed=seed).eval(), family.Inputs(config, directory, **(inputs or {}))

    return build


def is_correct(answer: str, gold: str, fields: dict[str, Any], question: str = "") -> bool:
    return judge(answer, gold, fields, question).correct


def photo(number: int, size: tuple[int, int] = (40, 28)) -> bytes:
    """A PNG of coloured tiles, (width, height) pixels, another for each number."""
    tiles = np.random.default_rng(number).integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
    return encoded(Image.fromarray(tiles.repeat(4, 0).repeat(4, 1)))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def sample(*pictures: int, ask: str = "What is this?", say: str = "a small green frog", **more: Any) -> dict[str, Any]:
    """A one-turn sample with these pictures."""
    messages = [{"role": "user", "content": ask}, {"role": "assistant", "content": say}]
    return {"id": f"{pictures}", "images": [photo(number) for number in pictures], "messages": messages, "fields": {}, **more}


@torch.no_grad()
def talkative(model):
    """Let the layers outweigh the word just said: the tied head of a random model repeats it for ever."""
    for name, value in model.named_parameters():
        if "post_" in name and "layernorm" in name and "language_model" in name:
            value.fill_(20.0)
