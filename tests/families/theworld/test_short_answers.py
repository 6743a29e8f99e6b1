"""Right short answers inside longer texts, at the places where published evaluators look, and nowhere else."""

import pytest

from .conftest import is_correct


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("Red.", "red"),
        ("The color of the car is red.", "red"),
        ("There are two cars. The left one is blue, so the answer is red.", "red"),
        ("The left car is blue.\nAnswer: red", "red"),
        ("A dog. It lies on the grass.", "dog"),
        ("There are three dogs.", "3"),
        ("I count 2 here and 1 there: 2 + 1 = 3", "3"),
        ("The total is 1,200.", "1200"),
        ("Yes, it stands behind the tree.", "yes"),
        ("The answer is: **no**", "No"),
        ("the answer is 4", "2 + 2 makes 4, so the answer is 4."),
    ],
)
def test_a_right_short_answer_counts_inside_a_sentence(answer, gold):
    assert is_correct(answer, gold, {}, "What is it?")


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("I see a red car, a blue car and a green one.", "red"),
        ("The car is red and blue.", "red"),
        ("It is red. But the answer is blue.", "red"),
        ("The answer is red. No, the answer is blue.", "red"),
        ("It is not red", "red"),
        ("There are 3 dogs and 2 cats.", "3"),
        ("There are not 3 dogs", "3"),
        ("It stands there, with no doubt: yes", "no"),
        ("Blue, the opposite of red", "red"),
        ("redder", "red"),
        ("", "red"),
    ],
)
def test_a_text_that_only_mentions_the_right_answer_is_wrong(answer, gold):
    assert not is_correct(answer, gold, {}, "What is it?")


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("It's red.", "red"),
        ("It’s red.", "red"),
        ("The car is red in color.", "red"),
        ("The car is red in the image.", "red"),
        ("It is red because the sun is low.", "red"),
        ("It is not blue, it is red.", "red"),
        ("It is a dog, not a cat.", "dog"),
        ("The car that is not blue is red.", "red"),
        ("There is no doubt that it is red.", "red"),
        ("There is no cat in the image.", "no"),
        ("There are no cats.", "no"),
        ("There isn't a cat in the image. It shows a dog.", "no"),
        ("There is a cat in the image.", "yes"),
        ("I see nothing of it, so no", "no"),
    ],
)
def test_a_right_answer_counts_in_short_forms_and_before_a_phrase(answer, gold):
    assert is_correct(answer, gold, {}, "Is there a cat?")


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("I don't think it is red.", "red"),
        ("It is not clear that the ball is red.", "red"),
        ("It is unclear whether it is red.", "red"),
        ("I doubt that it is red.", "red"),
        ("It is unlikely that the answer is red.", "red"),
        ("I don't think the answer is red.", "red"),
        ("The answer is not red.", "red"),
        ("I don't believe there are 3.", "3"),
        ("It is a dog, not a cat.", "cat"),
        ("Yes or no", "yes"),
        ("yes no", "yes"),
        ("There is no doubt that there is a cat.", "no"),
        ("There is no dog, but there is a cat.", "no"),
        ("There is a dog.", "yes"),
    ],
)
def test_an_answer_that_is_denied_or_doubted_is_wrong(answer, gold):
    assert not is_correct(answer, gold, {}, "Is there a cat?")
