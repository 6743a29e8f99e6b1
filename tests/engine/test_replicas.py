"""Replicas that come apart are found at the next check, and the weight and the rank are named."""

import os
from unittest import mock

import pytest
import torch

from plait.engine import optim
from plait.engine.parallel import replicas
from plait.engine.parallel.distributed import Ranks
from tests import processes, toy_family

SHORT = ("train.steps=6", "evaluate=[]", "checkpoint.best=null", "stages=[]", "guard.replica_check_steps=2")


def one_bit(recipe, run, rank, *overrides):
    """Train; after the third update one rank's bias differs in one bit."""
    usual, calls = optim.set_lr, []

    def set_lr(optimizer, *given):
        calls.append(1)
        if len(calls) == 4 and int(os.environ["RANK"]) == rank:
            value = optim.named_groups(optimizer)["projector.bias"].data
            value.view(torch.int32)[2] ^= 1 << 8  # the update does not round it away
        return usual(optimizer, *given)

    with mock.patch.object(optim, "set_lr", set_lr):
        toy_family.train(recipe, run, *SHORT, *overrides)


@pytest.mark.parametrize("ranks", [2, 3])
def test_one_flipped_bit_on_one_rank_is_found_and_named(tmp_path, monkeypatch, capfd, ranks):
    recipe = toy_family.install(monkeypatch, tmp_path)
    assert processes.codes(processes.start(ranks, one_bit, recipe, tmp_path / "run", ranks - 1)) == [1] * ranks
    said = capfd.readouterr().err
    assert said.count("Stopped: replicas differ after step 4: ") == ranks
    assert "projector.bias" in said
    assert f"on rank {ranks - 1} is not what the other ranks have; that device or its memory may be faulty" in said


def test_replicas_that_agree_pass_and_no_check_is_made_when_it_is_off(tmp_path, monkeypatch):
    recipe = toy_family.install(monkeypatch, tmp_path)
    processes.fork(2, one_bit, recipe, tmp_path / "equal", 99)
    processes.fork(2, one_bit, recipe, tmp_path / "off", 1, "guard.replica_check_steps=null")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checksum_changes_with_any_one_value(dtype):
    value = torch.arange(1, 9).to(dtype)
    (before,) = replicas.checksums({"x": value})
    for i in range(8):
        other = value.clone()
        other[i] += 1
        assert replicas.checksums({"x": other}) != [before]


def test_one_rank_has_nothing_to_compare():
    replicas.check(1, {"x": torch.ones(2)}, Ranks(0, 1, torch.device("cpu")))
