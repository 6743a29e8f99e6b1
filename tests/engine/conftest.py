"""The loop over the toy of each contract."""

import pytest

from plait.engine.flops import Meter
from plait.engine.guards import Quarantine
from plait.engine.loop import Loop

from .toy import ALONE, SquaredError


@pytest.fixture
def make_loop(tmp_path):
    def make(state, config, ranks=ALONE, hooks=()):
        meter = Meter(ranks.device, config.train.precision)
        return Loop(state, SquaredError(), config, ranks, Quarantine(tmp_path / "quarantine.jsonl", 0.01), hooks, meter=meter)

    return make
