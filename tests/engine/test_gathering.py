"""Matrices gathered in 16 bits: the same numbers as gathered in float32 and cast by autocast, at the bytes that are counted."""

import json

import pytest
import torch
from torch import nn
from torch.distributed.fsdp._fully_shard import _fsdp_collectives as collectives
from torch.nn.utils import parametrizations

from plait.engine.parallel import distributed, gathering, memory_estimate
from plait.engine.parallel.memory_estimate import Layout, Storage
from plait.engine.parallel.sharding import Sharding
from tests import processes
from tests.training import test_layouts as layouts

HALF = torch.bfloat16


class Block(nn.Module):
    """A norm with a gain, two linear layers and a vector; `width` values that two ranks may not halve."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.into, self.out = nn.RMSNorm(width), nn.Linear(width, 3 * width), nn.Linear(3 * width, width, bias=False)
        self.shift = nn.Parameter(torch.full((width,), 0.3))

    def forward(self, x):
        return x + self.out(torch.tanh(self.into(self.norm(x)))) * (1 + self.shift)


class Model(nn.Module):
    def __init__(self, width, rest=True):
        super().__init__()
        torch.manual_seed(3)
        self.blocks = nn.ModuleList(Block(width) for _ in range(3))
        self.head = nn.Linear(width, 2) if rest else nn.Identity()

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def test_what_plain_layers_alone_read_is_rounded():
    block = Block(4)
    block.tied, block.picture, block.causal = (
        nn.Embedding(12, 4),
        nn.Conv2d(3, 4, 2),
        type("Causal", (nn.Conv1d,), {"forward": None})(4, 4, 1),
    )
    block.tied.weight, block.scaled = block.into.weight, parametrizations.weight_norm(nn.Linear(4, 4, bias=False))
    block.stored = nn.Linear(4, 4, dtype=HALF)
    names = {name for name, _ in block.named_parameters()}
    assert gathering.matrices(block, names) == ["into.bias", "out.weight", "picture.bias", "picture.weight"]
    assert gathering.matrices(block, {"out.weight", "shift"}) == ["out.weight"]


class Counted:
    """Counts the bytes that this rank gives to each all-gather, by dtype, while it is entered."""

    def __enter__(self):
        self.sent, self.real = [], collectives.DefaultAllGather.__call__

        def gather(comm, output_tensor, input_tensor, *more, **options):
            self.sent.append((input_tensor.dtype, input_tensor.numel() * input_tensor.element_size()))
            return self.real(comm, output_tensor, input_tensor, *more, **options)

        collectives.DefaultAllGather.__call__ = gather
        return self

    def __exit__(self, *_):
        collectives.DefaultAllGather.__call__ = self.real


def stepped(ranks, strategy, width, products, rest=True):
    """Weights after three steps of two micro-batches under bf16, the dtypes seen, and what was gathered."""
    model = Model(width, rest)
    sharding, names = Sharding(model), {name for name, _ in model.named_parameters()}
    sharding.wrap(model.blocks, names, Layout(strategy, 2), ranks, types={}, products=products)
    optimizer, seen = torch.optim.SGD(model.parameters(), lr=0.1), set()
    first = model.blocks[0]
    first.out.register_forward_hook(lambda *_: seen.update((name, value.dtype) for name, value in first.named_parameters()))
    with Counted() as counted:
        for step in range(3):
            for i in range(2):
                x = torch.randn(4, width, generator=torch.Generator().manual_seed(4 * step + 2 * i + ranks.rank))
                with distributed.accumulating(model, last=i == 1), torch.autocast("cpu", dtype=HALF):
                    loss = model(x).float().square().mean()
                    with torch.autocast("cpu", enabled=False):
                        loss.backward()
            assert {value.grad.dtype for value in model.parameters()} == {torch.float32}
            optimizer.step()
            optimizer.zero_grad()
    sharding.unwrap()
    weights = {name: distributed.full_tensor(value.detach()) for name, value in model.named_parameters()}
    return weights, seen, counted.sent, model


def equal_to_the_bit(strategy, width):
    with distributed.join("cpu") as ranks:
        rounded, seen, _, _ = stepped(ranks, strategy, width, HALF)
        exact, full, _, _ = stepped(ranks, strategy, width, torch.float32)
    assert {name for name, dtype in seen if dtype == HALF} == {"into.weight", "into.bias", "out.weight"}
    assert {dtype for _, dtype in full} == {torch.float32} == {value.dtype for value in rounded.values()}
    for name, value in exact.items():
        assert torch.equal(rounded[name], value), name


@pytest.mark.parametrize(("strategy", "width"), [("fsdp", 5), ("shard_grad_op", 8)])
def test_weights_and_gradients_are_those_of_a_gather_in_float32_to_the_bit(strategy, width):
    processes.fork(2, equal_to_the_bit, strategy, width)


def counted_bytes(strategy):
    layout, storage = Layout(strategy, 2), Storage.of("bf16")
    with distributed.join("cpu") as ranks:
        _, _, sent, model = stepped(ranks, strategy, 8, HALF, rest=False)
    names, fresh = {name for name, _ in model.named_parameters()}, Model(8, rest=False)
    counts = memory_estimate.count_parameters(fresh, names, names, fresh.blocks)
    assert (counts.matrices, counts.unit_matrices) == (3 * (2 * 24 * 8 + 24), 2 * 24 * 8 + 24)
    gradients = 4 * counts.trained // 2  # a ring of two ranks: half is sent
    planned = 3 * (memory_estimate.traffic(counts, layout, storage, micro_batches=2).total - gradients)
    assert sum(size for _, size in sent) == planned  # of its shard, a rank sends all to the other one


@pytest.mark.parametrize("strategy", ["fsdp", "shard_grad_op"])
def test_as_many_bytes_are_gathered_as_are_counted(strategy):
    processes.fork(2, counted_bytes, strategy)


ALL = (
    *("train.precision=bf16", "distributed={strategy: fsdp, frozen: shard}", "evaluate=[]", "data.validation=[]"),
    "stages=[{name: all, trainable: [projector, vision, language, world]}]",
)


def trained(recipe, folder, found):
    """A tiny theworld under bf16, whose matrices are `found`; returns the bytes of gathers in float32, and of those in several dtypes."""
    gathering.matrices = found
    with Counted() as counted:
        layouts.train(recipe, folder, *ALL)
    return [sum(size for kind, size in counted.sent if kind == dtype) for dtype in (torch.float32, torch.uint8)]


def test_a_run_gathers_its_blocks_in_half_the_bytes_and_learns_the_same_to_the_bit(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"x": f"number {i}", "y": f"a {i % 7}"}) + "\n" for i in range(20)))
    recipe.write_text(layouts.CONFIG.format(folder=tmp_path))
    rounded = processes.run(2, trained, recipe, tmp_path / "rounded", gathering.matrices)
    whole = processes.run(2, trained, recipe, tmp_path / "exact", lambda *_: [])
    for (full, mixed), (all_full, none) in zip(rounded, whole, strict=True):
        assert none == 0 < mixed < 0.53 * (all_full - full)  # blocks: 2 bytes a value, and 4 for norms and gains
    one, other = (layouts.rows(tmp_path / name) for name in ("rounded", "exact"))
    for row, exact in zip(one, other, strict=True):
        assert {name: row[name] for name in row if name.startswith(("loss", "grad_norm", "eval/"))} == {
            name: exact[name] for name in exact if name.startswith(("loss", "grad_norm", "eval/"))
        }
