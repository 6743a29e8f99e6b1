"""The loop over the toy of each contract."""

import pytest

from . import toy
from .toy import ALONE, SquaredError


@pytest.fixture
def make_loop(tmp_path):
    def make(state, config, ranks=ALONE, hooks=(), **others):
        return toy.make_loop(state, SquaredError(), config, ranks, tmp_path / "quarantine.jsonl", hooks, **others)

    return make
