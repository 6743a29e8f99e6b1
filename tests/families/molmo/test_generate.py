"""Answers from a cache equal those recomputed from the start, whatever stands beside them in the batch."""

import json

import pytest
import torch

from plait.errors import PlaitError
from plait.families.molmo.generate import CachedMolmo, GenerateOptions, answers, generate
from plait.nn.decoding import Sampling, decode
from tests.families.molmo.conftest import photo, sample


@torch.no_grad()
def recomputed(model, inputs, given, count):
    """Greedy tokens, each from the whole sequence anew."""
    batch = inputs.collate([inputs.prompt(given)], left=True)
    for _ in range(count):
        token = model.logits(model.hidden(model.embed(batch), batch))[0, -1].argmax().view(1, 1)
        batch["positions"] = torch.cat([batch["positions"], batch["positions"][:, -1:] + 1], 1)
        batch["segments"] = torch.cat([batch["segments"], batch["segments"][:, -1:]], 1)
        batch["loss_weights"] = torch.cat([batch["loss_weights"], torch.zeros(1, 1)], 1)
        batch["ids"] = torch.cat([batch["ids"], token], 1)
    return batch["ids"][0, -count:].tolist()


def restless(model):
    """Weights large enough that a random model's answer wanders instead of repeating one token."""
    with torch.no_grad():
        for parameter in model.language.parameters():
            parameter.mul_(3)
    return model


def test_cached_greedy_tokens_equal_recomputed_ones(make):
    _, model, inputs = make()
    samples = [sample(1), sample(ask="Where is it, the small green frog?"), sample(2, 3)]
    batch = inputs.collate([inputs.prompt(given) for given in samples], left=True)
    rows = decode(CachedMolmo(restless(model), batch), max_new_tokens=[8] * 3, stops=frozenset({-1}))
    assert len({token for row in rows for token in row}) > 6
    assert rows == [recomputed(model, inputs, given, 8) for given in samples]


def test_answers_stop_at_the_end_of_text(make):
    _, model, inputs = make()
    with torch.no_grad():
        model.head.zero_()  # all logits 0: the likeliest is id 0, the end of text
    assert answers(model, inputs, [inputs.prompt(sample(1))], max_new_tokens=[5]) == [""]


def test_answers_are_cut_at_their_own_length(make):
    _, model, inputs = make()
    prompts = [inputs.prompt(sample(n)) for n in (1, 2)]
    short, long = answers(restless(model), inputs, prompts, max_new_tokens=[1, 9])
    assert len(short) < len(long)


def test_sampled_answers_depend_on_their_key_alone(make):
    _, model, inputs = make()
    prompts = [inputs.prompt(sample(n)) for n in (1, 2)]
    together = answers(model, inputs, prompts, max_new_tokens=[6, 6], sampling=Sampling(1.0, keys=[5, 6]))
    alone = answers(model, inputs, prompts[1:], max_new_tokens=[6], sampling=Sampling(1.0, keys=[6]))
    assert together[1] == alone[0]
    assert together[0] != together[1]


def test_generate_writes_its_answer(make, tmp_path):
    _, model, inputs = make()
    (tmp_path / "a.png").write_bytes(photo(1))
    options = GenerateOptions(prompt="What is this?", image=str(tmp_path / "a.png"), max_new_tokens=3)
    lines = generate(model, inputs, options, tmp_path, "step-00000007")
    assert json.loads((tmp_path / "answer.json").read_text())["answer"] == lines[0]


def test_generate_names_a_missing_file(make, tmp_path):
    _, model, inputs = make()
    with pytest.raises(PlaitError, match=r"generate: --image: no file .*b\.png"):
        generate(model, inputs, GenerateOptions(image=[tmp_path / "b.png"]), None, "latest")
