"""The tokenizer trained on the spot writes any text and knows its special tokens by place."""

import pytest

from plait.nn.tokenizer import train_tokenizer

SPECIAL = ["<pad>", "<eos>"]


def test_tokenizer_writes_any_text_back():
    tokenizer = train_tokenizer(["some plain words"] * 9, rows=300, special=SPECIAL)
    for text in ("never seen: 蛙 🐸 naïve", "  two  spaces\n\n", "", "\x00\x7f"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_tokenizer_numbers_special_tokens_first_and_keeps_to_its_rows():
    tokenizer = train_tokenizer(["the same few words, the same few words"] * 9, rows=270, special=SPECIAL)
    assert [tokenizer.token_to_id(token) for token in SPECIAL] == [0, 1]
    assert tokenizer.get_vocab_size() == 270
    assert len(tokenizer.encode("the same").ids) < len("the same"), "merges were learned"


def test_split_digits_are_tokens_of_their_own_and_are_written_back():
    texts = ["at 37.5 and 37.5"] * 99
    whole, split = (train_tokenizer(texts, rows=400, special=SPECIAL, split_digits=each) for each in (False, True))
    text = " at 37.5 and 1234"
    assert [digit for digit in split.encode(text).tokens if digit.isdigit()] == list("3751234")
    assert "37" in "".join(whole.encode(text).tokens) and len(whole.encode(text).ids) < len(split.encode(text).ids)
    assert split.decode(split.encode(text).ids) == text


def test_tokenizer_does_not_depend_on_the_order_of_texts():
    texts = [f"word{i} other{i % 3}" for i in range(50)]
    first, second = (train_tokenizer(order, rows=320, special=SPECIAL).to_str() for order in (texts, texts[::-1]))
    assert first == second


def test_tokenizer_needs_a_row_for_each_byte():
    with pytest.raises(AssertionError, match="100 rows cannot hold 2 special tokens and 256 bytes"):
        train_tokenizer([], rows=100, special=SPECIAL)
