"""Download the shards of streamed sources before a step needs them.

They are those of the block that is read, and of the next one. The order says which they are; workers that need one earlier wait for its
download, or begin it (shard_cache.py).
"""

import threading
from collections.abc import Sequence
from queue import SimpleQueue

from plait.data.loading.micro_batch import MicroBatchBuilder
from plait.data.loading.workers import PendingStep, Workers
from plait.data.order import SampleId
from plait.data.streaming.block_shuffle import EpochKey
from plait.errors import PlaitError

_DOWNLOADS = 2  # shards at once, of one process


class PrefetchingWorkers:
    """Workers that are given each step once the download of its shards, and of the next ones, has begun. `builder`: theirs.

    `steps`: those that will be taken, to whose end shards are downloaded; without an end where it is empty. Errors of downloads are left to
    the worker that needs the shard.
    """

    def __init__(self, workers: Workers, builder: MicroBatchBuilder, steps: range) -> None:
        self._workers, self.lookahead, self._builder, self._seed = workers, workers.lookahead, builder, builder.seed
        streams = {number: source.stream for number, source in enumerate(builder.sources) if source.stream is not None}
        self._streams = {number: stream for number, stream in streams.items() if stream.fetch is not None}
        self._last = self._blocks(self._own(steps[-1]) if steps else [])
        self._asked: dict[int, list[tuple[int, int, int]]] = {number: [] for number in self._streams}
        self._queue: SimpleQueue[tuple[int, int] | None] = SimpleQueue()
        self._closing = threading.Event()
        for number in range(_DOWNLOADS if self._streams else 0):
            threading.Thread(target=self._run, name=f"plait-prefetch_{number}", daemon=True).start()

    def submit(self, step: int) -> PendingStep:
        """Begin the downloads for step number `step` and what follows, and submit it to the workers. Returns and raises as they do."""
        self._ask_for(self._own(step))
        return self._workers.submit(step)

    def close(self) -> None:
        """Stop the workers, and the threads that download; what they are downloading is given up after its present range."""
        self._closing.set()
        for _ in range(_DOWNLOADS):
            self._queue.put(None)
        self._workers.close()

    def _own(self, step: int) -> list[SampleId]:
        """Return the samples of a step that this rank takes."""
        return [one for ids, padding in self._builder.slices(step) if not padding for one in ids]

    def _ask_for(self, ids: Sequence[SampleId]) -> None:
        """Queue the shards of these samples' blocks and of those that follow them."""
        blocks = self._blocks(ids)
        for source, stream in self._streams.items():
            if not (places := blocks[source]):
                continue
            following = {(epoch, block + 1) if block + 1 < stream.blocks() else (epoch + 1, 0) for epoch, block in places}
            wanted = [
                (*place, shard)
                for place in [*sorted(places), *sorted(following - places)]
                if not self._last[source] or place <= max(self._last[source])
                for shard in stream.shards_of(place[1], self._key(source, place[0]))
                if stream.lengths[shard]
            ]
            for request in wanted:
                if request not in self._asked[source]:
                    self._queue.put((source, request[2]))
            self._asked[source] = wanted

    def _run(self) -> None:
        while (request := self._queue.get()) is not None and not self._closing.is_set():
            source, shard = request
            fetch = self._streams[source].fetch
            assert fetch is not None
            try:
                fetch(shard, self._closing.is_set)
            except (PlaitError, OSError):  # met again by the worker that needs this shard, which says so
                continue

    def _blocks(self, ids: Sequence[SampleId]) -> dict[int, set[tuple[int, int]]]:
        """Return {source: (epoch, block) of its samples among `ids`} for the sources that are downloaded."""
        indices: dict[tuple[int, int], list[int]] = {}
        for one in ids:
            indices.setdefault((one.source, one.epoch), []).append(one.index)
        places: dict[int, set[tuple[int, int]]] = {source: set() for source in self._streams}
        for (source, epoch), of_epoch in indices.items():
            if (stream := self._streams.get(source)) is not None:
                places[source] |= {(epoch, block) for block in stream.blocks_of(of_epoch, self._key(source, epoch))}
        return places

    def _key(self, source: int, epoch: int) -> EpochKey:
        return (self._seed, "order", source, epoch)
