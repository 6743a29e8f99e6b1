"""Replicate or shard: what each setting gives, and what the line says."""

import re

import pytest
import torch

from plait.config.schema import Distributed, RunConfig
from plait.engine.parallel import strategy
from plait.engine.parallel.distributed import Ranks
from plait.engine.parallel.memory_estimate import Layout, ParameterCounts, Storage, memory
from plait.engine.parallel.strategy import choose
from plait.errors import PlaitError
from plait.training.moments import kept

WEIGHTS = ParameterCounts(trained=1_000_000_000, frozen=1_000_000_000, trained_unit=50_000_000, frozen_unit=50_000_000)
"""Whole in float32: 4 GB frozen, 16 GB for what trains with its gradients and moments."""


class Ranks(Ranks):
    """`size` ranks that all say the same."""

    def gather(self, value):
        return [value] * self.size


def chosen(size, near=None, monkeypatch=None, **settings):
    if near is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(near))
    ranks = Ranks(0, size, torch.device("cpu"))
    return choose(Distributed(**settings), WEIGHTS, Storage.of("fp32"), ranks, accumulating=False)


def test_auto_replicates_what_fits_in_seven_tenths_of_the_memory():
    layout, why = chosen(8, memory_gb=20 / 0.7 + 0.01)
    assert layout == Layout("ddp", 8)
    assert why == "ddp: 20 GB of state on each of 8 ranks, fits the 20 GB for it"


def test_auto_cuts_nothing_whose_moments_are_whole_on_each_rank():
    config = RunConfig.model_validate({"family": "toy", "optim": {"name": "adamw8bit"}, "distributed": {"memory_gb": 1e-6}})
    storage = kept.storage(config, {"all": {"weight": torch.nn.Parameter(torch.zeros(64, 64))}}, [])
    layout, why = choose(config.distributed, WEIGHTS, storage, Ranks(0, 8, torch.device("cpu")), accumulating=False)
    assert layout == Layout("ddp", 8)
    assert re.fullmatch(r"ddp: .* GB of state on each of 8 ranks, is not cut to fit the 7e-07 GB for it", why)


def test_auto_shards_what_does_not_fit_and_says_why():
    layout, why = chosen(8, memory_gb=20)
    assert layout == Layout("fsdp", 8, shard_frozen=False)
    assert re.fullmatch(
        r"fsdp: [\d.]+ GB of state on each of 8 ranks, cut over 8, frozen blocks whole on every rank: "
        r"whole it would be 20 GB, more than the 14 GB for it",
        why,
    )


def test_a_sharded_stage_reduces_gradients_as_often_as_is_set():
    for settings in ({"strategy": "fsdp"}, {"strategy": "hsdp", "shard_size": 2}, {"memory_gb": 7}):
        assert chosen(4, gradient_sync="micro_batch", **settings)[0].reduce_each
        assert not chosen(4, **settings)[0].reduce_each


def test_auto_cuts_frozen_blocks_as_well_where_they_do_not_fit():
    assert chosen(8, memory_gb=7)[0] == Layout("fsdp", 8, shard_frozen=True)


def test_auto_keeps_a_copy_on_each_node_where_one_fits(monkeypatch):
    assert chosen(16, near=4, monkeypatch=monkeypatch, memory_gb=14)[0] == Layout("hsdp", 16, 4, shard_frozen=False)
    assert chosen(16, near=4, monkeypatch=monkeypatch, memory_gb=5)[0] == Layout("fsdp", 16, shard_frozen=True)


def test_what_fits_to_the_byte_fits(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    for layout in (Layout("ddp", 16), Layout("hsdp", 16, 4, shard_frozen=False), Layout("hsdp", 16, 4)):
        need = memory(WEIGHTS, layout, Storage.of("fp32"), accumulating=False).total
        monkeypatch.setattr(strategy, "_STATE_FRACTION", 1.0)  # no rounding
        monkeypatch.setattr(strategy, "memory_of", lambda settings, ranks, need=need: need)
        assert choose(Distributed(), WEIGHTS, Storage.of("fp32"), Ranks(0, 16, torch.device("cpu")), accumulating=False)[0] == layout


@pytest.mark.parametrize(("frozen", "cut"), [("replicate", False), ("shard", True)])
def test_frozen_blocks_follow_their_setting_whatever_fits(frozen, cut):
    assert chosen(4, strategy="shard_grad_op", frozen=frozen)[0] == Layout("shard_grad_op", 4, shard_frozen=cut)


def test_hsdp_groups_the_ranks_of_a_node_unless_told(monkeypatch):
    assert chosen(8, near=4, monkeypatch=monkeypatch, strategy="hsdp", frozen="shard")[0] == Layout("hsdp", 8, 4)
    assert chosen(8, near=4, monkeypatch=monkeypatch, strategy="hsdp", frozen="shard", shard_size=2)[0] == Layout("hsdp", 8, 2)


def test_groups_that_do_not_divide_the_ranks_are_refused():
    with pytest.raises(PlaitError, match=r"distributed\.shard_size is 4, but 6 ranks make groups of 2, 3, 6; set one of these"):
        chosen(6, strategy="hsdp", shard_size=4)


def test_memory_that_is_not_set_is_the_ranks_share_of_the_machine(monkeypatch):
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 40 * 10**9 // 4096}.__getitem__)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert "fits the 28 GB for it" in chosen(2, strategy="auto")[1]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    layout, why = chosen(2, strategy="auto")
    assert layout.strategy == "fsdp" and why.endswith("whole it would be 20 GB, more than the 14 GB for it")
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert chosen(2, strategy="auto") == (layout, why)  # without torchrun's word: all ranks are here


def test_the_memory_of_a_gpu_is_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: type("Gpu", (), {"total_memory": 30 * 10**9}))
    ranks = Ranks(0, 2, torch.device("cuda", 0))
    assert "fits the 21 GB for it" in choose(Distributed(), WEIGHTS, Storage.of("fp32"), ranks, accumulating=False)[1]


def test_the_smallest_rank_decides_for_all():
    class Uneven(Ranks):
        def gather(self, value):
            return [value, value / 2]

    ranks = Uneven(0, 2, torch.device("cpu"))
    why = choose(Distributed(memory_gb=40), WEIGHTS, Storage.of("fp32"), ranks, accumulating=False)[1]
    assert why.endswith("more than the 14 GB for it")


def test_a_strategy_that_is_set_is_taken_whatever_fits():
    assert chosen(4, strategy="ddp", memory_gb=1) == (Layout("ddp", 4), "ddp: 20 GB of state on each of 4 ranks, as set")
    layout, why = chosen(4, strategy="fsdp", memory_gb=1000)
    assert layout == Layout("fsdp", 4, shard_frozen=False)
    assert why.endswith(", cut over 4, frozen blocks whole on every rank: as set")
    assert chosen(4, strategy="fsdp", memory_gb=1)[1].endswith(", cut over 4, frozen blocks cut too: as set")


def test_a_model_without_frozen_weights_says_nothing_of_them():
    ranks = Ranks(0, 4, torch.device("cpu"))
    why = choose(Distributed(strategy="fsdp"), ParameterCounts(trained=4_000), Storage.of("fp32"), ranks, accumulating=False)[1]
    assert re.fullmatch(r"fsdp: [\de.-]+ GB of state on each of 4 ranks, cut over 4: as set", why)


@pytest.mark.parametrize(("near", "layout"), [(3, Layout("fsdp", 8)), (8, Layout("fsdp", 8)), (4, Layout("hsdp", 8, 4))])
def test_auto_groups_by_node_only_where_nodes_divide_the_ranks(monkeypatch, near, layout):
    found = chosen(8, near=near, monkeypatch=monkeypatch, memory_gb=14, frozen="shard")[0]
    assert found == layout


def test_a_group_of_one_rank_is_refused():
    with pytest.raises(PlaitError, match=r"distributed\.shard_size is 1, but 4 ranks make groups of 2, 4; set one of these"):
        chosen(4, strategy="hsdp", shard_size=1)
