"""Which sample takes the place of a bad one: another of its source and bucket (samples of one shape), drawn by key."""

from collections.abc import Sequence

from plait.data.loading.bucketing import bucket_lengths
from plait.data.order import SampleId
from plait.data.sources.contract import Source
from plait.keys import key


def replacement(sources: Sequence[Source], seed: int, wanted: SampleId, attempt: int) -> SampleId:
    """Return the sample that is tried in place of `wanted`, a bad one of `sources`; another for each `attempt`. `seed`: the run's."""
    number = key(seed, "replace", wanted.source, wanted.index, wanted.epoch, attempt)
    if (stream := sources[wanted.source].stream) is not None:  # one that is at hand
        return wanted._replace(index=stream.substitute(wanted.index, number, (seed, "order", wanted.source, wanted.epoch)))
    candidates = bucket_of(sources[wanted.source], wanted.index)
    return wanted._replace(index=candidates[number % len(candidates)])


def bucket_of(source: Source, index: int) -> range:
    """Return the range of a source's indices that share a bucket with `index`. Raises IndexError if `index` is beyond the source."""
    begin = 0
    for length in bucket_lengths(source):
        if index < begin + length:
            return range(begin, begin + length)
        begin += length
    raise IndexError(f"sample {index} of {begin}")
