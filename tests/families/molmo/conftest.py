"""A debug model with its tokenizer, made once, and samples made of noise pictures."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plait.families.molmo import family
from plait.families.molmo.config import Config

TEXTS = ["What is this?", "a small green frog", "a cat on a mat", "Where is it?", "left of the red square", "two dogs"] * 20


@pytest.fixture(scope="session")
def directory(tmp_path_factory) -> Path:
    """A run's directory with the tokenizer trained on TEXTS."""
    folder = tmp_path_factory.mktemp("molmo")
    family.prepare(Config(language="debug"), folder, lambda: TEXTS)
    return folder


@pytest.fixture(scope="session")
def make(directory):
    """`make(**model section)` gives (config, fresh model in evaluation mode, inputs)."""

    def build(*, seed: int = 1, inputs: dict[str, Any] | None = None, **section: Any):
        config = Config(**{"language": "debug", "style": "none", **section})
        return config, family.build(config, directory, seed=seed).eval(), family.Inputs(config, directory, **(inputs or {}))

    return build


def photo(number: int, size: tuple[int, int] = (64, 48)) -> bytes:
    """A PNG of noise, (width, height) pixels, another for each number."""
    tiles = np.random.default_rng(number).integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(tiles.repeat(4, 0).repeat(4, 1)).save(buffer, "PNG")
    return buffer.getvalue()


def turns(ask: str, say: str | None) -> list[dict[str, str]]:
    return [{"role": "user", "content": ask}] + ([{"role": "assistant", "content": say}] if say is not None else [])


def sample(*pictures: int, ask: str = "What is this?", say: str | None = "a small green frog", **more: Any) -> dict[str, Any]:
    """A one-turn sample with these pictures; `annotations` of (ask, say) share them."""
    made = {"id": f"{pictures}", "images": [photo(number) for number in pictures], "messages": turns(ask, say), "fields": {}, **more}
    if "annotations" in made:
        made["annotations"] = [{"messages": turns(*pair)} for pair in made["annotations"]]
    return made
