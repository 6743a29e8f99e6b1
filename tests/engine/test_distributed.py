import json

import pytest
import torch

from plait.engine.parallel import distributed
from plait.errors import PlaitError

from .. import processes
from . import two_ranks


def launch(out, ranks):
    """Run the worker on `world` gloo ranks; returns what rank 0 wrote."""
    processes.fork(ranks, two_ranks.main, out)
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return launch(folder / "one.json", 1), launch(folder / "two.json", 2)


@pytest.mark.parametrize("figure", ["loss", "grad_norm", "weights", "held_out"])
def test_two_ranks_equal_one(results, figure):
    one, two = results
    assert two[figure] == pytest.approx(one[figure], rel=1e-5, abs=1e-6)  # fp32: sums of 16 terms in another order, 5 updates


def test_what_each_source_gave_is_counted_once_over_ranks(results):
    wanted = dict.fromkeys(results[0]["drawn"], 0.0)
    for i in range(5 * 15):  # five steps of 15; sample i weighs 1 + i % 3
        source = "aaaabcc"[i % 7]
        for quantity, value in (("samples", 1), ("tokens", 1), ("error", 1 + i % 3)):
            wanted[f"drawn/{source}/{quantity}"] += value
    assert len(wanted) == 9
    for found in results:
        assert found["drawn"] == wanted  # whole numbers: exact


def test_ranks_see_every_bench_sample_once_and_in_order(results):
    for found in results:
        assert found["bench"] == list(range(7))


def test_restarts_over_several_nodes_are_refused_where_they_would_hang(monkeypatch):
    told = {"USE_AGENT_STORE": "True", "MAX_RESTARTS": "3", "RESTART_COUNT": "0"}
    for name, value in ({f"TORCHELASTIC_{name}": value for name, value in told.items()} | {"GROUP_WORLD_SIZE": "2"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PlaitError, match="on 2 nodes: a restart would hang in torchrun's shared store; start torchrun with TORCH_DISABLE"):
        distributed._store()


@pytest.mark.parametrize(("first", "last"), [(0, 0), (0, 7), (1, 2), (2, 6), (5, 7), (7, 7)])
def test_rows_in_pieces_are_those_of_the_whole(first, last):
    whole = torch.arange(21.0).view(7, 3)
    pieces = distributed.LazyShardedTensor(whole.split([3, 1, 3]))
    assert pieces.shape == whole.shape
    assert torch.equal(pieces.rows(first, last), whole[first:last])
    assert torch.equal(distributed.full_tensor(pieces), whole)
