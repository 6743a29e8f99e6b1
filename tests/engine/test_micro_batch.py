"""Memory that runs out on one rank: every rank halves its micro-batch, none waits, and the gradient stays what it was."""

import json
import os
from unittest import mock

import pytest
import torch

from plait.engine import micro_batch
from plait.engine.monitoring import memory_trial
from plait.engine.parallel.distributed import Ranks
from plait.errors import Stopped
from tests import processes, toy_family

from .toy import ALONE, make_config, make_state

SHORT = ("train.steps=4", "stages=[]", "train.global_batch=8", "evaluate=[]", "checkpoint.best=null", "checkpoint.every_steps=1")


def runs_out(recipe, run, rank, largest, from_call, *overrides, **options):
    """Train; on one rank the loss cannot take more than `largest` samples at a time, from its n-th call on."""
    usual, calls = toy_family.Loss.sums, []
    own = int(os.environ.get("RANK", "0")) == rank

    def sums(self, model, batch):
        found = usual(self, model, batch)
        calls.append(found["error"].requires_grad)
        if own and calls[-1] and sum(calls) >= from_call and len(batch["y"]) > largest:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore")
        return found

    with mock.patch.object(toy_family.Loss, "sums", sums):
        toy_family.train(recipe, run, *SHORT, *overrides, **options)


def noted(run, ranks):
    """The micro-batch that a later start on so many ranks begins with."""
    return micro_batch.MicroBatchSize(run, "train", Ranks(0, ranks, torch.device("cpu")), 1000).samples


def weights(run):
    return toy_family.at(run, 4).tensors("weights")


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    return toy_family.install(monkeypatch, tmp_path)


@pytest.fixture
def straight(recipe, tmp_path):
    return weights(toy_family.train(recipe, tmp_path / "straight", *SHORT))


def assert_close(one, other):
    for name, value in one.items():
        assert (value - other[name]).abs().max() <= 1e-6 * value.abs().max(), name  # fp32: sums of 8 samples in another order, 4 updates


@pytest.mark.parametrize("from_call", [1, 4], ids=["at once", "in the middle"])
@pytest.mark.parametrize("probe", ["never", "always"])
def test_one_rank_halves_until_it_fits_and_loses_no_step(recipe, straight, tmp_path, capsys, from_call, probe):
    runs_out(recipe, tmp_path / "run", 0, 4, from_call, f"guard.memory_probe={probe}")
    assert_close(straight, weights(tmp_path / "run"))
    assert noted(tmp_path / "run", 1) == 4
    assert "out of memory (CUDA out of memory. Tried to allocate 20.00 GiB.): on with micro_batch 4 and more" in capsys.readouterr().out
    assert [row["step"] for row in toy_family.figures(tmp_path / "run")] == [1, 2, 3, 4]


@pytest.mark.parametrize("probe", ["never", "always"])
def test_both_ranks_halve_when_one_runs_out_and_none_waits(recipe, straight, tmp_path, capfd, probe):
    processes.fork(2, runs_out, recipe, tmp_path / "run", 1, 2, 3, f"guard.memory_probe={probe}", "guard.hang_timeout_s=20")
    assert_close(straight, weights(tmp_path / "run"))
    assert noted(tmp_path / "run", 2) == 2
    assert capfd.readouterr().out.count("on with micro_batch 2") == 1


def test_the_probe_finds_out_before_the_first_step(recipe, tmp_path, capsys):
    runs_out(recipe, tmp_path / "run", 0, 4, 1, "guard.memory_probe=always", "track.every_steps=1")
    said = capsys.readouterr()
    assert said.out.index("on with micro_batch 4") < said.out.index("is done after step 4")
    rows = toy_family.figures(tmp_path / "run")
    assert len(rows) == 4


def test_what_was_found_to_fit_holds_for_the_next_start(recipe, tmp_path, capsys):
    runs_out(recipe, tmp_path / "run", 0, 4, 1, "train.steps=2")
    capsys.readouterr()
    runs_out(recipe, tmp_path / "run", 0, 4, 1, allow_inexact=True)
    assert "out of memory" not in capsys.readouterr().out


def test_one_sample_that_does_not_fit_stops_the_run_with_what_to_do(recipe, tmp_path):
    with pytest.raises(Stopped, match=r"out of memory with one sample at a time .*: shorten data.max_tokens, set distributed.activation"):
        runs_out(recipe, tmp_path / "run", 0, 0, 2)


def in_backward(recipe, run):
    """Rank 1 runs out inside the backward pass in which ranks meet."""
    usual, calls = torch.autograd.backward, []

    def backward(*given):
        calls.append(1)
        if len(calls) == 2 and os.environ["RANK"] == "1" and not (run / micro_batch.NOTE).exists():
            raise torch.OutOfMemoryError("no memory left")
        usual(*given)

    with mock.patch.object(torch.autograd, "backward", backward):
        toy_family.train(recipe, run, *SHORT)


def test_running_out_where_ranks_wait_ends_all_and_the_next_start_fits(recipe, straight, tmp_path, capfd):
    assert processes.codes(processes.start(2, in_backward, recipe, tmp_path / "run")) == [1, 1]
    assert "Stopped: out of memory (no memory left); the same command continues, with micro_batch 2" in capfd.readouterr().err
    processes.fork(2, in_backward, recipe, tmp_path / "run")
    assert_close(straight, weights(tmp_path / "run"))


def test_the_probe_holds_the_memory_of_moments_that_are_not_there_yet(monkeypatch):
    state, empty, held = make_state(make_config()), torch.empty, []
    monkeypatch.setattr(torch, "empty", lambda *size, **more: held.append((size, more["dtype"])) or empty(*size, **more))
    with memory_trial.reserved(state.trained().values(), state.optimizer):
        pass
    state.model.head.weight.grad = torch.zeros(1, 8)
    state.optimizer.step()
    with memory_trial.reserved(state.trained().values(), state.optimizer):
        pass
    values = 4 * 8 + 8 + 8 + 1
    assert held == [((2 * 4 * values,), torch.uint8), ((2 * 4 * (values - 8),), torch.uint8)]  # two moments in float32


def test_the_size_of_a_micro_batch_is_its_numbers():
    assert memory_trial.size({"x": torch.zeros(3, 4), "y": torch.zeros(5), "names": ["a", "b"]}) == 17
    assert memory_trial.size({}) == 0


@pytest.mark.parametrize(("configured", "noted", "samples"), [(8, None, 8), (8, 4, 4), (2, 4, 2)])
def test_what_was_noted_never_raises_what_is_configured(tmp_path, configured, noted, samples):
    (tmp_path / micro_batch.NOTE).write_text(json.dumps({"a on 1": noted, "b on 1": 1, "a on 2": 1} if noted else {"a on 2": 1}))
    assert micro_batch.MicroBatchSize(tmp_path, "a", ALONE, configured).samples == samples


@pytest.mark.parametrize("noted", [{"a on 1": 0}, {"a on 1": -2}, {"a on 1": "4"}, {"a on 1": 4, "b on 1": 0}, [4]])
def test_a_note_that_holds_no_sizes_is_passed_over_and_said(tmp_path, noted, caplog):
    (tmp_path / micro_batch.NOTE).write_text(json.dumps(noted))
    assert micro_batch.MicroBatchSize(tmp_path, "a", ALONE, 8).samples == 8
    assert "does not hold micro-batch sizes" in caplog.text


def test_each_failure_halves_rounded_up_drops_the_gradients_and_is_noted_beside_the_others(tmp_path):
    (tmp_path / micro_batch.NOTE).write_text(json.dumps({"b on 1": 1}))
    size, tried, resets = micro_batch.MicroBatchSize(tmp_path, "a", ALONE, 13), [], []

    def work():
        tried.append(size.samples)
        if size.samples > 2:
            raise micro_batch.Exceeded("full")

    size.fit(work, lambda: resets.append(1))
    assert (tried, len(resets)) == ([13, 7, 4, 2], 3)
    assert json.loads((tmp_path / micro_batch.NOTE).read_text()) == {"a on 1": 2, "b on 1": 1}


@pytest.mark.parametrize("where", [{}, {"meet": True}, {"collective": True}, {"meet": True, "collective": True}])
def test_one_rank_alone_always_starts_again(where):
    with pytest.raises(micro_batch.Exceeded, match=r"^full$"), micro_batch.Guarded(ALONE, **where):
        raise torch.OutOfMemoryError("full\nof tensors")
    with micro_batch.Guarded(ALONE, **where):
        pass


class Two(Ranks):
    """One of two ranks, of which the other says `other`."""

    other = False

    def any(self, flag):
        self.asked = [*getattr(self, "asked", []), flag]
        return flag or self.other


def two(other):
    return type("Rank", (Two,), {"other": other, "__setattr__": object.__setattr__})(0, 2, torch.device("cpu"))


def test_ranks_tell_each_other_where_they_meet_and_nowhere_else():
    with pytest.raises(micro_batch.Exceeded, match=r"^another rank ran out of memory$"), micro_batch.Guarded(two(True), meet=True):
        pass
    for where in ({}, {"collective": True}, {"meet": True, "collective": True}):
        ranks = two(True)
        with micro_batch.Guarded(ranks, **where):
            pass
        assert not hasattr(ranks, "asked")
    with pytest.raises(micro_batch.ExceededAlone, match=r"^full$"), micro_batch.Guarded(two(False), collective=True):
        raise torch.OutOfMemoryError("full")
    ranks = two(True)
    with pytest.raises(KeyError), micro_batch.Guarded(ranks, meet=True):  # another error ends this rank alone
        raise KeyError
    assert not hasattr(ranks, "asked")
    told = two(False)
    with pytest.raises(micro_batch.Exceeded), micro_batch.Guarded(told):
        raise torch.OutOfMemoryError("full")
    assert told.asked == [True]
