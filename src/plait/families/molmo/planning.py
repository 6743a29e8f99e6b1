"""What `plait plan` asks of molmo: a batch of the usual shapes without data or tokenizer, and learning rates that have worked."""

from collections.abc import Mapping
from typing import Any

import torch

from plait.families.molmo import towers
from plait.families.molmo.config import DEBUG, Config
from plait.families.molmo.hf.tiling import tile
from plait.families.molmo.packing.documents import documents_of
from plait.families.molmo.packing.sequence import Annotation, batch_rows, build_row, places_of
from plait.nn.documents import LONGEST_MASK

_TEXT = 256
"""Text tokens assumed of a sample, all but 16 of them supervised: a dense caption."""
_PROMPT = 16
_RATES = {"connector": 2e-4, "vision": 6e-6, "language": 2e-5}  # of the captioner (Deitke et al. 2024, arXiv 2409.17146)
_DEBUG_RATE = 1e-3


def assumed_batch(config: Config, *, samples: int, tokens: int | None, picture: tuple[int, int] | None) -> dict[str, Any]:
    """Return a batch of `samples` captions, each of a picture cut into as many crops as there may be.

    It is as `Inputs.collate` makes it, whatever size of `picture` is known. A row has the picture's tokens and 256 of text, or so many
    that it is `tokens` long. Raises BadSample if the picture alone is longer.
    """
    rows_of_text = towers.language_config(config).get_text_config().vocab_size
    tower, window = config.tower, config.tiling.window * config.tower.patch
    margins = 2 * config.overlap * tower.patch
    columns = max(n for n in range(1, config.max_crops + 1) if n * n <= config.max_crops and config.max_crops % n == 0)
    high = config.max_crops // columns
    tiled = tile(torch.zeros(3, high * window + margins, columns * window + margins, dtype=torch.uint8), config.tiling)
    prefix = [0, *(tiled.tokens + rows_of_text).tolist()]
    text = _TEXT if tokens is None else max(_PROMPT + 1, min(_TEXT, tokens - len(prefix)))
    annotation = Annotation([0] * text, [0.0] * min(_PROMPT, text - 1) + [1.0] * (text - min(_PROMPT, text - 1)))
    row = build_row(prefix, [annotation], max_tokens=tokens, text_rows=rows_of_text)
    batch = batch_rows([row] * samples, pad_id=0, pad="longest")
    patches = tiled.real.numel()
    pools = [torch.where(tiled.pools >= 0, tiled.pools + number * patches, tiled.pools) for number in range(samples)]
    batch |= {"crops": torch.cat([tiled.crops] * samples), "real": torch.cat([tiled.real] * samples), "pools": torch.cat(pools)}
    places: dict[str, Any] = dict(places_of(batch, rows_of_text, prompts=bool(config.residual_dropout)))
    if len(row) > LONGEST_MASK:
        places["documents"] = documents_of([row] * samples, len(row))
    return {**batch, "cut": torch.zeros(samples, dtype=torch.int64), "places": places}


def usual_rates(config: Config) -> Mapping[str, float]:
    """Return {component: peak learning rate}: those of the published captioner, or 1e-3 for a model from random weights (debug)."""
    return dict.fromkeys(_RATES, _DEBUG_RATE) if config.language == DEBUG else _RATES
