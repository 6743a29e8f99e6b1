"""The loss: its sums over its weights are the weighted mean, and nothing supervised weighs nothing."""

import pytest
import torch
import torch.nn.functional as F

from plait.families.molmo.loss import Loss
from tests.families.molmo.conftest import sample


def test_loss_is_the_weighted_mean_over_answer_tokens(make):
    config, model, inputs = make(weighting="root_subsegments_root_tokens")
    example = inputs.encode(sample(1, annotations=[("What?", "a small green frog"), ("Where?", "a mat")]), 0)
    batch, loss = inputs.collate([example]), Loss(config)
    with torch.no_grad():
        sums = loss.sums(model, batch)
        logits = model.logits(model.hidden(model.embed(batch), batch))[0]
    nats = F.cross_entropy(logits, example.row.labels, reduction="none")
    assert sums["loss"].item() == pytest.approx((nats * example.row.loss_weights).sum().item(), rel=1e-5)
    assert loss.weights(batch)["loss"].item() == pytest.approx(example.row.loss_weights.sum().item())
    assert sums["z_loss"].item() == pytest.approx((logits.logsumexp(-1) ** 2 * example.row.loss_weights).sum().item(), rel=1e-5)


def test_loss_terms_have_their_coefficients(make):
    config, _, _ = make(z_loss=0.01)
    assert Loss(config).coefficients == {"loss": 1.0, "z_loss": 0.01, "cut": 0.0}


@pytest.mark.parametrize("pad", ["longest", "none", "to_128"])
def test_each_sample_has_its_own_tokens_and_weight_in_any_layout(make, pad):
    config, _, inputs = make(weighting="root_subsegments", inputs={"pad": pad})
    samples = [sample(1, annotations=[("What?", "a frog"), ("Where?", "a mat")]), sample(say="two dogs"), sample(1, say="a cat on a mat")]
    examples = [inputs.encode(example, 0) for example in samples]
    counts = Loss(config).by_sample(inputs.collate(examples))
    assert counts["tokens"].tolist() == [len(example.row) for example in examples]
    assert counts["supervised_tokens"].tolist() == [(example.row.loss_weights > 0).sum() for example in examples]
    for weight, example in zip(counts["loss"].tolist(), examples, strict=True):
        assert weight == pytest.approx(
            example.row.loss_weights.double().sum().item(), abs=1e-12
        )  # the same float32 values summed in float64


def test_loss_counts_answer_tokens_that_the_limit_cut(make):
    config, model, inputs = make(inputs={"max_tokens": 80})
    one = sample(1, say="a small green frog and a cat on a mat and two dogs and a red square and a frog")
    batch = inputs.collate([inputs.encode(one, 0), inputs.encode(sample(), 0)])
    assert batch["ids"].shape[1] == 80
    assert Loss(config).sums(model, batch)["cut"].item() == batch["cut"].sum().item() > 0
    assert Loss(config).weights(batch)["cut"].item() == 2
