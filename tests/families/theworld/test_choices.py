"""Answers to multiple choice as BLINK asks it: the letter, however it is written, and nothing else."""

import pytest

from plait.families.theworld.choices import options
from plait.families.theworld.evaluate import is_correct

QUESTION = "Which is closer?\nSelect from the following choices.\n(A) the cat\n(B) a dog\n(C) an apple"


def test_options_are_read_from_the_question():
    assert options(QUESTION) == {"A": "the cat", "B": "a dog", "C": "an apple"}
    assert options("Is it red? A. yes B. no") == {"A": "yes", "B": "no"}
    assert options("What did (B) say?") == {}
    assert options("What is it?") == options("") == {}


@pytest.mark.parametrize(
    "answer", ["(B)", "B", "B.", "B) a dog", "(B) a dog", "The answer is (B)", "The answer is B.", "Answer: B", "A dog."]
)
def test_a_choice_is_right_however_it_is_written(answer):
    assert is_correct(answer, "(B)", {}, QUESTION)
    assert not is_correct(answer, "(A)", {}, QUESTION)


@pytest.mark.parametrize(
    "answer",
    ["", "A dog and the cat", "a dog, not (C)", "(D)", "The answer is a mystery", "The answer is (A), the answer is (B)", "An apple"],
)
def test_what_does_not_choose_the_option_is_wrong(answer):
    assert not is_correct(answer, "(B)", {}, QUESTION)


def test_an_article_is_no_letter():
    assert not is_correct("The answer is a mystery", "(A)", {}, QUESTION)
    assert not is_correct("Answer: A dog", "(A)", {}, QUESTION)


@pytest.mark.parametrize(
    "answer",
    [
        "Option (A) shows the cat, far away. Option (B) is close to it. The answer is (B).",
        "(A) is the cat and (C) is an apple. The answer is (B)",
        "The cat stands behind the tree.\nThe dog is in front of it.\n**(B)**",
        "Let me look.\n\nAnswer: **B**",
        "Of the three, it must be B",
        "I would say that a dog is closer here.",
    ],
)
def test_a_long_answer_chooses_what_it_ends_in(answer):
    assert is_correct(answer, "(B)", {}, QUESTION)
    assert is_correct(answer, "a dog", {}, QUESTION)
    assert not is_correct(answer, "(A)", {}, QUESTION)


@pytest.mark.parametrize(
    "answer",
    [
        "I see the cat, a dog and an apple.",
        "B is a letter that comes to mind, but there is far more to be said of this picture",
        "It is not a dog.",
        "It must be B or C",
        "a dog " + "is seen in the distance, near a tree, " * 4,
    ],
)
def test_a_long_answer_that_only_mentions_the_option_is_wrong(answer):
    assert not is_correct(answer, "(B)", {}, QUESTION)
