"""What a step holds, on tensors without memory: counted by hand for small stacks."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from plait.config.schema import Distributed
from plait.errors import PlaitError
from plait.nn.weighted import weighted_cross_entropy
from plait.training.planning import fake_step

F = 4  # bytes of a float32


class Sums:
    def __init__(self, forward):
        self.forward = forward

    def sums(self, model, batch):
        return {"loss": self.forward(model, batch)}


def bundle(*layers, trained, precision="fp32"):
    with torch.device("meta"):
        model = nn.Sequential(*layers)
    made = SimpleNamespace(model=model, blocks=[*model], family=SimpleNamespace(recomputed=lambda model: []))
    fake_step.fake_weights(made, trained, set(trained), precision)
    return made


def linear(trains=True):
    return nn.Linear(16, 16, bias=False, device="meta").requires_grad_(trains)


def measured(made, forward, batch, checkpointing="none", precision="fp32", *, casts_kept=True):
    settings = Distributed(activation_checkpointing=checkpointing)
    return fake_step.measure(made, Sums(forward), batch, precision, settings, casts_kept=casts_kept)


def plain(model, batch):
    return model(batch["x"]).sum()


def test_a_linear_stack_keeps_its_inputs_and_gets_its_gradients():
    made = bundle(linear(), nn.ReLU(), linear(), trained={"0.weight", "2.weight"})
    step = measured(made, plain, {"x": torch.zeros(8, 16)})
    row = 8 * 16 * F
    assert step.activations == row + F  # the relu's output serves both products; the loss
    assert step.gradients == 2 * 16 * 16 * F and step.batch == row
    assert step.peak >= step.transient >= step.activations
    assert all(value.grad is None for value in made.model.parameters())


def test_nothing_is_kept_below_the_lowest_trainable_layer():
    made = bundle(linear(), nn.ReLU(), linear(), trained={"2.weight"})
    assert measured(made, plain, {"x": torch.zeros(8, 16)}).gradients == 16 * 16 * F
    assert not made.model[0].weight.requires_grad


def test_frozen_weights_are_of_16_bits_under_bf16_and_trained_ones_are_not():
    made = bundle(linear(), linear(), trained={"0.weight"}, precision="bf16")
    assert [value.dtype for value in made.model.parameters()] == [torch.float32, torch.bfloat16]


def test_checkpointed_blocks_keep_their_inputs_alone():
    layers = [nn.Sequential(linear(), nn.ReLU(), linear(), nn.ReLU()) for _ in range(3)]
    names = {f"{block}.{layer}.weight" for block in range(3) for layer in (0, 2)}
    batch = {"x": torch.zeros(8, 16)}
    kept = {kind: measured(bundle(*layers, trained=names), plain, batch, kind).activations for kind in ("none", "full")}
    row = 8 * 16 * F
    assert kept["full"] == 2 * row + F  # the first has the batch
    assert kept["none"] == 6 * row + F


def test_16_bit_copies_of_weights_are_there_until_the_end_of_a_backward_pass_that_recomputes_where_they_are_kept():
    layers = [nn.Sequential(linear(), nn.ReLU()) for _ in range(8)]
    names, batch = {f"{block}.0.weight" for block in range(8)}, {"x": torch.zeros(2, 16)}
    kept, made_again = (measured(bundle(*layers, trained=names), plain, batch, "full", "bf16", casts_kept=kept) for kept in (True, False))
    casts = 8 * 16 * 16 * 2
    assert kept.activations == made_again.activations + casts
    assert kept.gradients == made_again.gradients == 2 * casts
    assert 3 * casts <= kept.peak < 3 * casts + 1024 and 2 * casts <= made_again.peak < 2 * casts + 1024
    assert kept.transient >= casts and made_again.transient >= casts  # until the end of the forward pass
    assert kept.sharded == made_again.sharded < casts / 2


@pytest.mark.parametrize("kind", ["none", "full", "selective"])
def test_sharded_blocks_hold_what_they_would_with_matrices_of_16_bits(kind):
    """Those are what they are gathered as: autocast leaves them, and gradients are float32 all the same."""
    layers = [nn.Sequential(nn.LayerNorm(16, device="meta"), linear(), nn.ReLU(), linear()) for _ in range(4)]
    names = {f"{block}.{layer}" for block in range(4) for layer in ("0.weight", "0.bias", "1.weight", "3.weight")}
    batch, made = {"x": torch.zeros(8, 16)}, bundle(*layers, trained=names, precision="bf16")
    step = measured(made, plain, batch, kind, "bf16", casts_kept=False)
    for block in made.blocks:
        for layer in (1, 3):
            block[layer].weight = nn.Parameter(block[layer].weight.detach().to(torch.bfloat16))
            block[layer].weight.grad_dtype = torch.float32
    gathered = measured(made, plain, batch, kind, "bf16", casts_kept=False)
    assert gathered.gradients == step.gradients
    assert step.sharded == gathered.transient < step.transient - 2 * 16 * 16 * 2


def test_logits_are_those_of_one_chunk():
    made = bundle(nn.Linear(16, 1000, bias=False, device="meta"), trained={"0.weight"})
    batch = {"x": torch.zeros(700, 16), "labels": torch.zeros(700, dtype=torch.int64), "weights": torch.ones(700)}

    def forward(model, batch):
        return weighted_cross_entropy(batch["x"], model[0].weight, batch["labels"], batch["weights"])[0]

    chunk = 256 * 1000 * F
    assert chunk <= measured(made, forward, batch).logits < 3 * chunk


def test_a_mask_of_the_batch_chooses_rows_although_the_weights_have_no_values():
    made = bundle(linear(), trained={"0.weight"})
    batch = {"x": torch.zeros(8, 16), "mask": torch.tensor([True, False] * 4)}
    step = measured(made, lambda model, batch: model(batch["x"])[batch["mask"]].square().sum(), batch)
    assert step.activations >= 4 * 16 * F


def test_a_model_that_reads_what_it_computes_is_told_in_one_line():
    made = bundle(linear(), trained={"0.weight"})
    with pytest.raises(PlaitError, match=r"the model cannot be run without values, which it takes in aten\.\w+"):
        measured(made, lambda model, batch: model(batch["x"]).sum() * float(model(batch["x"]).max()), {"x": torch.zeros(8, 16)})


def test_flops_are_those_of_forward_and_backward():
    made = bundle(linear(), linear(), trained={"0.weight", "1.weight"})
    assert fake_step.flops(made, Sums(plain), {"x": torch.zeros(8, 16)}, "fp32") == 2 * 8 * 16 * 16 * (3 + 3 - 1)
