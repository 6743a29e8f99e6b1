"""A tokenizer trained on the spot, for models that start from nothing: byte-level BPE, so that any text can be written."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

BYTES = 256


def train_tokenizer(texts: Iterable[str], *, rows: int, special: list[str], split_digits: bool = False) -> Tokenizer:
    """BPE merges learned from `texts`; ids 0.. are `special` in their order, then 256 bytes, then merges, `rows` at most.

    `split_digits`: each digit is a token, as in Qwen2's, so that numbers take no rows from words.
    The same texts in any order give the same tokenizer.
    """
    assert rows >= len(special) + BYTES, f"{rows} rows cannot hold {len(special)} special tokens and {BYTES} bytes"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if split_digits:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), tokenizer.pre_tokenizer])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=rows, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
