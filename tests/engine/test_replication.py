"""Gradients that replicas send as bfloat16: what is sent, what comes of it, and that a run tells of it."""

import pytest
import torch
from torch import nn

from plait.config.schema import Distributed
from plait.engine.parallel import distributed, memory_estimate, replication
from plait.engine.parallel.memory_estimate import Layout, ParameterCounts, Storage
from plait.engine.parallel.strategy import Place, decide
from tests import processes
from tests import toy_family as toy


def averaged(comm_hook, micro_batches=1):
    """On one of two ranks: the averaged gradient of a linear layer, this rank's own before, and the dtype and size of what was sent."""
    with distributed.join("cpu") as ranks:
        torch.manual_seed(0)
        model = nn.Linear(7, 5, bias=False)
        net, sent, reduce = distributed.replicate(model, ranks, comm_hook), [], torch.distributed.all_reduce

        def counted(tensor, **options):
            sent.append((tensor.dtype, tensor.numel()))
            return reduce(tensor, **options)

        replication.dist.all_reduce = counted
        own = torch.zeros(5, 7)
        for i in range(micro_batches):
            x = torch.randn(3, 7, generator=torch.Generator().manual_seed(2 * i + ranks.rank))
            own += torch.autograd.grad(model(x).square().sum(), model.weight)[0]
            with distributed.accumulating(net, last=i == micro_batches - 1):
                net(x).square().sum().backward()
        replication.dist.all_reduce = reduce
        del net  # before the group of ranks is
        return model.weight.grad.tolist(), own.tolist(), sent


def tensors(answers):
    return [(torch.tensor(gradient), torch.tensor(own), sent) for gradient, own, sent in answers]


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_gradients_are_averaged_in_bfloat16_once_per_step(micro_batches):
    (first, one, sent), (second, other, _) = tensors(processes.run(2, averaged, "bf16", micro_batches))
    assert sent == [(torch.bfloat16, 35)]
    half = torch.bfloat16
    assert first.dtype == torch.float32
    assert torch.equal(first, second)
    torch.testing.assert_close(first, (one.to(half) / 2 + other.to(half) / 2).float(), rtol=2**-8, atol=0)
    assert torch.equal(first, first.to(half).float())
    exact = (one + other) / 2
    assert 0 < (first - exact).norm() / exact.norm() < 2**-7


def test_without_the_hook_gradients_are_averaged_as_they_are():
    (first, one, sent), (_, other, _) = tensors(processes.run(2, averaged, "none"))
    torch.testing.assert_close(first, (one + other) / 2)
    assert not sent  # DDP's own reducer sends them


@pytest.fixture
def recipe(monkeypatch, tmp_path):
    return toy.install(monkeypatch, tmp_path)


def test_a_run_with_the_hook_tells_of_it_and_differs_by_the_rounding_alone(recipe, tmp_path, caplog):
    settings = ("distributed.strategy=ddp", "train.micro_batch=1", "train.precision=fp32")
    for name, more in (("exact", ()), ("rounded", ("distributed.ddp_comm_hook=bf16",))):
        processes.fork(2, toy.train, recipe, tmp_path / name, *settings, *more)
    exact, rounded = ([row["loss"] for row in toy.figures(tmp_path / name) if "loss" in row] for name in ("exact", "rounded"))
    assert exact[0] == rounded[0]
    assert exact != rounded
    assert rounded == pytest.approx(exact, rel=0.02)  # updates of Adam are as large as the rate, whatever 8 bits leave of a gradient
    with caplog.at_level("INFO"):
        toy.train(recipe, tmp_path / "alone", "distributed.ddp_comm_hook=bf16")
    assert "distributed.ddp_comm_hook changes nothing: one rank sends no gradients" in caplog.messages


def test_the_estimate_counts_two_bytes_per_gradient_and_the_choice_tells_of_the_hook():
    counts, storage = ParameterCounts(trained=1000), Storage.of("bf16", comm_hook="bf16")
    assert memory_estimate.traffic(counts, Layout("ddp", 4), storage) == (0, 2 * 2 * 1000 * 3 // 4)
    assert memory_estimate.traffic(counts, Layout("fsdp", 4), storage) == memory_estimate.traffic(
        counts, Layout("fsdp", 4), Storage.of("bf16")
    )
    settings = Distributed(ddp_comm_hook="bf16")
    line = decide(settings, counts, storage, Place(4, 4, 1e9), accumulating=False)[1]
    assert line.endswith("fits the 0.7 GB for it; gradients are sent as bfloat16")
    line = decide(settings, counts, storage, Place(4, 4, 1.0), accumulating=False)[1]
    assert line.endswith("; distributed.ddp_comm_hook changes nothing, as it is for ddp")
