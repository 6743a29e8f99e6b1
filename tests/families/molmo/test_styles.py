"""Framing: the published formats, conversation_spans out."""

import numpy as np
import pytest

from plait.errors import BadSample
from plait.families.molmo.config import Config
from plait.families.molmo.styles import conversation_spans, conversations, prompt_prefix, strip_leading_image_marks
from plait.keys import rng
from tests.families.molmo.conftest import turns

PLAIN = Config(style="none")


def text(config, messages, style="vqa2", random=None):
    return [(run.text, run.answer) for run in conversation_spans(config, messages, style, random)]


def test_role_format_is_the_published_one():
    assert text(PLAIN, turns("What?", "a cat")) == [(" User: What? Assistant:", False), (" a cat", True)]


def test_role_format_goes_on_for_several_turns():
    spans = text(PLAIN, turns("One?", "1") + turns("Two?", "2"))
    assert "".join(words for words, _ in spans) == " User: One? Assistant: 1 User: Two? Assistant: 2"


def test_style_stands_before_the_question():
    assert text(Config(style="style"), turns("What?", "a cat"))[0][0] == " User: vqa2: What? Assistant:"


def test_style_of_a_captioner_is_its_whole_prompt():
    config = Config(style="style_and_length", format="none")
    assert text(config, turns("", "x" * 40), "long_caption") == [(" long_caption 65:", False), (" " + "x" * 40, True)]


def test_style_and_length_draws_lengths_around_the_true_one():
    config = Config(style="style_and_length")
    drawn = [prompt_prefix(config, "long_caption", "x" * 600, rng(k, "text")) for k in range(2000)]
    numbers = [int(prompt.split()[1].rstrip(":")) for prompt in drawn if prompt != "long_caption :"]
    assert 0.085 < 1 - len(numbers) / len(drawn) < 0.115  # 10 % without, 2 standard errors are 1.3 %
    assert abs(np.mean(numbers) - (600 / 15 - 0.5)) < 0.2  # floor takes half a unit; the standard error is 0.04
    assert abs(np.std(numbers) - 25 / 15) < 0.1


def test_style_of_demo_tasks_is_named_in_a_tenth_of_draws():
    drawn = [prompt_prefix(Config(), "pointing", "x", rng(k, "text")) for k in range(2000)]
    assert 0.085 < sum(prompt == "pointing:" for prompt in drawn) / 2000 < 0.115
    assert prompt_prefix(Config(), "pointing", None, None) == ""
    assert prompt_prefix(Config(), "vqa2", None, None) == "vqa2:"


def test_caption_length_none_asks_for_no_number():
    assert prompt_prefix(Config(style="style_and_length", caption_length=None), "long_caption", None, None) == "long_caption :"


def test_leading_marks_are_the_images_that_come_first_anyway():
    assert strip_leading_image_marks(turns("<image> <|image|>\nWhat?", None)) == (turns("What?", None), 2)
    assert strip_leading_image_marks(turns("What <image>?", None))[1] == 0


def test_system_text_opens_the_first_turn():
    assert text(PLAIN, [{"role": "system", "content": "Be terse."}, *turns("What?", "a")])[0][0] == " User: Be terse.\nWhat? Assistant:"


def test_roles_that_do_not_alternate_are_refused():
    with pytest.raises(BadSample, match="roles must alternate user, assistant, user"):
        text(PLAIN, turns("a", None) + turns("b", "c"))


def test_an_image_in_an_answer_is_refused():
    with pytest.raises(BadSample, match="images stand in the user's turns"):
        text(PLAIN, turns("a", "see <|image|>"))


def test_a_line_break_ends_a_question_of_multiple_choice_and_no_answer():
    asked = turns("Which?\nA: cat\nB: dog\n ", "A\n")
    assert text(PLAIN, asked) == [(" User: Which?\nA: cat\nB: dog\n Assistant:", False), (" A", True)]


@pytest.mark.parametrize(
    ("asked", "given", "style"),
    [
        ("What is this?", None, "user_qa"),
        ("<|image|>\n", None, "long_caption"),
        ("", None, "long_caption"),
        ("What?", "vqa2", "vqa2"),
    ],
)
def test_own_questions_are_not_tagged_as_captions(asked, given, style):
    sample = {"messages": turns(asked, "a frog"), "fields": {}}
    assert conversations(sample, given)[0][1] == style
    assert conversations({**sample, "fields": {"style": "okvqa"}}, given)[0][1] == "okvqa"
