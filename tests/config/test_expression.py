"""Conditions on columns: what they mean, what is undecided, and what is no condition."""

import math

import pytest

from plait.config.sections.expression import Undecided, parse

FIELDS = {"score": 0.5, "text": "0.31", "lang": "EN", "tags": ["cat", "dog"], "null": None, "nan": math.nan, "flag": True, "n": 7}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("score > 0.28", True),
        ("score > 0.28 and lang == 'en'", False),
        ("lower(lang) == 'en'", True),
        ("lower(lang) in ['en', 'de']", True),
        ("lang not in ['EN']", False),
        ("'at' in 'cat'", True),
        ("'cat' in tags and len(tags) == 2", True),
        ("0 < score < 1", True),
        ("0 < score < 0.5", False),
        ("text > 0.3 and text < 0.32", True),  # a CSV's cell
        ("text == 0.31", True),
        ("n % 2 == 1 and n // 2 == 3 and n / 2 == 3.5 and n - 1 == 6 and n * 2 == 14 and n + 1 == 8", True),
        ("-n < 0", True),
        ("flag", True),
        ("not flag", False),
        ("flag == 1", False),  # true is no number
        ("null == None and nan is None and score is not None", True),
        ("null == 'en'", False),
        ("null != 'en'", True),
        ("null > 1 or score > 0.28", True),  # one part decides
        ("score > 0.28 or null > 1", True),
        ("null > 1 and score > 0.9", False),
        ("not (null > 1 and score > 0.9)", True),
        ("lang < 'F'", True),
    ],
)
def test_a_condition_holds_as_python_would_have_it(text, holds):
    assert parse(text).holds(FIELDS) is holds


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("null > 1", "null is null"),
        ("nan > 1", "nan is null"),
        ("missing > 1", "missing is null"),
        ("lang > 3", "lang is text and 3 a number"),
        ("lang + 1 > 3", "lang is text, not a number"),
        ("n / 0 > 3", "n and 0: division by zero"),
        ("score", "the condition is a number, not true or false: compare it"),
        ("not lang", "lang is text, not true or false: compare it"),
        ("len(score) > 1", "score is a number, and len() takes a text or a list"),
        ("lower(null) == 'a'", "null is null, and lower() takes a text"),
        ("1 in score", "score is a number, and `in` looks for a text in a text, or for anything in a list"),
        ("null > 1 or score > 0.9", "null is null"),
    ],
)
def test_what_a_value_leaves_undecided_is_told(text, reason):
    with pytest.raises(Undecided) as caught:
        parse(text).holds(FIELDS)
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("text", "place", "part"),
    [
        ("score > 1 and __import__('os').system('x')", 15, "__import__('os').system('x')"),
        ("score ** 2 > 1", 1, "score ** 2"),
        ("(lambda: 1)() > 0", 1, "(lambda: 1)()"),
        ("score.real > 0", 1, "score.real"),
        ("tags[0] == 'cat'", 1, "tags[0]"),
        ("[x for x in tags] == tags", 1, "[x for x in tags]"),
        ("f'{score}' == 'a'", 1, "f'{score}'"),
        ("b'a' == lang", 1, "b'a'"),
        ("lang is 'EN'", 1, "lang is 'EN'"),
        ("len(*tags) > 1", 5, "*tags"),
        ("'é' == lang or max(n)", 16, "max(n)"),
        ("score if flag else n", 1, "score if flag else n"),
        ("(n := 3) > 1", 2, "n := 3"),
    ],
)
def test_anything_else_is_refused_with_its_place(text, place, part):
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert str(caught.value).startswith(
        f"{text!r} at character {place}: {part!r} is not allowed: a condition has comparisons, and, or, not, in,"
    )


@pytest.mark.parametrize("text", ["score >", "", "score > 1; n", "a\0b", "(" * 500 + "1" + ")" * 500, "not " * 40 + "flag", "n" * 2001])
def test_what_python_cannot_read_is_refused(text):
    with pytest.raises(ValueError):
        parse(text)


def test_a_condition_names_its_columns_and_where_they_stand():
    parsed = parse("score > 0.28 and lower(lang) == 'en' and score < 1")
    assert parsed.columns == {"score": 1, "lang": 24}
    assert parsed.unknown(["score", "lang"]) is None
    assert parsed.unknown(["scores", "lang"]) == ("score", 1, "scores")
