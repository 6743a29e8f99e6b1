import contextlib
import datetime
import itertools
import json

import pytest
import torch

from plait.engine.parallel import agent_store, distributed
from plait.errors import PlaitError, Stopped

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
        agent_store.open_store()


@pytest.mark.parametrize(("first", "last"), [(0, 0), (0, 7), (1, 2), (2, 6), (5, 7), (7, 7)])
def test_rows_in_pieces_are_those_of_the_whole(first, last):
    whole = torch.arange(21.0).view(7, 3)
    pieces = distributed.LazyShardedTensor(whole.split([3, 1, 3]))
    assert pieces.shape == whole.shape
    assert torch.equal(pieces.rows(first, last), whole[first:last])
    assert torch.equal(distributed.full_tensor(pieces), whole)


@pytest.mark.parametrize(("nodes", "restarts"), [("2", "0"), ("1", "3")])
def test_restarts_on_one_node_and_several_nodes_without_restarts_meet_under_names_of_their_attempt(monkeypatch, nodes, restarts):
    told = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": restarts, "TORCHELASTIC_RESTART_COUNT": "2"}
    for name, value in (told | {"GROUP_WORLD_SIZE": nodes, "MASTER_ADDR": "host", "MASTER_PORT": "29"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(agent_store, "TCPStore", lambda host, port, is_master: (host, port, is_master))
    monkeypatch.setattr(agent_store, "PrefixStore", lambda name, store: (name, store))
    monkeypatch.setattr(agent_store, "_joins", itertools.count())
    assert agent_store.open_store() == ("attempt-2-0", ("host", 29, False))
    assert agent_store.open_store() == ("attempt-2-1", ("host", 29, False))  # joined again: other addresses
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    assert agent_store.open_store() is None


def test_one_rank_alone_is_every_collective_by_itself():
    with distributed.join("cpu", 1.0) as alone:
        assert (alone.rank, alone.size, alone.device.type, alone.first) == (0, 1, "cpu", True)
        values = torch.tensor([1.0, 2.0])
        assert alone.sum(values) is values and alone.gather("x") == ["x"] and alone.agree("x") == "x"
        assert (alone.any(True), alone.any(False)) == (True, False)
        alone.barrier()
        assert not torch.distributed.is_initialized()


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(PlaitError, match=r"distributed\.device is 'cuda' but torch sees no CUDA device"), distributed.join("cuda"):
        pass
    with distributed.join("auto") as ranks:
        assert ranks.device.type == "cpu"


def together():
    with distributed.join("cpu") as ranks:
        found = ranks.sum(torch.tensor([1.0 + ranks.rank], dtype=torch.float64)).tolist(), ranks.gather(ranks.rank), ranks.agree(ranks.rank)
        return (*found, ranks.any(ranks.rank == 1), ranks.any(False), ranks.first)


def test_ranks_add_gather_and_agree():
    assert processes.run(2, together) == [([3.0], [0, 1], 0, True, False, True), ([3.0], [0, 1], 0, True, False, False)]


def test_a_batch_moves_to_the_device_with_what_is_no_tensor_as_it_is():
    names = ["a"]
    moved = distributed.to_device({"x": torch.ones(2), "names": names}, torch.device("meta"))
    assert moved["x"].device.type == "meta" and moved["names"] is names


def test_a_tensor_that_is_not_cut_is_whole_wherever_it_is_asked_for():
    value, pattern = torch.ones(3, 2), torch.empty(1, device="meta")
    assert distributed.local(value) is value and distributed.full_tensor(value) is value
    assert distributed.reshard_like(value, pattern).device.type == "meta"
    assert distributed.norms_of_all([value], value) == [value]
    assert not distributed.is_sharded(torch.nn.Linear(1, 1))


@pytest.mark.parametrize(("timeout_s", "limit"), [(None, None), (7.5, datetime.timedelta(seconds=7.5))])
def test_collectives_of_several_ranks_may_wait_as_long_as_is_said(monkeypatch, timeout_s, limit):
    class Joined(Exception):
        pass

    def init(backend, **more):
        raise Joined(backend, more["timeout"], more["rank"], more["world_size"])

    monkeypatch.setattr(distributed.dist, "init_process_group", init)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(Joined) as joined, distributed.join("cpu", timeout_s):
        pass
    assert joined.value.args == ("gloo", limit, 3, 4)


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (RuntimeError("Connection closed by peer"), Stopped),
        (RuntimeError("[gloo] Timed out waiting 1000ms for recv"), Stopped),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), RuntimeError),
        (KeyError("x"), KeyError),
        (None, None),
    ],
)
def test_a_lost_rank_stops_the_others_and_any_other_error_stays_what_it_is(monkeypatch, raised, told):
    calls = []
    for name, value in (("init_process_group", None), ("barrier", None), ("destroy_process_group", None), ("get_rank", 1)):
        monkeypatch.setattr(distributed.dist, name, lambda *_, name=name, value=value, **__: calls.append(name) or value)
    monkeypatch.setattr(agent_store, "open_store", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with contextlib.nullcontext() if told is None else pytest.raises(told) as caught, distributed.join("cpu") as ranks:
        assert (ranks.rank, ranks.size) == (1, 2)
        if raised is not None:
            raise raised
    assert calls == ["init_process_group", "get_rank", *(["barrier"] if raised is None else []), "destroy_process_group"]
    if told is Stopped:
        assert str(caught.value).startswith(f"another rank ended or hangs ({raised})")
    elif told is not None:
        assert caught.value is raised
