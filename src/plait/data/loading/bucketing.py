"""Count and describe the buckets of opened sources, and choose an order for them.

A bucket has samples of one shape, which may share a batch; a source is one data set. The order in buckets itself is in data/buckets.py.
"""

from collections.abc import Sequence

import numpy as np

from plait.data.buckets import BucketOrder
from plait.data.order import BatchChanges, Order, SampleId
from plait.data.sources.contract import Source
from plait.data.streaming.ordering import StreamedBucketOrder, StreamedOrder


def bucket_lengths(source: Source) -> tuple[int, ...]:
    """Return the number of samples in each bucket of a source; a source without buckets counts as one bucket."""
    return source.groups or (len(source),)


def contents_of(sources: Sequence[Source], global_batch: int) -> list[tuple[str, str]]:
    """Return log lines as (name, text), such as ("bucket 832x1216", "9,000 samples, ..."), per bucket and for all; [] without buckets."""
    rows = [row for source in sources for row in source.table(global_batch)]
    if not rows:
        return []
    total = {name: sum(row[name] for row in rows) for name in ("samples", "tokens", "batches", "left_over")}
    return [
        (
            f"bucket {row['bucket']}",
            f"{row['samples']:,} samples, {row['tokens']:,} text tokens, {row['batches']:,} batches of {global_batch} an epoch, "
            f"{row['left_over']:,} carried over",
        )
        for row in [*rows, {"bucket": "all", **total}]
    ]


def order_of(
    sources: Sequence[Source], sampling_weights: Sequence[float], seed: int, global_batch: int, changes: BatchChanges = ()
) -> Order | BucketOrder:
    """Return the training order of samples. It has buckets if a source has several, or if sources are mixed of which one has buckets.

    `sampling_weights[source]`: its share of the samples. `seed`: the run's. `global_batch`: samples per step at first; `changes`: (step,
    samples per step from then on).
    Raises PlaitError for an empty source and for a weight that is not positive.
    """
    lengths, shared = [bucket_lengths(source) for source in sources], (sampling_weights, seed, global_batch, changes)
    streams = {number: source.stream for number, source in enumerate(sources) if source.stream is not None}
    mixed_shapes = len(sources) > 1 and any(source.groups for source in sources)
    if mixed_shapes or any(len(buckets) > 1 for buckets in lengths):
        return StreamedBucketOrder(lengths, *shared, streams) if streams else BucketOrder(lengths, *shared)
    sizes = [len(source) for source in sources]
    return StreamedOrder(sizes, *shared, streams) if streams else Order(sizes, *shared)


def batches_of(ids: Sequence[SampleId], sources: Sequence[Source], batch: int) -> list[list[SampleId]]:
    """Group the ids of held-out samples into batches of at most `batch`, each of one bucket. They are in the order of their first samples.

    If no source has buckets, `ids` is sliced in its order.
    """
    ends = [np.cumsum(bucket_lengths(source)) for source in sources]
    bucketed = any(source.groups for source in sources)
    by_bucket: dict[tuple[int, int], list[SampleId]] = {}
    for identity in ids:
        bucket = int(np.searchsorted(ends[identity.source], identity.index, side="right")) if bucketed else 0
        by_bucket.setdefault((identity.source if bucketed else 0, bucket), []).append(identity)
    return [members[start : start + batch] for members in by_bucket.values() for start in range(0, len(members), batch)]
