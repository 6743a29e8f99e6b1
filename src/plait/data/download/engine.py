"""Fetch the rows of a list shard by shard: what is asked when, what is recorded, when a shard is written.

Several shards are under way at once, so that slow hosts hold up none of the others. A failure to reach a server is recorded once any
server has answered a later request; one in a span without answers is tried again first (outages.py). Where no server answers any more, the
network is dead, and the download stops without a word about those rows.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from plait.data import addresses
from plait.data.download import hashes
from plait.data.download.fetch import Fetcher
from plait.data.download.journal import Journal
from plait.data.download.limits import NetworkLimits, PictureLimits
from plait.data.download.listing import Link, Listing
from plait.data.download.outages import Failure, Outages
from plait.data.download.outcomes import BROKEN, SAVED, UNANSWERED, Outcome, was_answered
from plait.data.download.picture_files import PictureFiles
from plait.data.download.pictures import Refused, judge
from plait.data.download.reopen import damage, is_wanted, reopen
from plait.data.download.shards import ShardFiles
from plait.errors import PlaitError

log = logging.getLogger(__name__)

_OPEN_ROWS, _OPEN_MOST = 40_000, 64  # rows and shards under way, at least two of these
_WAITING_MOST = 2048  # rows under way, most of which may wait for a host
_DOUBTFUL_MOST = 64  # links in a row without an answer of any server, before the network is tried
_WAITING_BYTES = 256 << 20  # of files that wait to be judged, before no more are fetched
_PROBED = 4  # servers that answered before, which are asked then
_PROBE_WAITS_S = (2.0, 8.0, 20.0)  # between attempts at them
_PROBE_S = 0.4  # that a failure waits for an answered request to be judged by, before they are asked
_QUIET_SHARE = 0.4  # of the time allowed for an answer, without one to a later request, before they are asked
_WATCH_S = 0.2  # between looks at whether they are to be asked
_PER_S, _PER_S_MOST = 10.0, 300.0  # between reports


class NetworkDown(PlaitError):
    """Raised when no server answers any more. Rows that are not recorded are fetched by the same command, later."""

    exit_code = 1


@dataclass
class Progress:
    """How far a download is. `rows` of this part, `done` before and now; `counts` by outcome; `bytes` saved; the rest since the start.

    `odd_captions`: by type, those that are no text. `began_s`: on the clock time.monotonic; `fetched` and `received`: rows and saved bytes
    since then.
    """

    rows: int
    done: int = 0
    bytes: int = 0
    fetched: int = 0
    received: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    odd_captions: Counter[str] = field(default_factory=Counter)
    began_s: float = field(default_factory=time.monotonic)

    def add(self, counts: Mapping[str, int], size: int) -> None:
        """Count outcomes that an earlier command recorded."""
        self.counts.update(counts)
        self.done += sum(counts.values())
        self.bytes += size

    def add_fetched(self, outcome: Outcome) -> None:
        """Count the outcome of a row that was fetched now."""
        size = int(outcome.picture.get("bytes", 0))
        self.add({outcome.status: 1}, size)
        self.fetched += 1
        self.received += size


@dataclass
class _OpenShard:
    """A shard under way: its rows by number, its journal, and how many rows are still to be recorded."""

    files: ShardFiles
    links: Sequence[Link]
    journal: Journal
    left: int


class Download:
    """A download of one part of a list into the folder `out`. `shards`: files of the shards of this part, in order.

    `report`: called every few seconds. `record_unreachable`: record rows as unreachable although no server answers. `threads`: decode
    pictures. `picture_files`: keeps them as files in place of shards. `again`: outcomes of earlier commands whose rows are fetched once
    more. `verify`: read the pictures of finished shards; those that are damaged are fetched again.
    """

    def __init__(
        self,
        listing: Listing,
        shards: Sequence[ShardFiles],
        network: NetworkLimits,
        pictures: PictureLimits,
        *,
        threads: int = 2,
        picture_files: PictureFiles | None = None,
        record_unreachable: bool = False,
        again: Collection[str] = (),
        verify: bool = False,
        report: Callable[[Progress], None],
    ) -> None:
        self.listing, self.shards, self.network, self.pictures = listing, shards, network, pictures
        self.again, self.verify, self._damaged = frozenset(again), verify, set[int]()
        self.record_unreachable, self.report, self.picture_files = record_unreachable, report, picture_files
        self.progress = Progress(sum(len(shard.rows) for shard in shards))
        self._open: dict[int, _OpenShard] = {}
        self._outages = Outages[tuple[_OpenShard, Link, Outcome]]()
        self._waiting_bytes = 0
        self._given_up = False  # no server answers, and links are recorded as they are
        self._in_flight, self._idle = 0, False  # rows under way; whether no further ones are being begun
        self._answered: OrderedDict[str, str] = OrderedDict()  # host: a URL of it that was answered, the last one last
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix="plait-decode")

    def run(self) -> Progress:
        """Fetch what is not fetched yet. Raises NetworkDown, PlaitError for what else ends a download, OSError where a disk fails."""
        waiting = []
        for shard in self.shards:
            told = shard.finished()
            if told is not None and shard.journal.exists():  # a kill came between the shard's last file and this
                Journal(shard.journal).close(remove=True)
            lost = "" if told is None else damage(shard, told, self.picture_files, thorough=self.verify)
            if lost:
                log.warning(f"{lost}: its pictures that are not there as they were saved are fetched again")
                self._damaged.add(shard.number)
            if told is None or lost or is_wanted(shard, told, self.again):
                waiting.append(shard)
            else:
                self.progress.add(told["outcomes"], told["bytes"])
        try:
            if waiting:
                self._remember_finished(shard for shard in reversed(self.shards) if shard not in waiting)
                asyncio.run(self._fetch_all(waiting))
        except BaseExceptionGroup as group:
            raise _first(group) from group
        finally:
            self._decoders.shutdown(wait=False, cancel_futures=True)
            for open_shard in self._open.values():
                open_shard.journal.close()
        return self.progress

    async def _fetch_all(self, waiting: Sequence[ShardFiles]) -> None:
        self._room, self._alive, self._closed = asyncio.Semaphore(_WAITING_MOST), asyncio.Event(), asyncio.Condition()
        self._alive.set()
        self._calm = asyncio.Event()
        self._calm.set()
        self._outages = Outages()
        fetcher = Fetcher(self.network, self.pictures.max_bytes, answered=self._note_answer, calm=self._calm.wait)
        async with fetcher as self._fetcher, asyncio.TaskGroup() as self._tasks:
            watchers = [self._tasks.create_task(watch()) for watch in (self._tick, self._watch_network)]
            async with asyncio.TaskGroup() as rows:
                for files in waiting:
                    await self._begin(files, rows)
                self._idle = True
            async with self._closed:
                await self._closed.wait_for(lambda: not self._open)
            for watcher in watchers:
                watcher.cancel()

    async def _begin(self, files: ShardFiles, rows: asyncio.TaskGroup) -> None:
        """Open a shard and begin with its rows that are not in its journal, as there is room."""
        most = max(2, min(_OPEN_MOST, _OPEN_ROWS // len(files.rows)))
        async with self._closed:
            self._idle = True
            await self._closed.wait_for(lambda: len(self._open) < most)
            self._idle = False
        links = await asyncio.to_thread(self.listing.links, files.rows.start, files.rows.stop)
        if files.finished() is not None:  # one at a time, as its pictures are copied
            lost = files.number in self._damaged
            await asyncio.to_thread(reopen, files, self.again, pictures=self.picture_files, damaged=lost)
        journal = await asyncio.to_thread(Journal, files.journal)
        before = [outcome for row, outcome in journal.outcomes.items() if row in files.rows]
        self.progress.add(Counter(outcome.status for outcome in before), sum(int(o.picture.get("bytes", 0)) for o in before))
        for outcome in [outcome for outcome in before if was_answered(outcome.status)][-_PROBED:]:
            self._remember(str(outcome.url))
        left = [link for link in links if link.row not in journal.outcomes]
        self.progress.odd_captions.update(link.odd_caption for link in left if link.odd_caption)
        shard = self._open[files.number] = _OpenShard(files, links, journal, len(left))
        if not left:
            self._tasks.create_task(self._seal(shard))
        for link in left:
            self._idle = True
            await self._alive.wait()
            self._idle = False
            await self._room.acquire()
            self._in_flight += 1
            rows.create_task(self._row(shard, link))

    async def _row(self, shard: _OpenShard, link: Link, attempt: int = 1) -> None:
        began_s = time.monotonic()
        try:
            outcome, body = await self._outcome(link)
        finally:
            self._room.release()
            self._in_flight -= 1
        if outcome.status in BROKEN and not self._given_up:
            now_s = time.monotonic()
            last_s = max(began_s, now_s - self.network.timeout_s)
            failure = Failure((shard, link, outcome), last_s, now_s, outcome.status == "timeout", attempt)
            self._outages.failures.append(failure)
            if len(self._outages.failures) >= _DOUBTFUL_MOST:
                self._alive.clear()  # no more rows until a server answers
        else:
            self._record(shard, outcome, body)

    async def _row_again(self, shard: _OpenShard, link: Link, attempt: int) -> None:
        await self._room.acquire()
        await self._row(shard, link, attempt)

    async def _outcome(self, link: Link) -> tuple[Outcome, bytes]:
        """Fetch one row and judge what came. Returns its outcome, and the file to save."""
        if link.fault or link.url is None:
            return Outcome(link.row, "bad_row" if link.fault else "no_url", None, link.fault), b""
        if self.pictures.check_hash and link.hash and hashes.parsed(link.hash) is None:
            return Outcome(link.row, "bad_row", link.url, f"its hash is no SHA-256, SHA-1 or MD5: {link.hash[:80]!r}"), b""
        if self.picture_files is not None and link.row in self.picture_files.repeated:
            return Outcome(link.row, "repeated", link.url), b""
        loop = asyncio.get_running_loop()
        while self.picture_files is not None and not self._calm.is_set():
            await self._calm.wait()
        if self.picture_files is not None and (body := self.picture_files.there(link.url)):
            with contextlib.suppress(Refused), self._waiting(len(body)):  # one that is damaged is fetched again
                _, facts = await loop.run_in_executor(self._decoders, judge, body, None, self.pictures)
                return Outcome(link.row, SAVED, link.url, picture=facts), b""
        try:
            body = await self._fetcher.fetch(link.url)
            with self._waiting(len(body)):
                body, facts = await loop.run_in_executor(self._decoders, judge, body, link.hash, self.pictures)
        except Refused as refused:
            return Outcome(link.row, refused.status, link.url, refused.detail), b""
        return Outcome(link.row, SAVED, link.url, picture=facts), body

    @contextlib.contextmanager
    def _waiting(self, size: int) -> Iterator[None]:
        """Count the bytes of a file that waits to be judged, so that decoding which is slower than the network bounds what is fetched."""
        self._waiting_bytes += size
        if self._waiting_bytes > _WAITING_BYTES:
            self._calm.clear()
        try:
            yield
        finally:
            self._waiting_bytes -= size
            if self._waiting_bytes <= _WAITING_BYTES:
                self._calm.set()

    def _record(self, shard: _OpenShard, outcome: Outcome, body: bytes = b"") -> None:
        """Write an outcome into its shard's journal; have the shard written with its last one."""
        shard.journal.add(outcome, body)
        self.progress.add_fetched(outcome)
        shard.left -= 1
        if not shard.left:
            self._tasks.create_task(self._seal(shard))

    async def _seal(self, shard: _OpenShard) -> None:
        """Write a shard that is complete, while others go on."""
        await asyncio.to_thread(shard.files.seal, shard.links, shard.journal, self.picture_files)
        async with self._closed:
            del self._open[shard.files.number]
            self._closed.notify_all()

    def _remember(self, url: str) -> None:
        """Keep a URL that was answered, one of each of the last few hosts."""
        host = urlsplit(url).netloc
        self._answered[host] = url
        self._answered.move_to_end(host)
        if len(self._answered) > _PROBED:
            self._answered.popitem(last=False)

    def _remember_finished(self, newest_first: Iterable[ShardFiles]) -> None:
        """Keep URLs that were answered, of finished shards."""
        for shard in newest_first:
            for url in shard.some_answered(_PROBED):
                self._remember(url)
            if len(self._answered) >= _PROBED:
                return

    def _note_answer(self, url: str, began_s: float | None) -> None:
        """Note an answer to a request which began then, over a new connection, or over an older one: None.

        Links that failed before by themselves are recorded, and the others tried again.
        """
        self._remember(url)
        if began_s is None:
            return
        self._given_up = False
        dead, again = self._outages.answered(began_s)
        for shard, _, outcome in (failure.row for failure in dead):
            self._record(shard, outcome)
        if again:
            self._fetcher.forgive()
        for failure in again:
            shard, link, _ = failure.row
            self._in_flight += 1
            self._tasks.create_task(self._row_again(shard, link, failure.attempt + 1))
        if len(self._outages.failures) < _DOUBTFUL_MOST:
            self._alive.set()

    async def _watch_network(self) -> None:
        """Ask servers that answered before where nothing else tells whether the network is there. Raises NetworkDown if none does."""
        failed = 0
        while True:
            await asyncio.sleep(_WATCH_S)
            waited_s, quiet_s = self._outages.waited_s(), self._outages.quiet_s()
            idle = bool(waited_s) and self._idle and not self._in_flight
            if not (idle or waited_s > _PROBE_S or (self._in_flight and quiet_s > _QUIET_SHARE * self.network.timeout_s)):
                failed = 0 if not waited_s else failed
                continue
            if await self._fetcher.any_answers(list(self._answered.values())):
                failed = 0
            elif idle and not self._in_flight:
                if not self._answered or failed == len(_PROBE_WAITS_S):
                    self._give_up()
                else:
                    await asyncio.sleep(_PROBE_WAITS_S[failed])
                    failed += 1

    def _give_up(self) -> None:
        """Record links as they are where no server answers, if that is asked for, or all of them were reached. Raises NetworkDown else."""
        if not self.record_unreachable and any(failure.row[2].status in UNANSWERED for failure in self._outages.failures):
            raise self._network_down()
        self._given_up = self.record_unreachable
        for shard, _, outcome in (failure.row for failure in self._outages.take_all()):
            self._record(shard, outcome)
        self._alive.set()

    def _network_down(self) -> NetworkDown:
        failed = [failure.row[2] for failure in self._outages.failures]
        hosts = len({urlsplit(str(outcome.url)).netloc for outcome in failed})
        last = next(outcome for outcome in reversed(failed) if outcome.status in UNANSWERED)
        why = f"the last {len(failed)} links, of {hosts} hosts, were not answered ({last.status}: {addresses.shown(str(last.url))})"
        cure = "when the network is back, the same command goes on; --record-unreachable records such rows as they are"
        return NetworkDown(f"no server answers: {why}; {self.progress.done:,} of {self.progress.rows:,} rows are recorded; {cure}")

    async def _tick(self) -> None:
        while True:
            took_s = time.monotonic() - self.progress.began_s
            await asyncio.sleep(min(max(_PER_S, took_s / 50), _PER_S_MOST))  # a day has hundreds of lines, not thousands
            self.report(self.progress)


def part_of(out: Path, rows: int, per_shard: int, part: tuple[int, int]) -> list[ShardFiles]:
    """Return the shards of one part of a list of `rows` rows. `part`: (number from 1, of how many): shards are dealt out by turns."""
    ranges: Iterator[tuple[int, range]] = enumerate(range(start, min(start + per_shard, rows)) for start in range(0, rows, per_shard))
    return [ShardFiles(out, number, inside) for number, inside in ranges if number % part[1] == part[0] - 1]


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first single error of a group: one that the user can mend, else any."""
    singles: deque[BaseException] = deque([group])
    flat: list[BaseException] = []
    while singles:
        error = singles.popleft()
        if isinstance(error, BaseExceptionGroup):
            singles.extend(error.exceptions)
        else:
            flat.append(error)
    return next((error for error in flat if isinstance(error, PlaitError)), flat[0])
