"""Recomputing and compiling blocks: that they act, and that they change no gradient."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from plait.config.schema import Distributed
from plait.engine import blocks, flops
from plait.engine.flops import Meter

# torch's compiler looks at .grad of activations while it traces, and hides its own warning only where warnings are no errors
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")

WIDTH, DEPTH, ROWS = 16, 4, 8


class Block(nn.Module):
    """A feed-forward layer with dropout; `calls` counts its forward passes."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.drop = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH), nn.Dropout(0.5)

    def forward(self, x):
        return x + self.drop(self.down(torch.sin(self.up(x))))


class Operators(TorchDispatchMode):
    """Names of the operators that ran."""

    supports_higher_order_operators = True

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name().removeprefix("aten::").partition(".")[0])
        return func(*args, **(kwargs or {}))


def make(**settings):
    torch.manual_seed(0)
    net = nn.Sequential(*(Block() for _ in range(DEPTH)))
    return net, blocks.checkpoint_and_compile(list(net), Distributed(**settings))


def gradients(net, rows=ROWS, precision=torch.float32):
    """All gradients after one pass with dropout, the bytes kept for the backward pass, and the operators of the backward pass."""
    torch.manual_seed(1)
    x, kept = torch.randn(rows, WIDTH, requires_grad=True), {}

    def pack(value):
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value), torch.autocast("cpu", precision, precision != torch.float32):
        loss = net(x).square().sum()
    with Operators() as backward:
        loss.backward()
    return {name: value.grad for name, value in net.named_parameters()}, sum(kept.values()), backward.names


@pytest.fixture
def fresh():
    """No graph of an earlier test is reused."""
    torch._dynamo.reset()


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


KINDS = [{"activation_checkpointing": kind} for kind in ("full", "one_in_two", "selective")]
KINDS.append({"activation_checkpointing": "one_in_n", "checkpoint_one_in": 3})


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", KINDS, ids=lambda one: one["activation_checkpointing"])
def test_checkpointing_changes_no_bit_of_a_gradient_dropout_included(settings, precision):
    plain, _, _ = gradients(make()[0], precision=precision)
    found, _, _ = gradients(make(**settings)[0], precision=precision)  # the same operations on the same numbers: no tolerance
    assert same(plain, found)


@pytest.mark.parametrize(("settings", "recomputed"), list(zip(KINDS, (4, 2, 4, 2), strict=True)), ids=str)
def test_checkpointing_recomputes_the_blocks_it_says(settings, recomputed):
    _, _, operators = gradients(make(**settings)[0])
    assert operators.count("sin") == recomputed
    assert "sin" not in gradients(make()[0])[2]


def test_checkpointed_blocks_keep_their_input_alone():
    whole, halved, none = (gradients(make(activation_checkpointing=kind)[0])[1] for kind in ("full", "one_in_two", "none"))
    inputs = ROWS * WIDTH * 4
    assert DEPTH * inputs <= whole <= (DEPTH + 1) * inputs  # and the output, for the square
    assert whole < halved < none
    assert (none - halved) == pytest.approx(halved - whole, abs=inputs)  # half of the blocks, half of what is saved


def test_selective_checkpointing_computes_no_matrix_product_again():
    products = {kind: gradients(make(activation_checkpointing=kind)[0])[2].count("addmm") for kind in ("none", "selective", "full")}
    assert products == {"none": 0, "selective": 0, "full": 2 * DEPTH}


@pytest.mark.parametrize("settings", [{}, *KINDS], ids=str)
def test_compiling_changes_no_bit_of_a_gradient_with_any_checkpointing(settings, fresh):
    plain, _, _ = gradients(make()[0])
    net, compilations = make(**settings, compile=True, compile_backend="aot_eager")
    compilations.begin()
    found, _, _ = gradients(net)  # aot_eager runs the traced operations one by one, unfused: no tolerance
    assert same(plain, found)
    assert compilations.compiled[0] == f"block 0 (Block) for ({ROWS}, {WIDTH})"


def steps(compilations, net, rows):
    """What each of the steps with so many rows compiled again."""
    found = []
    for count in rows:
        compilations.begin()
        gradients(net, count)
        found.append(compilations.end())
    return found


def test_what_is_compiled_after_warm_up_is_counted_with_block_and_shape(fresh):
    net, compilations = make(compile=True, compile_backend="aot_eager", compile_dynamic=False)
    with blocks.compiling(Distributed(compile=True)):
        found = steps(compilations, net, [8, 8, 8, 9, 9])
    assert found == [[], [], [], ["compiled again: block 0 (Block) for (9, 16)"], []]
    assert (compilations.again, compilations.warm) == (1, True)


def test_lengths_that_vary_from_the_start_are_compiled_once_more_within_warm_up(fresh):
    net, compilations = make(compile=True, compile_backend="aot_eager")
    assert steps(compilations, net, [8, 9, 10, 11, 12]) == [[]] * 5
    assert compilations.warm


@pytest.mark.parametrize(("inside", "compiled"), [(False, 1), (True, 3)])
def test_more_shapes_than_torch_allows_by_default_are_still_compiled(inside, compiled, fresh):
    net, compilations = make(compile=True, compile_backend="aot_eager", compile_dynamic=False)
    with torch._dynamo.config.patch(recompile_limit=2), blocks.compiling(Distributed(compile=inside)):
        found = steps(compilations, net[:1], [2, 2, 3, 4, 5])
    assert sum(map(len, found)) == compiled


def test_an_evaluation_between_steps_is_no_recompilation(fresh):
    net, compilations = make(compile=True, compile_backend="aot_eager")
    steps(compilations, net, [8, 8])
    with torch.no_grad():
        net.eval()(torch.randn(8, WIDTH))
    net.train()
    assert steps(compilations, net, [8]) == [[]]


def test_counting_a_compiled_step_compiles_nothing_more_and_changes_no_bit(fresh):
    plain, _, _ = gradients(make(activation_checkpointing="full")[0])
    net, compilations = make(activation_checkpointing="full", compile=True, compile_backend="aot_eager")
    steps(compilations, net, [ROWS])
    compilations.meter = Meter(torch.device("cpu"), "fp32")
    compilations.begin()
    net.zero_grad()
    with compilations.meter.forward({"x": torch.empty(ROWS, WIDTH)}):
        found, _, _ = gradients(net)
    assert same(plain, found)
    assert compilations.end() == []
    product = 2 * ROWS * WIDTH * 4 * WIDTH
    assert compilations.meter.take() == DEPTH * 2 * 3 * product


def test_a_block_that_reads_values_ends_the_count_with_a_line(caplog):
    class Reading(Block):
        def forward(self, x):
            return super().forward(x) if x.sum() < 1e9 else x

    compilations, net = blocks.Compilations(Meter(torch.device("cpu"), "fp32")), Reading()
    forward = compilations.watch("block 0 (Reading)", net, net.forward)
    with caplog.at_level("INFO"), compilations.meter.forward({"x": torch.empty(ROWS, WIDTH)}):
        assert all(forward(torch.randn(ROWS, WIDTH)).shape == (ROWS, WIDTH) for _ in range(2))
    assert compilations.meter.take() == 0
    (line,) = [record.message for record in caplog.records if record.name == blocks.__name__]
    assert line.startswith("tflop_per_s and mfu are not told: block 0 (Reading) reads values that it computes (")


def test_flops_of_the_last_shapes_alone_are_kept(monkeypatch):
    monkeypatch.setattr(blocks, "MOST_SHAPES", 2)
    monkeypatch.setattr(flops, "MOST_SHAPES", 2)
    meter, costs, net, found = Meter(torch.device("cpu"), "fp32"), blocks.BlockFlops(), Block(), []
    net.register_forward_pre_hook(lambda _, given: found.append(len(given[0])))
    for rows in (1, 2, 1, 3, 1, 2):
        x = torch.empty(rows, WIDTH)
        assert costs.of(net, (x,), {})[0] == 2 * (2 + 3) * rows * WIDTH * 4 * WIDTH
        with meter.forward({"x": x}):
            net(x) if meter.counting is not None else None
    assert found == [1, 2, 3, 2]
    assert meter.take() == 10 * 2 * (2 + 3) * WIDTH * 4 * WIDTH
    assert len(meter._known) == len(costs._known) == 2


def test_unfreezing_compiles_a_block_once_and_gives_its_gradient(fresh):
    settings = {"compile": True, "compile_backend": "aot_eager"}
    net, compilations = make(**settings)
    net.requires_grad_(False)
    steps(compilations, net[:1], [8, 8])
    net.requires_grad_(True)
    later = blocks.checkpoint_and_compile(list(net), Distributed(**settings))
    later.begin()
    found = gradients(net[:1])[0]
    assert later.compiled == ["block 0 (Block) for (8, 16)"]
    assert same(found, gradients(make()[0][:1])[0])


def test_a_later_stage_undoes_what_an_earlier_one_did():
    net, _ = make(activation_checkpointing="full", compile=True, compile_backend="aot_eager")
    assert blocks.checkpoint_and_compile(list(net), Distributed()) is None
    assert all("forward" not in block.__dict__ for block in net)


def test_parameter_names_stay_as_they_are():
    names = [[name for name, _ in make(**settings)[0].named_parameters()] for settings in ({}, *KINDS)]
    assert all(one == other for one, other in itertools.pairwise(names))
