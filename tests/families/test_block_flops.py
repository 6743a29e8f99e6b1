"""The FLOPs of compiled blocks: those of the plain ones, found without running one, and once for all blocks of a kind."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from plait.config.schema import Distributed
from plait.engine import blocks
from plait.engine.flops import Flops, Meter
from plait.engine.precision import autocast
from plait.families import registry
from plait.nn import gpu_documents
from tests.families.test_conformance import SAMPLES, Case
from tests.families.test_packing import FAMILIES, micros

CASES = [(family, "longest") for family in registry.names()] + [(family, "none") for family in FAMILIES]

CPU = torch.device("cpu")
KINDS = {"theworld": 3, "molmo": 2, "nanodit": 1}
"""Kinds of blocks of the tiny models: vision's, and language's, of which theworld's have a sliding window or none."""


class Calls:
    """Counts the forward passes of the classes of blocks: on values, and on tensors without them."""

    def __init__(self, units, monkeypatch):
        self.real = self.fake = 0
        for kind in {type(block) for block in units}:
            monkeypatch.setattr(kind, "forward", self.counting(kind.forward))

    def counting(self, forward):
        def run(block, x, *args, **kwargs):
            out = forward(block, x, *args, **kwargs)
            if isinstance(out[0] if isinstance(out, tuple) else out, FakeTensor):
                self.fake += 1
            else:
                self.real += 1
            return out

        return run


@pytest.mark.parametrize(("family", "pad"), CASES)
def test_compiled_blocks_cost_what_plain_ones_do_and_run_once(family, pad, tmp_path, monkeypatch):
    precision = "bf16" if pad == "none" else "fp32"
    case = Case(family, tmp_path)
    (micro,) = micros(case, pad, SAMPLES)[:1]
    case.loss.sums(case.model, micro.batch)  # within_documents sets the attention once
    with Flops() as plain, autocast(precision, CPU):
        expected = case.loss.sums(case.model, micro.batch)
    units = case.family.blocks(case.model)
    calls = Calls(units, monkeypatch)
    monkeypatch.setattr(torch, "compile", lambda forward, **_: forward)
    meter, settings = Meter(CPU, precision), Distributed(compile=True, activation_checkpointing="full")
    with blocks.changed(units, settings, meter=meter):
        for _ in range(2):
            with meter.forward(micro.batch), autocast(precision, CPU):
                sums = case.loss.sums(case.model, micro.batch)
            assert all(torch.equal(value, expected[name]) for name, value in sums.items())
            torch.autograd.backward([value for value in sums.values() if value.requires_grad])
    (once, again) = meter.taken if meter.take() else ()
    assert once is again
    assert (once.total, once.masked, once.calls) == (plain.total, plain.masked, plain.calls)
    assert calls.real == 2 * len(units)
    assert calls.fake == KINDS[family]


def test_kernels_of_a_gpu_are_counted_without_running_them(tmp_path, monkeypatch):
    case = Case("theworld", tmp_path)
    (micro,) = micros(case, "none", SAMPLES)[:1]
    case.loss.sums(case.model, micro.batch)
    given = []
    for block in case.family.blocks(case.model):
        block.register_forward_pre_hook(lambda *called: given.append(called), with_kwargs=True)
    monkeypatch.setattr(gpu_documents, "choose", lambda *_: "flex")
    monkeypatch.setattr(gpu_documents, "_compiled", lambda: nn.Identity)
    with pytest.raises(TypeError):  # what was chosen has no kernel here
        case.loss.sums(case.model, micro.batch)
    (layer, args, kwargs), costs = given[-1], blocks.BlockFlops()
    before = [*kwargs["documents"].shared]
    total, masked, _ = costs.of(layer, args, kwargs)
    assert masked == 0 < total
    assert costs.of(layer, args, kwargs)[0] == total
    assert [*kwargs["documents"].shared] == before
