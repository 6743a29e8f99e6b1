"""Connector sizes and the scale of what they hand over."""

import pytest
import torch

from plait.nn.connectors import Connector, match_rms, root_mean_square, seeded


@pytest.mark.parametrize(
    ("features", "kind", "count"),
    [(16, "linear", 43_520), (16, "mlp", 6_599_680), (4096, "linear", 10_488_320), (4096, "mlp", 17_044_480)],
)
def test_connector_counts_are_the_published_ones(features, kind, count):
    with torch.device("meta"):
        connector = Connector(features, 2560, kind)
    assert sum(parameter.numel() for parameter in connector.parameters()) == count


def test_connector_ends_without_an_activation():
    connector = seeded(0, lambda: Connector(8, 32, "mlp"))
    out = connector(torch.randn(200, 8, generator=torch.Generator().manual_seed(1)) * 10)
    assert ((out < -0.2).any(0) & (out > 0.2).any(0)).float().mean() > 0.9, "a GELU or ReLU at the end would leave no large negative value"


def test_match_rms_brings_each_vector_to_the_scale():
    x = torch.tensor([[3.0, -4.0], [30.0, 40.0]])
    out = match_rms(x, torch.tensor(2.0))
    torch.testing.assert_close(out.square().mean(-1).sqrt(), torch.full((2,), 2.0))
    torch.testing.assert_close(out[0] / out[0, 0], x[0] / x[0, 0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_root_mean_square_of_a_known_vector_leaves_it_as_it_was(dtype):
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=dtype)
    assert root_mean_square(x).item() == pytest.approx(2.5)
    assert x.tolist() == [[3.0, 4.0], [0.0, 0.0]]


def test_seeded_gives_the_same_weights_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = (seeded(7, lambda: Connector(4, 4, "linear")) for _ in range(2))
    assert torch.equal(first.first.weight, second.first.weight)
    assert torch.equal(torch.rand(1), expected)
