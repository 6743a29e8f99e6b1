"""Full size, on the meta device: the published counts, and exactly what each stage trains. No network, no memory."""

import pytest
import torch

from plait.families.theworld import family
from plait.families.theworld.config import Config

BRACKETS = 5_120


def counts(**world) -> dict[str, int]:
    with torch.device("meta"):
        model = family.build(Config(world=world), None, seed=0)
    return {name: sum(p.numel() for p in part.values()) for name, part in family.components(model).items()}


@pytest.fixture(scope="module")
def default() -> dict[str, int]:
    return counts()


def test_full_size_total_is_4_43_billion(default):
    assert sum(default.values()) == 4_300_079_472 + 126_892_531 + 6_599_680 + BRACKETS


def test_full_size_components_have_the_published_counts(default):
    assert default["projector"] == 6_599_680 + BRACKETS
    assert default["vision"] == 416_866_032 + 2_950_272
    assert default["language"] == 3_880_263_168  # the tied embedding once
    assert default["world"] + default["world_time"] == 53_595_872 + 1_056  # encoder and quant_conv
    assert default["world_decoder"] == 126_892_531 - 53_595_872 - 1_056


def test_full_size_stage_two_trains_the_published_count(default):
    assert default["projector"] + default["vision"] - BRACKETS == 426_415_984


@pytest.mark.parametrize(
    ("tokens", "projector", "count"),
    [
        ("spatial", "linear", 43_520),
        ("spatial", "mlp", 6_599_680),
        ("channel", "linear", 10_488_320),
        ("channel", "mlp", 17_044_480),
        ("pooled", "mlp", 6_599_680),
        ("patches", "mlp", 256 * 2560 + 2560 + 2560 * 2560 + 2560),
    ],
)
def test_full_size_projector_counts(tokens, projector, count):
    assert counts(tokens=tokens, projector=projector)["projector"] == count + BRACKETS


def test_full_size_temporal_positions_exist_only_with_world_steps(default):
    assert counts(steps=4)["projector"] == default["projector"] + 17 * 2560
    assert counts(max_steps=400)["projector"] == default["projector"]


def test_full_size_without_world_is_gemma_alone():
    with torch.device("meta"):
        parts = family.components(family.build(Config(world=False), None, seed=0))
    assert sum(p.numel() for parameters in parts.values() for p in parameters.values()) == 4_300_079_472
    assert set(parts) == {"vision", "language"}
