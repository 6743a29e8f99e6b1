"""Two ranks equal one, and a rank without an image does not keep the other waiting."""

import json

import pytest

from tests import ranks
from tests.families.molmo import two_ranks


def launch(out):
    """Run the worker on two gloo ranks; returns what rank 0 wrote."""
    ranks.fork(2, two_ranks.main, out)
    return json.loads(out.read_text())


def test_text_on_one_rank_and_images_on_the_other_equal_one_rank(directory):
    two_ranks.main(directory / "one.json")
    one = json.loads((directory / "one.json").read_text())
    for alone, together in zip(one, launch(directory / "two.json"), strict=True):
        assert together == pytest.approx(alone, rel=1e-4)  # fp32, two updates between the first row and the last
