"""Right short answers inside longer texts, at the places where published evaluators look, and nowhere else."""

import pytest

from plait.families.theworld.evaluate import is_correct


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
