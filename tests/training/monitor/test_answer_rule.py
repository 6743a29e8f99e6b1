"""Short answers with wrong labels: known by their entropy and by sources with the same answers; hard sources are left alone."""

import math

import pytest

from plait.keys import rng
from plait.training.monitor import answer_rule

COLOURS = ["red", "green", "blue", "yellow"] * 3
CHANCE, KNOWN = [1.4, 1.3, 1.5, 1.38] * 3, [0.1, 0.05, 0.02, 0.3] * 3


def named(before, now, answers):
    return {group: found.other for group, found in answer_rule.unlearned(before, now, answers)}


def test_answers_at_their_entropy_beside_others_of_the_same_kind_are_named_after_two_looks():
    look, answers = {"bad": CHANCE, "good": KNOWN}, {"bad": COLOURS, "good": COLOURS[::-1]}
    ((group, found),) = answer_rule.unlearned(look, look, answers)
    assert (group, found.other) == ("bad", "good") and found.entropy == pytest.approx(math.log(4))
    text = "source bad: after 100 steps its answers are known no better than by how often each comes (1.39 nats an answer, of 1.39), while"
    assert answer_rule.sentence(group, found, 100).startswith(text)
    assert not named({"bad": CHANCE, "good": CHANCE}, look, answers), "the other was not known before"
    assert not named(look, {"bad": [0.9] * 12, "good": KNOWN}, answers), "it is being learned"


@pytest.mark.parametrize("seed", range(10))
def test_healthy_mixtures_of_easy_and_hard_sources_are_left_alone(seed):
    """Other answers, free text, few samples, and a source that is learned more slowly."""
    draw = rng("healthy", seed)
    easy = (0.1 * draw.random(12)).tolist()
    hard = (1.386 * draw.uniform(0.3, 0.9, 12)).tolist()  # half of what there is to know is known
    shapes = ["circle", "square", "cross", "star"] * 3
    captions = [f"a picture of {i}" for i in range(12)]
    answers = {"easy": COLOURS, "hard": COLOURS, "shapes": shapes, "captions": captions, "few": COLOURS[:6]}
    look = {"easy": easy, "hard": hard, "shapes": CHANCE, "captions": [30.0] * 12, "few": CHANCE[:6]}
    assert not named(look, look, answers)


def test_an_answer_is_the_text_of_the_assistants_turns():
    turns = [{"role": "user", "content": "which?"}, {"role": "assistant", "content": " red "}]
    assert answer_rule.answer_of({"fields": {"messages": turns}}) == "red"
    assert answer_rule.answer_of({"fields": {"x": 1}}) is None and answer_rule.answer_of({"fields": {"messages": "no"}}) is None
    assert answer_rule.entropy([None] * 9) is None and answer_rule.entropy(["a"] * 9) is None
