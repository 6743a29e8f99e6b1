"""Sinusoids against their formula, and the two facts that the design rests on."""

import math

import pytest
import torch

from plait.families.nanodit.network import positions


def test_a_position_has_its_sines_and_cosines():
    embedding = positions.sinusoid(torch.tensor([3.0]), 8)[0]
    angles = [3.0 / 10_000 ** (i / 4) for i in range(4)]
    expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    assert embedding.tolist() == pytest.approx(expected, abs=1e-6)


def test_the_first_half_encodes_the_row_and_the_second_the_column():
    embedding = positions.grid(3, 5, 16, centred=False).unflatten(0, (3, 5))
    assert torch.equal(embedding[1, :, :8], embedding[1, :1, :8].expand(5, 8))
    assert torch.equal(embedding[:, 2, 8:], embedding[:1, 2, 8:].expand(3, 8))
    assert len(torch.unique(embedding.flatten(0, 1), dim=0)) == 15


def test_centred_positions_of_two_sizes_share_their_middle():
    small, large = (positions.grid(n, n, 16, centred=True).unflatten(0, (n, n)) for n in (4, 8))
    assert torch.equal(small, large[2:6, 2:6])


@pytest.mark.parametrize(("scale", "similar"), [(1.0, 0.98), (positions.TIME_SCALE, 0.19)])
def test_scaled_times_are_dissimilar_and_unscaled_ones_are_not(scale, similar):
    a, b = positions.sinusoid(scale * torch.tensor([0.1, 0.9]), 256)
    assert float(torch.cosine_similarity(a, b, dim=0)) == pytest.approx(similar, abs=0.006)


def test_times_are_scaled_by_a_thousand():
    t = torch.tensor([0.25])
    assert torch.equal(positions.embed_time(t, 256), positions.sinusoid(torch.tensor([250.0]), 256))
