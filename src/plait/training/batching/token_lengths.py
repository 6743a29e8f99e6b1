"""Order the samples of a stage by their lengths in tokens, pack them, and leave out those that are too long.

Lengths are measured once per source, tokenizer and settings of the model, and kept in the cache folder (data/selection/survey.py): of all
samples where they decide which there are or their order, else of those that are trained (lengths_ahead.py).
"""

import functools
import logging
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from plait.assembly.data import TrainingData, data_seed
from plait.config.resolved import StageView, folder
from plait.data.buckets import BucketOrder
from plait.data.loading.length_order import LengthOrder, padded_share
from plait.data.loading.micro_batch import Inputs
from plait.data.loading.token_budget import TokenBudget
from plait.data.order import BatchChanges, Order, Slicing, rank_slices
from plait.data.selection.survey import Surveyed, measured
from plait.data.sources.contract import Source
from plait.data.sources.filtered import Filtered
from plait.errors import PlaitError
from plait.families.contract import Family
from plait.families.lengths import TokenLengths
from plait.training.batching.lengths_ahead import Column, SourceLengths, measure_ahead

log = logging.getLogger(__name__)

_LOOKED_STEPS = 64


class Prepared(NamedTuple):
    """The data of a stage, its order, and how a step's samples are divided over ranks and micro-batches."""

    data: TrainingData
    order: Order | BucketOrder
    slicing: Slicing


def prepare(view: StageView, data: TrainingData, family: Family, inputs: Inputs, batches: BatchChanges = ()) -> Prepared:
    """Return the data of a stage as `data.truncate: drop`, `data.batching: length` and `data.pack_tokens` ask for them.

    `inputs`: the family's, with its tokenizer; `batches`: (step of the stage, samples per step from it on). Raises PlaitError for a family
    without token lengths, for data in buckets or read as a stream, and where every sample of a source is longer than `data.max_tokens`.
    """
    config = view.config
    by_length, longest = config.data.batching == "length", config.data.max_tokens if config.data.truncate == "drop" else None
    budget = config.data.pack_tokens
    if not config.data.needs_lengths:
        return Prepared(data, data.order(view, batches), rank_slices)
    setting = (
        "data.batching is length" if by_length else "data.truncate is drop" if longest is not None else f"data.pack_tokens is {budget}"
    )
    if family.token_lengths is None:
        raise PlaitError(f"{setting}, and the rows of family {family.name} have no lengths in tokens: leave it out")
    if budget is not None and (streamed := _streamed(data)):
        raise PlaitError(
            f"data.pack_tokens is {budget}, and {streamed} is read as a stream, whose samples are not measured before: leave it out, or "
            "set its options.stream to false"
        )
    of_family = family.token_lengths(inputs)
    if not by_length and longest is None:
        assert budget is not None
        return Prepared(data, data.order(view, batches), _when_asked(data, of_family, view, budget))
    lengths, pixels = zip(*(_measured(source, of_family, view, packed=budget is not None) for source in data.sources), strict=True)
    if longest is not None:
        kept = [np.flatnonzero(~(each > longest)) for each in lengths]
        data = replace(data, sources=[_within(source, each, longest) for source, each in zip(data.sources, kept, strict=True)])
        lengths, pixels = ([each[some] for each, some in zip(all_, kept, strict=True)] for all_ in (lengths, pixels))
    plain, slicing = data.order(view, batches), rank_slices
    if budget is not None:
        slicing = TokenBudget(lengths, pixels, budget, longest=config.data.max_tokens, micro_batch=config.train.micro_batch)
    if not by_length:
        return Prepared(data, plain, slicing)
    if isinstance(plain, BucketOrder):
        raise PlaitError("data.batching is length, and a batch of data in buckets is of one bucket already: leave it out")
    if streamed := _streamed(data):
        raise PlaitError(
            f"data.batching is length, and {streamed} is read as a stream, whose order is that of its shards: leave it out, or set its "
            "options.stream to false"
        )
    (_, first), *changes = batches or [(0, config.train.global_batch)]
    arranged = LengthOrder(lengths, data.sampling_weights, data_seed(view), first, changes)
    micro_batch = config.train.micro_batch or config.train.global_batch
    shares = [padded_share(lengths, each, _LOOKED_STEPS, micro_batch) for each in (arranged, plain)]
    log.info(f"batches of similar length: {shares[0]:.1%} of their positions are padding, of random ones {shares[1]:.1%}")
    return Prepared(data, arranged, slicing)


def _streamed(data: TrainingData) -> str | None:
    """Return the name of a source that is read as a stream, if there is one."""
    return next((source.name for source in data.sources if source.stream is not None), None)


def _when_asked(data: TrainingData, lengths: TokenLengths, view: StageView, budget: int) -> TokenBudget:
    """Return the slicing into rows of `budget` tokens by lengths that are measured for the steps ahead."""
    config = view.config
    sources = [SourceLengths(source, lengths, folder(config.data.cache)) for source in data.sources]
    tokens, pixels = ([Column(source, number) for source in sources] for number in (0, 1))
    ahead, longest = functools.partial(measure_ahead, sources), config.data.max_tokens
    return TokenBudget(tokens, pixels, budget, longest=longest, micro_batch=config.train.micro_batch, ahead=ahead)


def _measured(source: Source, lengths: TokenLengths, view: StageView, *, packed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens, and if `packed` the pixels, of each sample of a source, NaN where a sample cannot be read."""
    surveyed = Surveyed(source, "", folder(view.config.data.cache))
    measures = [lengths.measure(), lengths.measure_pixels()] if packed else [lengths.measure()]
    columns = measured(surveyed, measures, what_for="the lengths of its rows")
    numbers = [columns[measure.name][:, 0] for measure in measures]
    return numbers[0], numbers[-1]


def _within(source: Source, kept: np.ndarray, longest: int) -> Source:
    """Return the samples `kept` of a source, of at most `longest` tokens. Raises PlaitError if there is none."""
    left = len(source) - len(kept)
    if not len(kept):
        raise PlaitError(f"{source.name}: all of its {left:,} samples are longer than data.max_tokens {longest} (data.truncate: drop)")
    return Filtered(source, kept, {f"max_tokens {longest}": left}) if left else source
