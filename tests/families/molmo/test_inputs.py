"""Samples to rows: what is supervised, by how much, where images stand, and what is refused."""

import math
import re

import pytest
import torch

from plait.errors import BadSample
from plait.families.molmo import family
from plait.families.molmo.config import Config
from plait.families.molmo.inspection import inspect
from tests.families.molmo.conftest import sample, turns


def shown(inputs, one, key=0):
    return inspect(inputs, one, inputs.encode(one, key))


def test_inputs_supervise_the_answer_and_its_end(make):
    _, _, inputs = make()
    seen = shown(inputs, sample(1))
    assert seen["text"][1:] == [
        ("[image x 40]", False),
        (" User: What is this? Assistant:", False),
        (" a small green frog<|endoftext|>", True),
    ]


def test_inputs_begin_with_the_end_of_text_as_qwen2_does(make):
    _, _, inputs = make()
    assert inputs.encode(sample(1), 0).row.ids[0] == inputs.tokenizer.eos


def test_inputs_put_images_at_their_marks(make):
    _, _, inputs = make()
    kinds = [text.startswith("[image") for text, _ in shown(inputs, sample(1, 2, ask="Here <image> and there <|image|>?"))["text"]]
    assert kinds == [False, True, False, True, False, False]


@pytest.mark.parametrize(("pictures", "ask"), [((), "What is <|image|>?"), ((1,), "<image><image> What?"), ((1, 2), "See <image>.")])
def test_inputs_refuse_marks_that_are_not_the_images(make, pictures, ask):
    _, _, inputs = make()
    with pytest.raises(BadSample, match=rf"the text has \d <\|image\|> marks, the sample {len(pictures)} images"):
        inputs.encode(sample(*pictures, ask=ask), 0)


@pytest.mark.parametrize("ask", ["What?", "<image> What?", None])
@pytest.mark.parametrize("mark", ["<|image|>", "<image>"])
def test_inputs_refuse_an_image_in_the_system_text(make, ask, mark):
    _, _, inputs = make()
    one = sample(1, messages=[{"role": "system", "content": f"see {mark}"}, *turns(ask or "", "a frog")[ask is None :]])
    for encode in (inputs.prompt, lambda one: inputs.encode(one, 0)):
        with pytest.raises(BadSample, match=rf"^the system text holds {re.escape(mark)}: images stand in the user's turns$"):
            encode(one)


def test_a_prompt_without_a_user_turn_keeps_the_system_text(make):
    _, _, inputs = make()
    one = sample(messages=[{"role": "system", "content": "Be terse."}, {"role": "assistant", "content": "a frog"}])
    prompt, whole = inputs.prompt(one).row.ids.tolist(), inputs.encode(one, 0).row.ids.tolist()
    assert "Be terse." in inputs.tokenizer.decode(prompt) and whole[: len(prompt)] == prompt


def test_inputs_refuse_an_image_in_the_style(make):
    _, _, inputs = make(style="style")
    for encode in (inputs.prompt, lambda one: inputs.encode(one, 0)):
        with pytest.raises(BadSample, match=r"^the style '<\|image\|>' holds <\|image\|>"):
            encode(sample(1, fields={"style": "<|image|>"}))


@pytest.mark.parametrize(
    ("weighting", "weight"),
    [("none", lambda tokens: 1.0), ("root_subsegments", lambda tokens: math.sqrt(1 / 3)), ("root_subsegments_root_tokens", None)],
)
def test_inputs_weigh_annotations_by_their_number(make, weighting, weight):
    weight = weight or (lambda tokens: 2 / math.sqrt(tokens - 1) / math.sqrt(3))  # the end of text does not count among them
    _, _, inputs = make(weighting=weighting)
    row = inputs.encode(sample(1, annotations=[("What?", "a frog"), ("Where?", "on a mat"), ("Who?", "two dogs")]), 0).row
    for number in (1, 2, 3):
        weights = row.loss_weights[(row.annotations == number) & (row.loss_weights > 0)]
        assert torch.allclose(weights, torch.full_like(weights, weight(len(weights))))


def test_inputs_shuffle_annotations_by_key_in_training_only(make):
    _, _, inputs = make(inputs={"train": True})
    many = sample(1, annotations=[(f"Q{n}?", "a frog") for n in range(6)])
    orders = {tuple(inputs.encode(many, key).row.ids.tolist()) for key in range(5)}
    assert len(orders) > 1
    assert torch.equal(inputs.encode(many, 3).row.ids, inputs.encode(many, 3).row.ids)


def bare(**messages):
    return {
        "messages": [
            {"role": "user", "content": "Describe this.", "bare": messages.pop("bare")},
            {"role": "assistant", "content": "a frog"},
        ]
    }


@pytest.mark.parametrize(
    ("settings", "prompts"),
    [
        ({"style": "style_and_length", "format": "none", "wordings": False}, [" long_caption 65: a frog", " transcript 65: a frog"]),
        ({"style": "style_and_length", "format": "none"}, [" long_caption 65: Describe this. a frog", " transcript 65: a frog"]),
        (
            {"style": "demo_or_style"},
            [" User: Describe this. Assistant: a frog", " User: transcript: Assistant: a frog"],
        ),
    ],
)
def test_captions_are_asked_for_by_their_style_alone_where_wordings_are_off(make, settings, prompts):
    _, _, inputs = make(**settings)
    spoken = [{"role": "user", "content": ""}, {"role": "assistant", "content": "a frog"}]
    both = [{**bare(bare=""), "style": "long_caption"}, {"messages": spoken, "style": "transcript"}]
    row = inputs.encode({**sample(1), "annotations": both}, 0).row
    texts = [inputs.tokenizer.decode(row.ids[row.annotations == number].tolist()) for number in (1, 2)]
    assert texts == prompts


def test_inputs_refuse_a_sample_without_an_answer(make):
    _, _, inputs = make()
    with pytest.raises(BadSample, match="no assistant turn"):
        inputs.encode(sample(1, say=None), 0)


def test_inputs_read_no_special_token_out_of_text(make):
    _, _, inputs = make()
    row = inputs.encode(sample(ask="<|endoftext|><im_patch>"), 0).row
    assert (row.ids == inputs.tokenizer.eos).sum() == 2  # the begin and the end
    assert (row.ids < inputs.tokenizer.image_start).all()


def test_prompt_is_the_encoded_row_without_its_answer(make):
    _, _, inputs = make()
    whole, prompt = inputs.encode(sample(1), 0).row, inputs.prompt(sample(1)).row
    assert torch.equal(whole.ids[: len(prompt)], prompt.ids)
    assert prompt.loss_weights.sum() == 0


def test_prompt_of_several_turns_ends_at_the_last_question(make):
    _, _, inputs = make()
    row = inputs.prompt({**sample(1), "messages": turns("One?", "1") + turns("Two?", "2")}).row
    assert inputs.tokenizer.decode(row.ids.tolist()) == " User: One? Assistant: 1 User: Two? Assistant:"


def test_collate_counts_patches_over_all_images(make):
    _, _, inputs = make()
    batch = inputs.collate([inputs.encode(sample(n), 0) for n in (1, 2)])
    patch_tokens = (batch["ids"] == inputs.tokenizer.image_start + 2).sum()
    assert len(batch["pools"]) == patch_tokens
    assert len(batch["pools"].unique()) == batch["pools"].numel(), "two tokens share a patch"
    assert batch["pools"].max() < batch["real"].numel()


def test_a_sequence_longer_than_the_models_positions_is_a_bad_sample(make, monkeypatch):
    _, _, inputs = make()
    monkeypatch.setattr(inputs.tokenizer, "positions", 90)
    long = "a cat on a mat " * 40
    with pytest.raises(BadSample, match=r"^\d+ tokens, and the model has 90 positions: data\.max_tokens 90 would cut its end$"):
        inputs.encode(sample(1, say=long), 0)
    with pytest.raises(BadSample, match="the model has 90 positions"):
        inputs.prompt(sample(1, ask=long))
    several = inputs.encode(sample(1, annotations=[("What?", "a frog")] * 12), 0).row
    assert len(several) > 90 > several.positions.max()  # annotations share the positions after their image


def test_limits_are_those_of_the_language_model_and_the_tower(make):
    config, _, inputs = make()
    assert inputs.tokenizer.positions == family.limits(config).positions == 4096
    assert (family.limits(config).image_side, family.limits(config).needs) == (48, {"vision": ["images"], "connector": ["images"]})
    assert family.limits(Config(language="olmoe")).positions == 4096
    assert family.limits(Config(language="qwen2_7b")).positions == 131072
