"""A sharded block gathers the next one of its tower before it computes, and that changes no bit of what is computed."""

import pytest
import torch
from torch.distributed.fsdp import FSDPModule

from plait.engine.loop import total_loss_weights
from plait.engine.parallel import distributed, prefetching
from plait.engine.parallel.memory_estimate import Layout
from plait.engine.parallel.sharding import Sharding
from plait.engine.state import State
from plait.families import registry
from tests import processes
from tests.engine.toy import make_loop
from tests.families.test_conformance import SAMPLES, Case

TOWERS = {"theworld": 2, "molmo": 2, "nanodit": 1}


def gradients(case, ranks):
    """On one rank: gradients of a step of two micro-batches, [whether a unit gathers another, by tower], and what was gathered when."""
    sharding, names = Sharding(case.model), {name for part in case.trained.values() for name in part}
    blocks, order = case.family.blocks(case.model), []
    sharding.wrap(blocks, names, Layout("fsdp", 2), ranks, types={})
    for i, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda *_, i=i: order.append(i))
    ahead = [
        blocks.index(state._states_to_forward_prefetch[0]._modules[0]) if state._states_to_forward_prefetch else None
        for state in (block._get_fsdp_state() for block in blocks)
    ]
    micros = case.micros(SAMPLES // 4, ranks=ranks)
    weights = total_loss_weights(case.loss, micros, ranks)
    case.model.train()
    loop = make_loop(State(case.model), case.loss, case.config, ranks, case.parts.assets / f"bad{ranks.rank}.jsonl")
    loop.accumulate(case.model, micros, {name: weights[name] for name in case.loss.coefficients})
    found = {name: distributed.full_tensor(value.grad) for name, value in case.model.named_parameters() if value.grad is not None}
    case.model.zero_grad()
    assert all(isinstance(block, FSDPModule) for block in blocks)
    sharding.unwrap()
    return found, ahead, order


def with_and_without(case):
    with distributed.join("cpu") as ranks:
        found, ahead, order = gradients(case, ranks)
        prefetching.gather_ahead = lambda *_: None
        plain, none, _ = gradients(case, ranks)
    assert set(none) == {None} and plain.keys() == found.keys()
    return ahead, order, [name for name, value in plain.items() if not torch.equal(value, found[name])]


@pytest.mark.parametrize("family", registry.names())
def test_blocks_of_a_tower_gather_ahead_and_gradients_are_equal_to_the_bit(family, tmp_path):
    for ahead, order, differing in processes.run(2, with_and_without, Case(family, tmp_path)):
        assert differing == []
        assert ahead.count(None) == TOWERS[family]  # the last block of each
        assert all(following == i + 1 for i, following in enumerate(ahead) if following is not None)
        assert {i + 1 for i in order} >= {following for following in ahead if following is not None}  # all of which run
