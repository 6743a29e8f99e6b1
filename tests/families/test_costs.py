"""What a step costs, in what can be counted on any machine: kernels, calls of Python, bytes kept for the backward pass, imports.

Each limit stands a few per cent above what was counted when it was written; `pytest -s` prints what is counted now.
"""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from plait.data.loading.micro_batch import MicroBatchBuilder
from plait.data.order import Order
from plait.data.sources.contract import Source
from plait.engine.monitoring.spikes import SpikeWatch
from plait.families import registry
from tests.engine.toy import ALONE, Net, SquaredError, make_config, make_loop, make_state, micro, step_batch
from tests.families.test_conformance import SAMPLES, Case

KERNELS = {"theworld": 2720, "molmo": 2090, "nanodit": 830}
"""aten calls, views among them, that a micro-batch of four samples dispatches, forward and backward, in bf16."""
SAVED_BYTES = {"theworld": 1_460_000, "molmo": 17_500_000, "nanodit": 2_150_000}
"""Bytes of the tensors that such a micro-batch keeps for its backward pass, without parameters; one memory counts once."""
STEP_KERNELS, STEP_CALLS, CALLS_OF_BARE = 65, 510, 1.22
"""Of a step of the toy: aten calls, calls of functions of Python and C, and these over those of a loop written by hand."""
SAMPLE_CALLS = 16.5
"""Calls of functions that the loader adds to those of a source and a family for each sample of a micro-batch of 16."""
MODULES = 3900
"""Modules that are loaded when a run of theworld can begin."""

MICRO = micro(list(range(16)))


class Kernels(TorchDispatchMode):
    """Context manager: counts the aten calls inside it, forward and backward."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def at_most(what, found, limit):
    print(f"{what}: {found:,} (at most {limit:,})")
    assert found <= limit, f"{what}: {found:,}, and at most {limit:,} before; if that is worth it, write the new limit into {__file__}"


@pytest.fixture(scope="module", params=registry.names())
def case(request, tmp_path_factory):
    return Case(request.param, tmp_path_factory.mktemp(request.param))


def forward(case, micro):
    with torch.autocast("cpu", torch.bfloat16):
        sums = case.loss.sums(case.model, micro.batch)
    return sum(case.loss.coefficients[name] * value for name, value in sums.items())


def test_a_micro_batch_dispatches_no_more_kernels_than_before(case):
    (micro,) = case.micros(SAMPLES)
    case.model.train()
    with Kernels() as kernels:
        forward(case, micro).backward()
    at_most(f"{case.family.name}: aten calls of a micro-batch", kernels.count, KERNELS[case.family.name])


def test_a_micro_batch_keeps_no_more_for_its_backward_pass_than_before(case):
    (micro,) = case.micros(SAMPLES)
    case.model.train()
    parameters, kept = {value.untyped_storage().data_ptr() for value in case.model.parameters()}, {}

    def pack(value):
        storage = value.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        forward(case, micro)
    at_most(f"{case.family.name}: bytes kept for the backward pass", sum(kept.values()), SAVED_BYTES[case.family.name])


def toy_run(folder, steps, each):
    """Train the toy for some steps of 16 samples with the rule for spikes; `each(step)` is called after every one."""
    config = make_config()
    state = make_state(config)
    spikes = SpikeWatch(state, config.guard, ALONE, folder, "toy", lambda what, row, batch: "")
    hooks = [lambda state, row: each(state.step)]
    loop = make_loop(state, SquaredError(), config, ALONE, folder / "quarantine.jsonl", hooks, spikes=spikes)
    loop.run([step_batch(step, [MICRO]) for step in range(steps)], 1000)


def bare_run(folder, steps, each):
    """The same by hand."""
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, fused=True)
    for step in range(1, steps + 1):
        batch = MICRO.batch
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        ((batch["w"] * (net(batch) - batch["y"]) ** 2).sum() / batch["w"].sum()).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        each(step)


def counted(run, folder, count):
    """What a step of `run` takes by `count`, which calls a run to its steps 70 and 80; a first one does what is done once."""
    run(folder, 1, lambda step: None)
    return (count(lambda: run(folder, 80, lambda step: None)) - count(lambda: run(folder, 70, lambda step: None))) / 10


def dispatched(work):
    with Kernels() as kernels:
        work()
    return kernels.count


def test_a_step_adds_no_more_kernels_than_before(tmp_path):
    at_most("aten calls of a step of the toy", counted(toy_run, tmp_path, dispatched), STEP_KERNELS)


def test_a_step_calls_no_more_functions_than_before_and_than_a_bare_loop(tmp_path, calls):
    ours, bare = counted(toy_run, tmp_path, calls), counted(bare_run, tmp_path, calls)
    at_most("calls of a step of the toy", ours, STEP_CALLS)
    at_most("calls of a step over those of a bare loop", ours / bare, CALLS_OF_BARE)


class Numbers(Source):
    """Samples of nothing, which are their own examples."""

    name = fingerprint = "numbers"

    def __len__(self):
        return 999

    def __getitem__(self, index):
        return {"id": str(index), "images": [], "messages": [], "fields": {}}

    def encode(self, sample, key):
        return sample

    def collate(self, samples):
        return {}


def test_the_loader_calls_no_more_functions_for_a_sample_than_before(calls):
    numbers = Numbers()
    builder = MicroBatchBuilder((numbers,), Order([999], [1.0], 0, 16), numbers, seed=0, rank=0, world_size=1, micro_batch=None)
    ids, padding = builder.slices(3)[0]
    builder.build(ids, padding)
    at_most("calls of the loader for a sample", calls(lambda: builder.build(ids, padding)) / 16, SAMPLE_CALLS)


def test_a_start_loads_no_more_modules_than_before():
    code = "import sys, plait.cli, plait.training.run, plait.families.theworld.family; print(len(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    at_most("modules loaded for a run of theworld", int(done.stdout), MODULES)
