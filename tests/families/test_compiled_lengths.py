"""Compiled blocks see rows of many lengths, padded and packed: a few graphs are made in the first steps, and none later."""

import pytest
from torch._dynamo.utils import counters

from plait.config.schema import Distributed
from plait.engine import blocks
from tests.families.test_conformance import Case

# the compiler looks at .grad of activations while it traces, and hides its own warning only where warnings are no errors
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
TRACED = Distributed(compile=True).model_copy(update={"compile_backend": "eager"})  # what is compiled again is up to the tracer alone
SAMPLES, STEPS = 16, 30
MOST = {("theworld", "longest"): 4, ("theworld", "none"): 13, ("molmo", "longest"): 4, ("molmo", "none"): 11}
"""Graphs by family and data.pad: of each kind of block one for the first length and one for any; packed, of each part around attention."""


@pytest.mark.parametrize(("family", "pad"), MOST)
def test_after_a_few_steps_no_length_is_compiled_again(family, pad, tmp_path):
    case = Case(family, tmp_path)
    case.config = case.config.model_copy(update={"data": case.config.data.model_copy(update={"pad": pad})})
    micros = case.micros(2, count=SAMPLES)
    assert len({micro.batch["ids"].shape for micro in micros}) > 4
    before, compiled = blocks.graphs(), list[int]()
    with blocks.changed(case.family.blocks(case.model), TRACED) as compilations:
        counters["graph_break"].clear()
        for step in range(STEPS):
            compilations.begin()
            case.loss.sums(case.model, micros[step % len(micros)].batch)
            compiled.append(len(compilations.compiled))
            compilations.end()
    breaks = [reason for reason in counters["graph_break"] if "_attention_within" not in reason]
    assert not breaks and bool(counters["graph_break"]) == (pad == "none")  # packed attention is called, and not traced
    assert not sum(compiled[4:]) and blocks.graphs() - before <= MOST[family, pad], compiled
