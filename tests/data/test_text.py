"""Records to conversations."""

import pytest

from plait.config.schema import Template
from plait.data import text
from plait.errors import BadSample, PlaitError

ASK = Template(system="Be brief.", user="What is it?", assistant="{label}")


def test_a_template_is_filled_from_the_record():
    told = text.messages({"label": "frog"}, ASK)
    assert told == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": "frog"},
    ]


def test_a_template_without_user_gets_an_empty_turn_for_the_image():
    assert [turn["role"] for turn in text.messages({"label": "x"}, Template(system="s", assistant="{label}"))] == [
        "system",
        "user",
        "assistant",
    ]


def test_a_template_wins_over_the_records_own_messages():
    record = {"label": "frog", "messages": [{"role": "user", "content": "hi"}]}
    assert text.messages(record, ASK)[-1]["content"] == "frog"
    assert text.messages(record, None) == record["messages"]


def test_llava_conversations_become_messages():
    record = {"conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A frog."}]}
    assert text.messages(record, None) == [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "A frog."}]


def test_lists_of_parts_become_text_with_marks():
    parts = [{"type": "text", "text": "left "}, {"type": "image", "image": "a.png"}, {"type": "image_url", "image_url": {"url": "b.png"}}]
    record = {"messages": [{"role": "user", "content": parts}]}
    assert text.messages(record, None)[0]["content"] == "left <image><image>"
    assert text.image_parts(record["messages"]) == ["a.png", "b.png"]


def test_a_caption_is_the_answer_to_a_picture():
    assert text.messages({"caption": " a frog \n"}, None) == [{"role": "user", "content": ""}, {"role": "assistant", "content": "a frog"}]
    assert text.messages({"label": 3}, None) == []


def test_columns_give_fields_our_names():
    assert text.rename({"fine": "frog", "n": 1}, {"label": "fine"}) == {"n": 1, "label": "frog"}
    assert text.rename({"a": 1, "b": 2}, {"a": "b", "b": "a"}) == {"a": 2, "b": 1}
    with pytest.raises(BadSample, match=r"no field 'coarse' \(columns\); the record has fine, n"):
        text.rename({"fine": "frog", "n": 1}, {"label": "coarse"})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": "hello"}, "`messages` is not a list of turns but text"),
        ({"messages": []}, "`messages` is not a list of turns"),
        ({"messages": [{"role": "user"}]}, "a turn needs 'role' and 'content'"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "unknown speaker in 'role'; known: human, user, gpt"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "neither text nor an image"),
        ({"messages": [{"role": "user", "content": 5}]}, "neither text nor a list of parts but a number"),
        ({"conversations": [{"role": "user", "content": "x"}]}, "a turn needs 'from' and 'value'"),
    ],
)
def test_a_broken_conversation_says_what_is_wrong(fields, words):
    with pytest.raises(BadSample) as caught:
        text.messages(fields, None)
    assert words in str(caught.value)


def test_a_field_missing_from_one_record_is_a_bad_sample():
    with pytest.raises(BadSample, match=r"cannot fill '\{label\}': KeyError 'label'; the record has name"):
        text.messages({"name": "x"}, ASK)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("{labl}", r"^template.assistant wants the field 'labl'; the records have label, n"),
        ("{}", "has a place without a name"),
        ("{0}", "has a place without a name"),
        ('{"a": 1', "is not a format string"),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused_before_the_run(pattern, words):
    with pytest.raises(PlaitError, match=words):
        text.check_template(Template(assistant=pattern), {"label": 1, "n": 2})
    text.check_template(Template(assistant="{label} of {n:03d} {{x}}"), {"label": 1, "n": 2})


def test_marks_must_match_the_images():
    turns = [{"role": "user", "content": "<image> and <image>"}]
    text.check(turns, 2, allow_blank=False)
    text.check([{"role": "user", "content": "none"}], 5, allow_blank=False)
    with pytest.raises(BadSample, match="the text has 2 <image> marks, the sample 1 images"):
        text.check(turns, 1, allow_blank=False)
