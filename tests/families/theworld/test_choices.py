"""Answers to multiple choice as BLINK asks it: the letter, however it is written, and nothing else."""

import pytest

from plait.families.theworld.benchmarks.choices import chosen, options
from plait.families.theworld.benchmarks.statements import verdict

from .conftest import is_correct

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


@pytest.mark.parametrize("answer", ["dog", "The dog", "The answer is the dog.", "Of the cat and a dog, a dog is closer.", "'B'", "“B”."])
def test_an_option_is_chosen_by_its_text_without_its_article(answer):
    assert is_correct(answer, "(B)", {}, QUESTION)
    assert not is_correct(answer, "(A)", {}, QUESTION)


def test_an_article_tells_options_apart_that_differ_in_nothing_else():
    listed = "What is it?\n(A) the dog\n(B) a dog"
    assert is_correct("A dog", "(B)", {}, listed) and is_correct("the dog", "(A)", {}, listed)
    assert not is_correct("dog", "(A)", {}, listed) and not is_correct("dog", "(B)", {}, listed)


POINTS = "Which point is closer to the camera? Select from the following choices.\n(A) A is closer\n(B) B is closer"
ANIMALS = "What is it?\nA. cat\nB. dog\nC. red panda\nD. panda"


@pytest.mark.parametrize(
    "answer",
    [
        "(A) is wrong, so (B)",
        "(A) isn't right, so it is (B)",
        "(A) is farther than (B), so the answer is (B)",
        "B\n\nExplanation: A is farther.",
        "(B) Explanation: A is farther.",
        "B. A is farther.",
        "(B). (A) is farther.",
        "(B) since (A) is farther.",
        "B because A is farther.",
        "The answer is B because it is lower in the picture.",
        "The answer is (B), not (A).",
        "The answer is not A but B",
        "The correct answer must be B as it is lower.",
        "B is the correct answer.",
        "B is correct.",
        "I don't think A is correct, so (B) is the right choice.",
        "Option B is closer to the camera.",
        "Option B is closer to the camera than A.",
        "Option A is wrong. The correct option is B, as it is larger.",
        "Point B is closer",
        "B is closer to me. Point A is far.",
        "A is not closer; B is.",
        "I would choose B over A",
        "b",
        "(b)",
        "Between A and B, B is closer.",
        "Between (A) and (B), I choose (B).",
        "Probably B, although A is also visible",
        "Although A is visible, B is closer",
        "B, even though (A) is larger.",
        "Of A and B, B is closer",
        "Comparing (A) and (B), (B) is closer to the camera.",
        "B over A",
        "A? No, B.",
        "Point B is the closer one.",
        "B is the one that is closer to the camera.",
        "B appears closer than A does.",
        "Looking at the picture, B is closer to the camera.",
    ],
)
def test_a_choice_is_right_beside_a_denied_option_or_a_reason(answer):
    assert is_correct(answer, "(B)", {}, POINTS)
    assert not is_correct(answer, "(A)", {}, POINTS)


@pytest.mark.parametrize(
    "answer",
    [
        "(A) or (B)",
        "(A) and (B)",
        "A or B",
        "A, B",
        "Either (A) or (B)",
        "(A)/(B)",
        "The answer is (A) or (B).",
        "The answer is A or B",
        "(A) or (B) is correct.",
        "I choose A or B.",
        "Option A or option B",
        "(A) A is closer\n(B) B is closer",
        "(A) A is closer, or (B) B is closer",
        "Neither (A) nor (B)",
        "A is further than B.",
        "A appears farther from the camera than B.",
        "A\nB",
    ],
)
@pytest.mark.parametrize("gold", ["(A)", "(B)"])
def test_an_answer_that_names_several_options_without_a_choice_is_wrong(answer, gold):
    assert not is_correct(answer, gold, {}, POINTS)


@pytest.mark.parametrize(
    "answer", ["(A) is wrong", "(A) is not correct.", "A is not the correct answer.", "I don't think the answer is (A).", "It isn't (A)"]
)
def test_an_option_that_is_denied_is_not_chosen(answer):
    assert not is_correct(answer, "(A)", {}, POINTS)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("It is a red panda.", "C"),
        ("A red panda is shown.", "C"),
        ("It is a panda.", "D"),
        ("It is a panda, not a red panda.", "D"),
        ("It's not a cat, it's a dog.", "B"),
        ("I think it is a dog because of its ears.", "B"),
        ("It is a dog rather than a cat.", "B"),
        ("I know it as a dog.", "B"),
        ("I know it as the red panda.", "C"),
        ("As it is no dog, it is a cat.", "A"),
        ("(A) cat", "A"),
        ("A cat.", "A"),
    ],
)
def test_the_longest_option_that_is_named_and_not_denied_is_chosen(answer, gold):
    assert [name for name in "ABCD" if is_correct(answer, name, {}, ANIMALS)] == [gold]


@pytest.mark.parametrize(
    "answer", ["A panda or a red panda", "I don't think it is a dog.", "A. cat and B. dog", "A. cat\nB. dog", "It is a bird."]
)
def test_no_animal_is_chosen_by_a_text_that_names_several_or_none(answer):
    assert [name for name in "ABCD" if is_correct(answer, name, {}, ANIMALS)] == []


def test_options_of_one_text_are_not_told_apart_by_it():
    assert not is_correct("It is a cat.", "B", {}, "What is it?\nA. cat\nB. cat")


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("Yes, it is.", "A"),
        ("Yes. There is no cat above it.", "A"),
        ("No, the car is not beneath the cat.", "B"),
        ("No, so (B)", "B"),
        ("Yes, or no", None),
    ],
)
def test_an_option_yes_or_no_is_chosen_by_the_word_that_begins_the_answer(answer, gold):
    question = "Is the car beneath the cat?\n(A) yes\n(B) no"
    assert [name for name in "AB" if is_correct(answer, name, {}, question)] == ([gold] if gold else [])


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("The answer is A. No wait, B.", "B"),
        ("A. Actually, B is right.", "B"),
        ("The answer is A. Actually I am unsure.", None),
        ("The answer is actually B", "B"),
        ("(A) The cat is actually bigger", "A"),
        ("Wait, A", "A"),
    ],
)
def test_an_answer_that_is_taken_back_is_not_given(answer, letter):
    assert chosen(answer, {"A": "cat", "B": "dog"}) == letter


@pytest.mark.parametrize(
    ("answer", "said"),
    [("yes and no", None), ("Yes. Actually, no.", False), ("No. Wait, yes.", True), ("Yes, and it is red", True)],
)
def test_a_verdict_that_is_taken_back_or_doubled_is_not_given(answer, said):
    assert verdict(answer) is said
