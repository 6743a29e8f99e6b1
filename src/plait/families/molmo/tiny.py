"""The debug model's tokenizer, trained on the run's own texts and saved with the run, so that no network is needed."""

import tempfile
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from plait.families.molmo.config import DEBUG, LANGUAGES
from plait.families.molmo.styles import DEMO_STYLES
from plait.nn.tokenizer import train_tokenizer

END_OF_TEXT = "<|endoftext|>"  # id 0: padding, begin and end, as Qwen2 has one token for all three


def write_tokenizer(folder: Path, texts: Iterable[str]) -> None:
    """Train the tokenizer and write it to `folder`, whole or not at all, in the form that transformers loads."""
    framing = [" User: Assistant:", *(f" {style} 65:" for style in sorted(DEMO_STYLES))]
    framed = chain(framing, (f" {text}" for text in texts))  # every text follows a space
    tokenizer = train_tokenizer(framed, rows=LANGUAGES[DEBUG]["vocab_size"], special=[END_OF_TEXT])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
        wrapped.save_pretrained(Path(beside) / "tokenizer")
        (Path(beside) / "tokenizer").rename(folder)
