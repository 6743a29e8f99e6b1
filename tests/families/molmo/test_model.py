"""The model: packing, crops and batches are layouts, not changes; and the connector against its equation."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from plait.families.molmo import family
from plait.families.molmo.hf.connector import MeanQueryPooling
from plait.families.molmo.loss import Loss
from plait.families.molmo.model import Molmo
from plait.families.molmo.tiny import framing_texts
from tests.families.molmo.conftest import sample

PAIRS = [("What is this?", "a small green frog"), ("Where is it?", "on a mat"), ("How many?", "two dogs")]
FP32 = 1e-4  # sums of 128 products in another order


@torch.no_grad()
def logits(model, batch):
    return model.logits(model.hidden(model.embed(batch), batch))


@torch.no_grad()
def test_packed_annotations_have_the_logits_they_have_alone(make):
    _, model, inputs = make()
    together = inputs.encode(sample(1, annotations=PAIRS), 0)
    packed = logits(model, inputs.collate([together]))[0]
    for number, pair in enumerate(PAIRS, start=1):
        alone = logits(model, inputs.collate([inputs.encode(sample(1, annotations=[pair]), 0)]))[0]
        of_annotation = together.row.annotations == number
        assert torch.allclose(packed[of_annotation], alone[-int(of_annotation.sum()) :], atol=FP32)


def test_packing_rows_changes_no_sum(make):
    config, model, inputs = make()
    loss = Loss(config)
    rows = [sample(1, annotations=PAIRS), sample(), sample(2, 3), sample(4, ask="Where is it?")]
    examples = [inputs.encode(row, 0) for row in rows]
    padded, inputs.pad = loss.sums(model, inputs.collate(examples)), "none"
    packed = loss.sums(model, inputs.collate(examples))
    alone = [loss.sums(model, inputs.collate([example])) for example in examples]
    inputs.pad = "longest"
    for name in padded:
        assert packed[name].item() == pytest.approx(padded[name].item(), rel=1e-5)
        assert sum(one[name].item() for one in alone) == pytest.approx(padded[name].item(), rel=1e-5)


def test_swapping_crops_with_their_indices_changes_nothing(make):
    _, model, inputs = make()
    batch = inputs.collate([inputs.encode(sample(1, 2), 0)])
    count, patches = batch["real"].shape
    order = torch.tensor([3, 0, *range(4, count), 1, 2])
    inverse = torch.argsort(order)
    pools = inverse[batch["pools"] // patches] * patches + batch["pools"] % patches
    swapped = {**batch, "crops": batch["crops"][order], "real": batch["real"][order], "pools": pools}
    assert torch.allclose(logits(model, swapped), logits(model, batch), atol=1e-5)


def test_a_crop_that_no_pool_names_changes_nothing(make):
    _, model, inputs = make()
    batch = inputs.collate([inputs.encode(sample(1), 0)])
    more = {**batch, "crops": torch.cat([batch["crops"], torch.full_like(batch["crops"][:1], 255)])}
    more["real"] = torch.cat([batch["real"], torch.zeros_like(batch["real"][:1])])
    assert torch.allclose(logits(model, more), logits(model, batch), atol=1e-6)


def test_an_image_changes_the_answer_and_only_after_it(make):
    _, model, inputs = make()
    one, other = (logits(model, inputs.collate([inputs.encode(sample(n), 0)])) for n in (1, 2))
    assert torch.equal(one[0, 0], other[0, 0])
    assert (one[0, -1] - other[0, -1]).abs().max() > 1e-4


def test_every_parameter_has_a_gradient_with_and_without_images(make):
    config, model, inputs = make()
    loss = Loss(config)
    for one in (sample(1), sample()):
        model.zero_grad()
        loss.sums(model, inputs.collate([inputs.encode(one, 0)]))["loss"].backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_layers_above_the_features_are_never_run_and_get_zero_gradients(make):
    config, model, inputs = make()
    model.vision.feature_layers = [0, 1]
    model.vision.layers[2].forward = None
    Loss(config).sums(model, inputs.collate([inputs.encode(sample(1), 0)]))["loss"].backward()
    assert all((p.grad == 0).all() for p in model.vision.layers[2].parameters())


def test_pooling_is_attention_of_the_mean_over_real_patches():
    torch.manual_seed(0)
    pooling = MeanQueryPooling(6, 8, 2).double()
    pools, real = torch.randn(3, 4, 6).double(), torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [1, 0, 0, 0]]).bool()
    pooled = pooling(pools, real)
    for row in range(3):
        x = pools[row][real[row]]
        q, k, v = (layer(part).view(-1, 2, 4) for layer, part in ((pooling.wq, x.mean(0)[None]), (pooling.wk, x), (pooling.wv, x)))
        share = (torch.einsum("qhd,khd->hqk", q, k) / 2).softmax(-1)
        expected = pooling.wo(torch.einsum("hqk,khd->qhd", share, v).reshape(1, 8))[0]
        assert torch.allclose(pooled[row], expected, atol=1e-12)


def test_pad_embeddings_mark_padded_and_partly_padded_patches(make):
    _, model, _ = make()
    connector = model.connector
    features, pools = torch.zeros(1, 4, 192), torch.tensor([[0, -1, -1, -1], [1, -1, -1, -1], [2, -1, -1, -1]])
    with torch.no_grad():
        connector.pad_embed.copy_(torch.stack([torch.full((192,), 1.0), torch.full((192,), 2.0)]))
        marked = connector(features, torch.tensor([[0.0, 0.5, 1.0, 1.0]]), pools)
        last = connector(features, torch.full((1, 4), -1.0), pools)  # the published mark of a last crop
        assert torch.equal(last, marked[[1, 1, 1]])
        plain = connector(torch.tensor([1.0, 2.0, 0.0])[:, None].expand(3, 192)[None], torch.ones(1, 3), pools)
        connector.pad_embed.zero_()
    assert torch.allclose(marked, plain, atol=1e-6)


@pytest.mark.parametrize(("prompt", "answer"), [(0.5, 0.0), (0.0, 0.5)])
def test_residual_dropout_has_one_rate_for_prompts_and_one_for_answers(make, prompt, answer):
    _, model, inputs = make(residual_dropout=prompt, response_residual_dropout=answer)
    batch = inputs.collate([inputs.encode(sample(1), 0)])
    model.train()
    model.hidden(model.embed(batch), batch)
    value = torch.ones(*batch["ids"].shape, 500)
    torch.manual_seed(0)
    kept = (model.dropout._drop(model, (), value)[0] == 0).float().mean(-1)
    supervised = batch["loss_weights"][0] > 0
    assert abs(kept[supervised].mean() - answer) < 0.05
    assert abs(kept[~supervised].mean() - prompt) < 0.05


class Draws(TorchDispatchMode):
    """Context manager: lists how many random numbers each operator drew, and their type."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags and "attention" not in func.name():
            first = out[0] if isinstance(out, tuple) else out
            self.found.append((first.shape, first.dtype))
        return out


@pytest.mark.parametrize(("prompt", "answer"), [(0.5, 0.0), (0.0, 0.5), (0.5, 0.25), (0.5, 0.5)])
def test_residual_dropout_draws_at_positions_that_have_a_rate_alone(make, prompt, answer):
    _, model, inputs = make(residual_dropout=prompt, response_residual_dropout=answer)
    batch = inputs.collate([inputs.encode(sample(1), 0), inputs.encode(sample(2), 0)])
    answers = int((batch["loss_weights"] > 0).sum())
    prompts = batch["ids"].numel() - answers
    model.train()
    with Draws() as draws, torch.autocast("cpu", torch.bfloat16):
        model.hidden(model.embed(batch), batch)
    each = [prompts + answers] if prompt == answer else [count for count, rate in ((prompts, prompt), (answers, answer)) if rate]
    layers, width = len(model.language.get_decoder().layers), model.language.config.hidden_size
    assert draws.found == [((count, width), torch.bfloat16) for _ in range(2 * layers) for count in each]
    assert 0 < answers < prompts


@pytest.mark.parametrize(
    ("kind", "after"), [("qwen2", ("self_attn", "mlp")), ("olmo2", ("post_attention_layernorm", "post_feedforward_layernorm"))]
)
def test_residual_dropout_is_of_what_is_added_to_the_stream(make, kind, after):
    _, model, _ = make(residual_dropout=0.5)
    sizes = {"hidden_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 256, "vocab_size": 768}
    language = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, pad_token_id=1))
    layer = Molmo(model.config, language, model.vision, model.connector).language.model.layers[0]
    assert tuple(name for name, module in layer.named_children() if module._forward_hooks) == after


def test_evaluation_has_no_dropout(make):
    _, model, inputs = make(residual_dropout=0.5, response_residual_dropout=0.5)
    batch = inputs.collate([inputs.encode(sample(1), 0)])
    assert torch.equal(logits(model, batch), logits(model, batch))


def test_image_features_begin_at_the_scale_of_the_embeddings(make):
    _, model, inputs = make()
    batch = inputs.collate([inputs.encode(sample(1), 0)])
    features = model.connector(model._features(batch["crops"]), batch["real"], batch["pools"])
    words = model.language.get_input_embeddings().weight
    assert 0.3 < float(features.std().detach() / words.std().detach()) < 3


def test_components_are_disjoint_and_cover(make):
    _, model, _ = make()
    parts = family.components(model)
    named = [name for part in parts.values() for name in part]
    assert sorted(named) == sorted(name for name, _ in model.named_parameters())
    assert list(parts) == ["connector", "vision", "language"]


def test_a_frozen_tower_keeps_no_activations(make):
    _, model, inputs = make()
    model.vision.requires_grad_(False)
    features = model._features(inputs.collate([inputs.encode(sample(1), 0)])["crops"])
    assert not features.requires_grad


def test_debug_starts_near_the_uniform_loss(make):
    config, model, inputs = make()
    texts = list(dict.fromkeys(framing_texts()))[:60]
    batch = inputs.collate([inputs.encode(sample(1, say=text), 0) for text in texts])
    loss = Loss(config)
    nats = loss.sums(model, batch)["loss"] / loss.weights(batch)["loss"]
    # logits of variance 1 add log E[exp(normal)] = 0.5 to ln 768; the rest is the chance of which tokens are said
    assert abs(float(nats.detach()) - float(torch.tensor(768.0).log()) - 0.5) < 0.2
