"""The chat format against transformers' own template and processor, and what of it is supervised."""

import io

import pytest
import torch
from PIL import Image
from transformers import Gemma3Processor, PreTrainedTokenizerFast
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from plait.errors import BadSample
from plait.families.theworld.sequence import Kind
from plait.nn.losses import IGNORED

from .conftest import sample

TURNS = [
    {"role": "user", "content": "What is this?"},
    {"role": "assistant", "content": "a cat on a mat"},
    {"role": "user", "content": " Where is it? "},
    {"role": "assistant", "content": "left"},
]


@pytest.fixture(scope="module")
def processor(directory) -> Gemma3Processor:
    """The stock processor over the same tokenizer, at the tiny model's sizes."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory / "tokenizer")
    pictures = Gemma3ImageProcessorPil(size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return Gemma3Processor(image_processor=pictures, tokenizer=tokenizer, chat_template=tokenizer.chat_template, image_seq_length=16)


def stock(processor, messages, images):
    """ids and token types as transformers makes them, without the newline after the last turn, which nothing follows."""
    content = [[{"type": "image"}] * (len(images) if number == 0 else 0) for number in range(len(messages))]
    parts = [{**m, "content": [*c, {"type": "text", "text": m["content"]}]} for m, c in zip(messages, content, strict=True)]
    text = processor.apply_chat_template(parts, tokenize=False).removesuffix("\n")
    pictures = [Image.open(io.BytesIO(data)) for data in images]
    made = processor(text=text, images=pictures or None, add_special_tokens=False, return_tensors="pt")
    return made["input_ids"][0], made["token_type_ids"][0]


@pytest.mark.parametrize("pictures", [(), (1,), (1, 2, 3)])
@pytest.mark.parametrize("turns", [TURNS[:2], TURNS])
def test_chat_equals_the_stock_template_and_processor(make, processor, pictures, turns):
    _, _, inputs = make(world=False)
    given = sample(*pictures, messages=turns)
    batch = inputs.collate([inputs.encode(given, 0)])
    ids, types = stock(processor, turns, given["images"])
    assert batch["ids"][0].tolist() == ids.tolist()
    assert torch.equal(batch["token_types"][0], types)


def test_chat_system_text_opens_the_first_user_turn(make):
    _, _, inputs = make(world=False, system="You are terse.")
    row = inputs.encode(sample(), 0).row
    assert inputs.chat.decode(row.ids.tolist(), special=True).startswith("<bos><start_of_turn>user\nYou are terse.\n\nWhat is this?")
    own = sample(messages=[{"role": "system", "content": "Be kind."}, *TURNS[:2]])
    assert "Be kind.\n\nWhat" in inputs.chat.decode(inputs.encode(own, 0).row.ids.tolist(), special=True)


@pytest.mark.parametrize("pictures", [(), (1,), (1, 2)])
def test_labels_decode_to_exactly_the_answer_and_its_end_of_turn(make, pictures):
    _, _, inputs = make()
    row = inputs.encode(sample(*pictures, say="a cat on a mat"), 0).row
    supervised = row.ids[row.labels != IGNORED]
    assert inputs.chat.decode(supervised.tolist(), special=True) == "a cat on a mat<end_of_turn>"
    assert torch.equal(row.labels[row.labels != IGNORED], supervised)


def test_labels_of_a_dialogue_are_every_answer(make):
    _, _, inputs = make()
    row = inputs.encode(sample(1, messages=TURNS), 0).row
    assert inputs.chat.decode(row.ids[row.labels != IGNORED].tolist(), special=True) == "a cat on a mat<end_of_turn>left<end_of_turn>"


def test_image_marks_place_the_images(make):
    _, _, inputs = make(world=False)
    row = inputs.encode(sample(1, 2, ask="<image> What is <image>?"), 0).row
    text = inputs.chat.decode(row.ids[row.kinds == Kind.TEXT].tolist(), special=True)
    assert "user\n\n\n<start_of_image><end_of_image>\n\nWhat is\n\n<start_of_image><end_of_image>\n\n?<end_of_turn>" in text


def test_special_tokens_in_a_users_text_stay_text(make):
    _, _, inputs = make(world=False)
    row = inputs.encode(sample(ask="<end_of_turn><start_of_image><image_soft_token>"), 0).row
    ids = row.ids.tolist()
    assert ids.count(inputs.chat.end_turn) == 2
    assert inputs.chat.start_image not in ids
    assert inputs.chat.image not in ids


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (sample(1, ask="<image><image>"), "2 <image> marks, the sample 1 images"),
        (sample(messages=[TURNS[0], TURNS[0], TURNS[1]]), "roles must alternate user, assistant.*they are user, user, assistant"),
        (sample(messages=TURNS[:1]), "no assistant turn"),
        (sample(messages=[]), "no assistant turn"),
        ({**sample(messages=TURNS), "annotations": [{"messages": TURNS}] * 2}, "2 annotations, of which theworld learns one"),
    ],
)
def test_conversations_that_cannot_be_used_are_bad_samples(make, given, reason):
    _, _, inputs = make()
    with pytest.raises(BadSample, match=reason):
        inputs.encode(given, 0)


def test_prompt_is_the_conversation_up_to_the_last_answer(make):
    _, _, inputs = make()
    whole, prompt = inputs.encode(sample(1, messages=TURNS), 0).row, inputs.prompt(sample(1, messages=TURNS)).row
    answer = inputs.chat.text_ids("left")
    assert whole.ids.tolist() == [*prompt.ids.tolist(), *answer, inputs.chat.end_turn]
    assert torch.equal(whole.kinds[: len(prompt)], prompt.kinds)


def test_prompt_of_a_caption_without_a_question_is_its_picture(make):
    _, _, inputs = make()
    given = sample(1, messages=[{"role": "assistant", "content": "a cat"}])
    whole, prompt = inputs.encode(given, 0).row, inputs.prompt(given).row
    assert whole.ids[: len(prompt)].tolist() == prompt.ids.tolist()
    assert int((prompt.kinds == Kind.IMAGE).sum()) == 16
