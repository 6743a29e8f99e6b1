"""How many tokens the rows of molmo have, from their texts and the sizes of their pictures."""

import functools

import xxhash

from plait.data import image_files
from plait.errors import BadSample
from plait.families.lengths import TokenLengths
from plait.families.molmo import styles
from plait.families.molmo.hf.sizes import POOL, Tiling
from plait.families.molmo.hf.tiling import crop_grid_of_image
from plait.families.molmo.inputs import Inputs
from plait.families.signatures import Sample


def token_lengths(inputs: Inputs) -> TokenLengths:
    """Return the lengths of the rows that `inputs` makes; of prompts that are drawn in training, those of the first one."""
    decides = f"{inputs.config.model_dump_json()} {inputs.tokenizer.tokenizer.to_str()}"
    return TokenLengths(xxhash.xxh3_64_hexdigest(decides.encode()), functools.partial(_length, inputs), functools.partial(_pixels, inputs))


def image_tokens(height: int, width: int, tiling: Tiling) -> int:
    """Return how many tokens an image of `height` x `width` pixels takes: of the whole, and of its grid of crops."""
    grids = [(tiling.tower.side, tiling.tower.side)]
    rows, columns = crop_grid_of_image(tiling, height, width)
    grids.append((rows * tiling.window + 2 * tiling.overlap, columns * tiling.window + 2 * tiling.overlap))
    pooled = [(-(-high // POOL), -(-wide // POOL)) for high, wide in grids]
    return sum(high * (wide + 1) + 2 for high, wide in pooled)


@functools.lru_cache(maxsize=8)
def _size(data: bytes) -> tuple[int, int]:
    """Return (width, height) of a picture: of one sample for its tokens and its pixels, and of blank ones that many samples share."""
    return image_files.size(data)


def _pixels(inputs: Inputs, sample: Sample) -> int:
    """Return the pixels of all crops of a sample's pictures."""
    tiling, crops = inputs.config.tiling, 0
    for data in sample["images"]:
        width, height = _size(data)
        rows, columns = crop_grid_of_image(tiling, height, width)
        crops += 1 + rows * columns
    return crops * tiling.tower.image**2


def _length(inputs: Inputs, sample: Sample) -> int:
    tiling = inputs.config.tiling
    count = 1  # the begin of the text
    for data in sample["images"]:
        width, height = _size(data)
        count += image_tokens(height, width, tiling)
    conversations = styles.conversations(sample, inputs.config.default_style, wordings=inputs.config.wordings)
    if not conversations:
        raise BadSample("it has no conversation")
    for messages, style, _ in conversations:
        stripped, _ = styles.strip_leading_image_marks(messages)
        for span in styles.conversation_spans(inputs.config, stripped, style, None):
            count += 0 if span.image else len(inputs.tokenizer.encode(span.text))
            count += span.answer
    return count
