"""A family that exists only here, so that the tests of the configuration need none of the real ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, field_serializer, field_validator, model_validator

from plait.config.dialects import table
from plait.config.load import load_config
from plait.config.resolved import Resolved
from plait.config.schema import ModelSection
from plait.data.sources.open import KINDS
from plait.errors import PlaitError


class World(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    source: str = "nvidia/Cosmos-Predict2-2B-Video2World"
    tokens: Literal["pooled", "spatial", "channel"] = "pooled"
    steps: int = 0
    max_steps: int = 16

    @model_validator(mode="after")
    def _fits(self) -> "World":
        if self.steps > self.max_steps:
            raise ValueError(f"steps is {self.steps}, more than max_steps, {self.max_steps}")
        return self


class Model(ModelSection):
    base: str = "google/gemma-3-4b-it"
    world: World | None = World()

    @field_validator("world", mode="before")
    @classmethod
    def _switch(cls, value: object) -> object:
        return None if value is False else {} if value is True else value

    @field_serializer("world")
    def _off(self, value: World | None) -> World | Literal[False]:
        return False if value is None else value


def model_config(family: str) -> type[ModelSection]:
    if family != "theworld":
        raise PlaitError(f"family {family!r} is unknown: known: theworld")
    return Model


BASE = "family: theworld\nmodel: {base: tiny}\ndata: {train: [{source: scenes}]}\ntrain: {steps: 100}\n"


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Resolved]:
    """load(text, *overrides, name=..., preset=text): the text as a file of that name, resolved."""
    monkeypatch.chdir(tmp_path)

    def resolve(text: str, *overrides: str, name: str = "x.yaml", preset: str | None = None) -> Resolved:
        Path(name).write_text(text)

        def named(family: str, wanted: str) -> Path:
            if preset is None:
                raise PlaitError(f"preset {wanted!r} is not one of family {family!r}: known: none")
            Path(f"{wanted}.yaml").write_text(preset)
            return Path(f"{wanted}.yaml")

        return load_config(name, overrides, model_config=model_config, preset=named, sources=KINDS, dialects=table.dialects())

    return resolve
