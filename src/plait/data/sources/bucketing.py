"""The buckets of opened sources: which order they need, what each bucket holds, and which samples may share a batch.

The schedule in buckets itself is in data/buckets.py.
"""

from collections.abc import Sequence

import numpy as np

from plait.data.buckets import BucketOrder
from plait.data.order import Order, SampleId
from plait.data.sources.contract import Source


def bucket_lengths(source: Source) -> tuple[int, ...]:
    """Return the lengths of a source's buckets; a source without buckets is one."""
    return source.groups or (len(source),)


def bucket_of(source: Source, index: int) -> range:
    """Return the indices that share a bucket with `index`. Raises IndexError outside the source."""
    begin = 0
    for length in bucket_lengths(source):
        if index < begin + length:
            return range(begin, begin + length)
        begin += length
    raise IndexError(f"sample {index} of {begin}")


def contents_of(sources: Sequence[Source], global_batch: int) -> list[tuple[str, str]]:
    """Return a line (name, text) per bucket with what it holds, and one for all together; nothing when no source has buckets."""
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


def order_of(sources: Sequence[Source], weights: Sequence[float], seed: int, global_batch: int) -> Order | BucketOrder:
    """Return the order for `sources`: in buckets when one of them has several, or when two are mixed of which one has any.

    Raises PlaitError as Order and BucketOrder do.
    """
    lengths = [bucket_lengths(source) for source in sources]
    mixed_shapes = len(sources) > 1 and any(source.groups for source in sources)
    if mixed_shapes or any(len(buckets) > 1 for buckets in lengths):
        return BucketOrder(lengths, weights, seed, global_batch)
    return Order([len(source) for source in sources], weights, seed, global_batch)


def batches_of(ids: Sequence[SampleId], sources: Sequence[Source], batch: int) -> list[list[SampleId]]:
    """Group a fixed list of held-out samples into batches of at most `batch`, each of one bucket, in the order of their first samples.

    Without buckets the list is sliced as it is.
    """
    ends = [np.cumsum(bucket_lengths(source)) for source in sources]
    bucketed = any(source.groups for source in sources)
    by_bucket: dict[tuple[int, int], list[SampleId]] = {}
    for identity in ids:
        bucket = int(np.searchsorted(ends[identity.source], identity.index, side="right")) if bucketed else 0
        by_bucket.setdefault((identity.source if bucketed else 0, bucket), []).append(identity)
    return [members[start : start + batch] for members in by_bucket.values() for start in range(0, len(members), batch)]
