"""Without a world in the row, the model is Gemma: bit-equal logits and the same greedy tokens as the stock class."""

import pytest
import torch

from plait.families.theworld.generate import CachedTheWorld
from plait.families.theworld.pretrained.encoder import unit_range
from plait.nn.decoding import decode

from .conftest import sample, talkative

BATCHES = {
    "text": [sample(), sample(ask="Where?", say="left")],
    "image": [sample(1), sample(2, 3, ask="Where is it?")],
    "mixed": [sample(1, 2), sample(), sample(3, ask="a cat on a mat " * 9)],
}


def stock_inputs(batch):
    """The batch as transformers' own processor hands it over."""
    given = {"input_ids": batch["ids"], "attention_mask": batch["attention_mask"], "token_type_ids": batch["token_types"]}
    return given | ({"pixel_values": unit_range(batch["pixels"], torch.float32)} if len(batch["pixels"]) else {})


@pytest.fixture(params=["off", "on without an image"])
def gemma_like(request, make):
    return request.param, *make(world=request.param != "off")[1:]


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("name", list(BATCHES))
@torch.no_grad()
def test_logits_are_bit_equal_to_stock_gemma(gemma_like, name, left):
    how, model, inputs = gemma_like
    samples = BATCHES[name] if how == "off" else BATCHES["text"]
    batch = inputs.collate([inputs.encode(given, 0) for given in samples], left=left)
    ours = model.logits(model.hidden(model.embed(batch), batch))
    theirs = model.gemma(**stock_inputs(batch), position_ids=batch["positions"]).logits
    assert torch.equal(ours, theirs)
    if not left:  # with pads on the right, positions need not be given
        own = batch["attention_mask"].bool()
        assert torch.equal(ours[own], model.gemma(**stock_inputs(batch)).logits[own])


@pytest.mark.parametrize("name", list(BATCHES))
@torch.no_grad()
def test_greedy_tokens_and_their_logits_are_stock_gemmas(gemma_like, name):
    how, model, inputs = gemma_like
    talkative(model)
    prompts = [inputs.prompt(given) for given in (BATCHES[name] if how == "off" else BATCHES["text"])]
    batch = inputs.collate(prompts, left=True)
    stock = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": None, "output_logits": True, "return_dict_in_generate": True}
    made = model.gemma.generate(**stock_inputs(batch), **stock)
    tokens = decode(CachedTheWorld(model, batch), max_new_tokens=[12] * len(prompts), stops=frozenset({10_000}))
    assert tokens == made.sequences[:, batch["ids"].shape[1] :].tolist()
    assert torch.equal(model.logits(model.hidden(model.embed(batch), batch)[:, -1:])[:, 0], made.logits[0])


@torch.no_grad()
def test_world_switched_off_in_the_prompt_leaves_gemma(make):
    _, model, inputs = make()
    batch = inputs.collate([inputs.prompt({**sample(1), "world_of": None})], left=True)
    assert not len(batch["frames"])
    assert torch.equal(model.logits(model.hidden(model.embed(batch), batch)), model.gemma(**stock_inputs(batch)).logits)
