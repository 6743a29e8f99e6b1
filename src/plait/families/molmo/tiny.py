"""The debug model's tokenizer, trained on the run's own texts and saved with the run, so that it works offline.

It is trained on questions and points as well, because a run on many tasks continues from a run on captions, with its tokenizer.
"""

import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from plait.families.molmo.config import DEBUG, LANGUAGES
from plait.families.molmo.styles import DEMO_STYLES
from plait.nn.tokenizer import train_tokenizer

END_OF_TEXT = "<|endoftext|>"
"""Id 0: padding, begin and end, as Qwen2 has one token for all three."""

_TEMPLATES = """
yes no true false zero one two three four five six seven eight nine ten below above under Three
How many {} are there?
How many {} are in the picture?
What colour is the {}?
What shape is the {}?
Is there a {}?
Point to the {}.
Point at all {}.
Where is the {}?
There are none.
True or false? There is exactly one yellow block as the base of a tower with at least two blocks
there is no black tower
There is one tower which has only three blocks
There is a box that has 3 items
Two towers have a black base
there are only two towers with exactly four blocks having a black block at the bottom
each box contains at least 1 yellow object
One of the grey boxes has items of only one color
There is a grey square with blocks of all 3 different colors
There is a blue block over a black block
two of the three towers have a block on top of a block
None of the triangles are touching an edge
There is an item not touching any edge
There is a square closely touching the wall
Boxes with only black and blue items
There is one circle touching a corner of a box
There are 3 objects touching the right side
The towers have yellow blocks stacked together
There is a box with a circle and no squares
There are four {} at the bottom.
""".strip().splitlines()
_REPEATS = 3  # about as often as points are written
_OBJECTS = ("circles in the left box", "square in the middle box", "black items in the right box", "yellow triangles", "small blue shape")


def framing_texts() -> Iterator[str]:
    """Yield questions, short answers and points in the form of the multitask data, so that the tokenizer has tokens for them."""
    for name in _OBJECTS:
        yield from (text.format(name) for text in _TEMPLATES for _ in range(_REPEATS))
        for tenths in range(7, 1001, 11):
            x, y = tenths / 10, tenths * 7 % 1000 / 10
            yield f'<point x="{x:.1f}" y="{y:.1f}" alt="{name}">{name}</point>'
            yield f'<points x1="{x:.1f}" y1="{y:.1f}" x2="{y:.1f}" y2="{x:.1f}" alt="{name}">{name}</points>'


def write_tokenizer(folder: Path, texts: Iterable[str]) -> None:
    """Train a tokenizer on `texts` and `framing_texts()` and write it to `folder`, atomically, in the format of transformers."""
    prompts = [" User: Assistant:", *(f" {style} 65:" for style in sorted(DEMO_STYLES))]
    framed = chain(prompts, (f" {text}" for text in chain(framing_texts(), texts)))  # every text follows a space
    tokenizer = train_tokenizer(framed, rows=LANGUAGES[DEBUG]["vocab_size"], special=[END_OF_TEXT], split_digits=True)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        wrapped.save_pretrained(Path(temporary) / "tokenizer")
        (Path(temporary) / "tokenizer").rename(folder)
