"""The cost of theworld's steps by what trains, against torch's counter of what ran."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from plait.engine import optim
from plait.engine.flops import Flops
from plait.families.theworld.model import NEVER_TRAINED, components
from tests.families.theworld.conftest import sample


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("trainable", [["projector"], ["projector", "vision"], ["projector", "vision", "language"], ["*"]])
def test_a_step_costs_what_torch_counts_whatever_trains(make, trainable, precision):
    _, model, inputs = make()
    model.train()
    batch = inputs.collate([inputs.encode(sample(1), key=1), inputs.encode(sample(2, say="a cat on a mat"), key=2)])
    optim.freeze(model, optim.select(components(model), trainable, NEVER_TRAINED))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as torchs:
        with Flops() as flop, torch.autocast("cpu", dtype=precision, enabled=precision == torch.bfloat16):
            total = model(batch)["loss"]
        total.backward()
    # The loss differs: its logits are taken again for the backward pass of bf16, and torch's counter does not know torch's own of fp32.
    assert flop.total == pytest.approx(torchs.get_total_flops(), rel=0.01)
