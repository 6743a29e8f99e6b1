"""Encode cheap samples in two passes: all are read, then all are encoded.

Small photos that are decoded one right after the other leave Python's lock to others for most of the time, so that a thread which waits
for it gets it: to wake one takes longer than to decode a photo. The decoder's code also stays in the processor's caches.
"""

import time
from collections.abc import Sequence

from plait.data.loading.micro_batch import Example, MicroBatchBuilder
from plait.data.order import SampleId
from plait.data.sources.contract import Sample, read
from plait.errors import BadSample, sample_errors
from plait.keys import key

_AT_ONCE = 64  # samples: more would lie in memory, and no longer in caches


_Read = tuple[Sample, int, float]
"""A sample as its source gave it, the key of its randomness, and the seconds that it took."""


def encode_in_passes(builder: MicroBatchBuilder, ids: Sequence[SampleId]) -> list[Example]:
    """Return what `builder.encode` returns of each of the samples `ids`; raises what it raises. A bad one is read, or encoded, twice."""
    examples: list[Example] = []
    for start in range(0, len(ids), _AT_ONCE):
        some = ids[start : start + _AT_ONCE]
        samples = [_read(builder, wanted) for wanted in some]
        examples += [_encode(builder, wanted, sample) or builder.encode(wanted) for wanted, sample in zip(some, samples, strict=True)]
    return examples


def _read(builder: MicroBatchBuilder, wanted: SampleId) -> _Read | None:
    """Return a sample that has been read; None where it is bad."""
    began, sample_key = time.perf_counter(), key(builder.seed, "sample", *wanted)
    try:
        with sample_errors:
            sample = read(builder.sources[wanted.source], wanted.index, sample_key)
    except BadSample:
        return None
    return sample, sample_key, time.perf_counter() - began


def _encode(builder: MicroBatchBuilder, wanted: SampleId, taken: _Read | None) -> Example | None:
    """Return a sample's example; None where it is bad."""
    if taken is None:
        return None
    began, (sample, sample_key, read_s) = time.perf_counter(), taken
    try:
        with sample_errors:
            value = builder.inputs.encode(sample, sample_key)
    except BadSample:
        return None
    return value, wanted, [], read_s + time.perf_counter() - began
