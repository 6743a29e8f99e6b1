"""Replicate or shard: what each setting gives, and what the line says."""

import re

import pytest
import torch

from plait.config.schema import Distributed
from plait.engine.parallel.distributed import Ranks
from plait.engine.parallel.memory_estimate import Layout, ParameterCounts, Storage
from plait.engine.parallel.strategy import choose
from plait.errors import PlaitError

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


def test_one_rank_divides_nothing_whatever_is_set():
    assert chosen(1, strategy="fsdp") == (Layout(), "one rank: nothing to divide")


def test_auto_replicates_what_fits_in_seven_tenths_of_the_memory():
    layout, why = chosen(8, memory_gb=20 / 0.7 + 0.01)
    assert layout == Layout("ddp", 8)
    assert why == "ddp: 20 GB of state on each of 8 ranks, fits the 20 GB for it"


def test_auto_shards_what_does_not_fit_and_says_why():
    layout, why = chosen(8, memory_gb=20)
    assert layout == Layout("fsdp", 8, shard_frozen=False)
    assert re.fullmatch(
        r"fsdp: [\d.]+ GB of state on each of 8 ranks, cut over 8, frozen blocks whole on every rank: "
        r"whole it would be 20 GB, more than the 14 GB for it",
        why,
    )


def test_auto_cuts_frozen_blocks_as_well_where_they_do_not_fit():
    assert chosen(8, memory_gb=7)[0] == Layout("fsdp", 8, shard_frozen=True)


def test_auto_keeps_a_copy_on_each_node_where_one_fits(monkeypatch):
    assert chosen(16, near=4, monkeypatch=monkeypatch, memory_gb=14)[0] == Layout("hsdp", 16, 4, shard_frozen=False)
    assert chosen(16, near=4, monkeypatch=monkeypatch, memory_gb=5)[0] == Layout("fsdp", 16, shard_frozen=True)


@pytest.mark.parametrize(("frozen", "cut"), [("replicate", False), ("shard", True)])
def test_frozen_blocks_follow_their_setting_whatever_fits(frozen, cut):
    assert chosen(4, strategy="shard_grad_op", frozen=frozen)[0] == Layout("shard_grad_op", 4, shard_frozen=cut)


def test_hsdp_groups_the_ranks_of_a_node_unless_told(monkeypatch):
    assert chosen(8, near=4, monkeypatch=monkeypatch, strategy="hsdp", frozen="shard")[0] == Layout("hsdp", 8, 4)
    assert chosen(8, near=4, monkeypatch=monkeypatch, strategy="hsdp", frozen="shard", shard_size=2)[0] == Layout("hsdp", 8, 2)


def test_groups_that_do_not_divide_the_ranks_are_refused():
    with pytest.raises(PlaitError, match=r"distributed\.shard_size is 4, but 6 ranks make groups of 2, 3, 6; set one of these"):
        chosen(6, strategy="hsdp", shard_size=4)
