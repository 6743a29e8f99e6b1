"""Mirrored captions: by hand, and by property on any text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.data.captions import names_side, swap

PIECES = ["left", "Right", "LEFT", "lEft", "rightmost", "leftover", "upright", "左", "右", "左右", "왼", "오른쪽", "좌", "우측"]
PIECES += ["right-hand", ",", "/", "-", "_", ".", "'s"]
PIECES += ["<left>", "{right}", "<", ">", "{", "}", "http://", "://", "a", "é", "7", "ſ", "K", " ", "\n"]


@pytest.mark.parametrize(
    ("caption", "mirrored"),
    [
        ("Left hand raised", "Right hand raised"),
        ("A dog to the left of a cat on the RIGHT.", "A dog to the right of a cat on the LEFT."),
        ("left/right, left-handed; the leftmost car turns rightwards", "right/left, right-handed; the rightmost car turns leftwards"),
        ("(left) 'right' left's", "(right) 'left' right's"),
        ("猫在左边,狗在右边", "猫在右边,狗在左边"),
        ("右手に花", "左手に花"),
        ("고양이는 왼쪽에, 개는 오른손 옆", "고양이는 오른쪽에, 개는 왼손 옆"),
        ("우측 상단", "좌측 상단"),
    ],
)
def test_swap_mirrors_whole_words_and_keeps_their_case(caption, mirrored):
    assert swap(caption) == mirrored
    assert swap(mirrored) == caption
    assert names_side(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "an upright man in bright light",
        "leftovers, copyright, a fright, cleft rights",
        "<left> {right} {side:left} <|right|> https://a.org/left.png left_01 right2",
        "两只猫左右对称",
        "우산 쓴 여자",
        "lEfT",
        "",
    ],
)
def test_swap_leaves_everything_else(caption):
    assert swap(caption) == caption
    assert not names_side(caption)


@settings(max_examples=2000, deadline=None)
@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join)))
def test_swap_twice_gives_the_caption_back(caption):
    assert swap(swap(caption)) == caption
