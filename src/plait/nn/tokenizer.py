"""Train a byte-level BPE tokenizer, for models trained from scratch, and open tokenizer files. Any text is encoded and decoded exactly."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from plait.errors import PlaitError

BYTES = 256
"""Tokens of a byte-level vocabulary before special tokens and merges: one per byte."""


def open_tokenizer(path: Path, remedy: str) -> Tokenizer:
    """Open a file tokenizer.json. Raises PlaitError, a line that names it and ends in `remedy`, what to do, for one that is damaged."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower class
        raise PlaitError(f"{path} is no tokenizer that can be read ({error}): {remedy}") from error


def train_tokenizer(texts: Iterable[str], *, rows: int, special: list[str], split_digits: bool = False) -> Tokenizer:
    """Train a byte-level BPE tokenizer on `texts`, whose order does not matter. `rows`: largest size of the vocabulary.

    Ids from 0 on: the `special` tokens in their order, the 256 bytes, the learned merges. `split_digits` makes each digit a token, as in
    Qwen2's tokenizer, so that numbers do not use up the vocabulary.
    """
    assert rows >= len(special) + BYTES, f"{rows} rows cannot hold {len(special)} special tokens and {BYTES} bytes"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if split_digits:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), tokenizer.pre_tokenizer])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=rows, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(list(texts), trainer)  # an iterator would be read in another thread, while this one answers no signal
    return tokenizer
