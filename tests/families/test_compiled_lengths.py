"""Compiled blocks see rows of many lengths, padded and packed: a few graphs are made in the first steps, and none later."""

import pytest
import torch
from torch._dynamo.utils import counters

from plait.config.schema import Distributed
from plait.engine import blocks
from plait.engine.flops import Flops, Meter
from plait.nn import documents
from tests.families.test_conformance import Case

# the compiler looks at .grad of activations while it traces, and hides its own warning only where warnings are no errors
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
TRACED = Distributed(compile=True).model_copy(update={"compile_backend": "eager"})  # what is compiled again is up to the tracer alone
SAMPLES, STEPS = 16, 30
MOST = {("theworld", "longest"): 4, ("theworld", "none"): 6, ("molmo", "longest"): 4, ("molmo", "none"): 5}
"""Graphs by family and data.pad: of each kind of block one for the first length and one for any; of vision's so for numbers of images, and
in molmo one more for any length of the first layer, whose input is a view."""
CALLS = {"selective": 2, "full": 3}
"""How often a layer's attention within documents is computed: forward, for its gradients, and where all of the block is recomputed."""


def micros_of(family, pad, folder):
    case = Case(family, folder)
    case.config = case.config.model_copy(update={"data": case.config.data.model_copy(update={"pad": pad})})
    sizes = (2, 3, 5) if pad == "none" else (2,)  # packs have as many documents
    return case, [micro for size in sizes for micro in case.micros(size, count=SAMPLES // size * size)]


@pytest.mark.parametrize(("family", "pad"), MOST)
def test_after_a_few_steps_no_length_is_compiled_again(family, pad, tmp_path):
    case, micros = micros_of(family, pad, tmp_path)
    micros = micros[::-1] if pad == "none" else micros
    assert len({micro.batch["ids"].shape for micro in micros}) > 4
    before, compiled = blocks.graphs(), list[int]()
    with blocks.changed(case.family.blocks(case.model), TRACED) as compilations:
        counters["graph_break"].clear()
        for step in range(STEPS):
            compilations.begin()
            case.loss.sums(case.model, micros[step % len(micros)].batch)
            compiled.append(len(compilations.compiled))
            compilations.end()
    assert not counters["graph_break"]
    assert not sum(compiled[4:]) and blocks.graphs() - before <= MOST[family, pad], compiled


@pytest.mark.parametrize(("family", "kind"), [("theworld", "selective"), ("molmo", "full")])
def test_packed_blocks_that_are_compiled_and_recomputed_give_the_gradient(family, kind, tmp_path, monkeypatch):
    case, micros = micros_of(family, "none", tmp_path)
    layers = [block for block in case.family.blocks(case.model) if "gate_proj" in dict(block.mlp.named_children())]  # of the language model
    packs = micros[-2:1:-6]
    plain, each, calls = [case.gradient([pack]) for pack in packs], documents._each, list[int]()
    with Flops() as flops:
        case.loss.sums(case.model, packs[-1].batch)
    monkeypatch.setattr(documents, "_each", lambda *given, **how: calls.append(1) or each(*given, **how))
    settings = Distributed(compile=True, compile_backend="aot_eager", compile_dynamic=True, activation_checkpointing=kind)
    with blocks.changed(layers, settings, meter := Meter(torch.device("cpu"), "fp32")):
        counters["graph_break"].clear()
        for pack, expected in zip(packs, plain, strict=True):
            found, scale = case.gradient([pack]), max(value.abs().max() for value in expected.values())
            assert all((found[name] - value).abs().max() <= 5e-7 * scale for name, value in expected.items())  # as for padded rows
        assert len(calls) == CALLS[kind] * len(layers) * len(packs)
        with meter.forward(packs[-1].batch):
            case.loss.sums(case.model, packs[-1].batch)
    assert meter.take() == flops.total and not counters["graph_break"]
