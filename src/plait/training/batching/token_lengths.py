"""Order the samples of a stage by their lengths in tokens, and leave out those that are too long.

Lengths are measured once per source, tokenizer and settings of the model, and kept in the cache folder (data/selection/survey.py).
"""

import logging
from dataclasses import replace

import numpy as np

from plait.assembly.data import TrainingData, data_seed
from plait.config.resolved import StageView, folder
from plait.data.buckets import BucketOrder
from plait.data.loading.length_order import LengthOrder, padded_share
from plait.data.loading.micro_batch import Inputs
from plait.data.order import BatchChanges, Order
from plait.data.selection.measures import Measure
from plait.data.selection.survey import Surveyed, measured
from plait.data.sources.contract import Source
from plait.data.sources.filtered import Filtered
from plait.errors import PlaitError
from plait.families.contract import Family

log = logging.getLogger(__name__)

_LOOKED_STEPS = 64


def prepare(
    view: StageView, data: TrainingData, family: Family, inputs: Inputs, batches: BatchChanges = ()
) -> tuple[TrainingData, Order | BucketOrder]:
    """Return the data of a stage and its order, as `data.truncate: drop` and `data.batching: length` ask for them.

    `inputs`: the family's, with its tokenizer; `batches`: (step of the stage, samples per step from it on). Raises PlaitError for a family
    without token lengths, for data in buckets or read as a stream, and where every sample of a source is longer than `data.max_tokens`.
    """
    config = view.config
    by_length, longest = config.data.batching == "length", config.data.max_tokens if config.data.truncate == "drop" else None
    if not by_length and longest is None:
        return data, data.order(view, batches)
    setting = "data.batching is length" if by_length else "data.truncate is drop"
    if family.token_lengths is None:
        raise PlaitError(f"{setting}, and the rows of family {family.name} have no lengths in tokens: leave it out")
    lengths = [_lengths(source, family.token_lengths(inputs).measure(), view) for source in data.sources]
    if longest is not None:
        kept = [np.flatnonzero(~(each > longest)) for each in lengths]
        data = replace(data, sources=[_within(source, each, longest) for source, each in zip(data.sources, kept, strict=True)])
        lengths = [each[some] for each, some in zip(lengths, kept, strict=True)]
    plain = data.order(view, batches)
    if not by_length:
        return data, plain
    if isinstance(plain, BucketOrder):
        raise PlaitError("data.batching is length, and a batch of data in buckets is of one bucket already: leave it out")
    if streamed := next((source.name for source in data.sources if source.stream is not None), None):
        raise PlaitError(
            f"data.batching is length, and {streamed} is read as a stream, whose order is that of its shards: leave it out, or set its "
            "options.stream to false"
        )
    (_, first), *changes = batches or [(0, config.train.global_batch)]
    arranged = LengthOrder(lengths, data.sampling_weights, data_seed(view), first, changes)
    micro_batch = config.train.micro_batch or config.train.global_batch
    shares = [padded_share(lengths, each, _LOOKED_STEPS, micro_batch) for each in (arranged, plain)]
    log.info(f"batches of similar length: {shares[0]:.1%} of their positions are padding, of random ones {shares[1]:.1%}")
    return data, arranged


def _lengths(source: Source, measure: Measure, view: StageView) -> np.ndarray:
    """Return the tokens of each sample of a source, NaN where a sample cannot be read."""
    surveyed = Surveyed(source, "", folder(view.config.data.cache))
    tokens: np.ndarray = measured(surveyed, [measure], what_for="the lengths of its rows")[measure.name][:, 0]
    return tokens


def _within(source: Source, kept: np.ndarray, longest: int) -> Source:
    """Return the samples `kept` of a source, of at most `longest` tokens. Raises PlaitError if there is none."""
    left = len(source) - len(kept)
    if not len(kept):
        raise PlaitError(f"{source.name}: all of its {left:,} samples are longer than data.max_tokens {longest} (data.truncate: drop)")
    return Filtered(source, kept, {f"max_tokens {longest}": left}) if left else source
