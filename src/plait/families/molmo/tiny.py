"""The debug model's tokenizer, trained on the run's own texts and saved with the run, so that no network is needed.

It also learns how questions and points are written: a captioner's tokenizer is that of the multitask run that starts from it.
"""

import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from plait.families.molmo.config import DEBUG, LANGUAGES
from plait.families.molmo.styles import DEMO_STYLES
from plait.nn.tokenizer import train_tokenizer

END_OF_TEXT = "<|endoftext|>"  # id 0: padding, begin and end, as Qwen2 has one token for all three

_ASKED = (
    *("How many {} are there?", "How many {} are in the picture?", "What colour is the {}?", "What shape is the {}?", "Is there a {}?"),
    *("Point to the {}.", "Point at all {}.", "Where is the {}?", "yes", "no", "true", "false"),
    *("True or false? There is a box with {}.", "True or false? There are exactly two boxes with {}.", "There are at least three {}."),
    *("There is exactly one tower with a blue block at the top.", "There is no {} touching an edge.", "There are four {} at the bottom."),
    *("There is at least one block over a black block.", "There are towers with a block at the base.", "with only {} touching the wall"),
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "There are none."),
)
_TIMES = 3  # about as often as points are written
_THINGS = ("circles in the left box", "square in the middle box", "black items in the right box", "yellow triangles", "small blue shape")


def asked() -> Iterator[str]:
    """Questions, short answers and points, as the second stage writes them."""
    for thing in _THINGS:
        yield from (text.format(thing) for text in _ASKED for _ in range(_TIMES))
        for tenths in range(7, 1001, 11):
            x, y = tenths / 10, tenths * 7 % 1000 / 10
            yield f'<point x="{x:.1f}" y="{y:.1f}" alt="{thing}">{thing}</point>'
            yield f'<points x1="{x:.1f}" y1="{y:.1f}" x2="{y:.1f}" y2="{x:.1f}" alt="{thing}">{thing}</points>'


def write_tokenizer(folder: Path, texts: Iterable[str]) -> None:
    """Train the tokenizer and write it to `folder`, whole or not at all, in the form that transformers loads."""
    framing = [" User: Assistant:", *(f" {style} 65:" for style in sorted(DEMO_STYLES))]
    framed = chain(framing, (f" {text}" for text in chain(asked(), texts)))  # every text follows a space
    tokenizer = train_tokenizer(framed, rows=LANGUAGES[DEBUG]["vocab_size"], special=[END_OF_TEXT], split_digits=True)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
        wrapped.save_pretrained(Path(beside) / "tokenizer")
        (Path(beside) / "tokenizer").rename(folder)
