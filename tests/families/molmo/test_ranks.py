"""Two ranks equal one, a rank without an image does not keep the other waiting, and a step without any moves nothing that sees them."""

import json

import pytest

from plait.families.molmo.model import COMPONENTS
from tests import processes
from tests.families.molmo import two_ranks


@pytest.mark.timeout(60)  # a rank that waits for one without an image would wait for ever; this takes 12 s on a busy machine
@pytest.mark.parametrize(
    ("cut_frozen", "trainable"),
    [(None, COMPONENTS), (False, COMPONENTS), (True, ("connector", "language"))],
    ids=["replicas", "cut", "frozen tower cut"],
)
def test_text_on_one_rank_and_images_on_the_other_equal_one_rank(directory, cut_frozen, trainable):
    two_ranks.main(directory / "one.json", None, trainable)
    processes.fork(2, two_ranks.main, directory / "two.json", cut_frozen, trainable)
    one, two = (json.loads((directory / name).read_text()) for name in ("one.json", "two.json"))
    for alone, together in zip(one, two, strict=True):
        assert together == pytest.approx(alone, rel=1e-4)  # fp32, two updates between the first row and the last
