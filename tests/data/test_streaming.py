"""Sources that are read shard by shard: the order, its coverage on any layout, what a step reads, and what is kept on the disk."""

import collections
import contextlib
import json
import random
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest

from plait import cli
from plait.config.schema import SourceEntry
from plait.config.sections.selection import Filter
from plait.data import remote, web
from plait.data.figures.measure import chosen
from plait.data.loading.bucketing import order_of
from plait.data.loading.loader import Loader
from plait.data.order import permute
from plait.data.sources.open import open_source
from plait.data.sources.part import Part
from plait.data.streaming import counts, failures, opening, shard_cache
from plait.data.streaming.block_shuffle import Stream
from plait.errors import PlaitError
from tests import hub_server
from tests.data.faulty_server import serving, wait_until
from tests.data.packing import labelled
from tests.processes import FORK

TEMPLATE = {"user": "?", "assistant": "{label}"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nothing is remembered of other tests' servers, and waits between attempts are short."""
    monkeypatch.setattr(remote, "_servers", remote._Servers())
    monkeypatch.setattr(remote, "_WAITS_S", (0.01, 0.01))
    web._client.cache_clear()
    yield
    web._client().close()
    web._client.cache_clear()


class Labels:
    def encode(self, sample, key):
        return sample["fields"]["label"]

    def collate(self, examples):
        return {"labels": list(examples)}


def sizes_of(shards):
    return [1 + number * 5 % 4 for number in range(shards)]


def packed(folder, sizes):
    """Shards of so many samples each, numbered through, with their list of counts; the bodies by name."""
    starts = [0, *accumulate(sizes)]
    paths = [labelled(folder / f"{number:03d}.tar", starts[number], size) for number, size in enumerate(sizes)]
    counts.write(folder / counts.NAME, [(path.name, size, path.stat().st_size) for path, size in zip(paths, sizes, strict=True)])
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def opened(path, cache, **options):
    entry = SourceEntry(source="shards", path=str(path), template=TEMPLATE, options={"stream": True, **options})
    return open_source(entry, seed=0, cache=cache)


def walked(sources, order, start, stop, **options):
    """The labels of each step."""
    with Loader(sources, order, Labels(), seed=order.seed, start_step=start, stop_step=stop, **options) as loader:
        return [[label for micro in batch.micro if not micro.padding for label in micro.batch["labels"]] for batch in loader]


# --- The order.


def plain_order(lengths, block, epoch):
    """The documented order in whole numbers: shards permuted, in blocks, the samples of a block permuted."""
    starts = [0, *accumulate(lengths)]
    shards = [permute(place, len(lengths), *epoch, "shards") for place in range(len(lengths))]
    taken = []
    for number, first in enumerate(range(0, len(shards), block)):
        inside = [index for shard in shards[first : first + block] for index in range(starts[shard], starts[shard + 1])]
        taken += [inside[permute(place, len(inside), *epoch, "block", number)] for place in range(len(inside))]
    return taken


LENGTHS = [([3, 1, 4, 1, 5, 9, 2, 6], 3), ([5], 2), ([0, 7, 0, 0, 2, 3], 2), ([2] * 9, 1), ([4, 4], 9)]


@pytest.mark.parametrize(("lengths", "block"), LENGTHS)
def test_a_stream_takes_blocks_of_shards_and_shuffles_each(lengths, block):
    stream, epoch = Stream(lengths, block), (7, "order", 0, 3)
    taken = stream.permute(np.arange(sum(lengths)), epoch)
    assert taken.tolist() == plain_order(lengths, block, epoch)
    assert sorted(taken) == list(range(sum(lengths)))
    seek = np.array(random.Random(0).sample(range(sum(lengths)), min(4, sum(lengths))))
    assert Stream(lengths, block).permute(seek, epoch).tolist() == taken[seek].tolist()


def test_epochs_and_seeds_have_orders_of_their_own():
    stream = Stream([3] * 20, 2)
    orders = {tuple(stream.permute(np.arange(60), (seed, "order", 0, epoch)).tolist()) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_a_block_knows_its_shards_and_a_sample_its_block():
    lengths, epoch = [3, 0, 2, 5, 1], (1, "order", 0, 0)
    stream, starts = Stream(lengths, 2), [0, *accumulate(lengths)]
    taken = stream.permute(np.arange(11), epoch).tolist()
    blocks = [stream.shards_of(number, epoch) for number in range(stream.blocks())]
    assert sorted(shard for block in blocks for shard in block) == [0, 1, 2, 3, 4]
    for number, shards in enumerate(blocks):
        own = [index for shard in shards for index in range(starts[shard], starts[shard + 1])]
        assert sorted(taken[: len(own)]) == sorted(own)
        assert all(stream.blocks_of([index], epoch) == {number} for index in own)
        taken = taken[len(own) :]


def test_a_bad_sample_is_replaced_from_the_other_shards_at_hand():
    lengths, epoch = [3, 2, 4, 5, 1, 2], (1, "order", 0, 0)
    stream, starts = Stream(lengths, 2), [0, *accumulate(lengths)]
    for index in range(sum(lengths)):
        (block,) = stream.blocks_of([index], epoch)
        own = next(shard for shard in range(6) if index < starts[shard + 1])
        other = next(shard for shard in stream.shards_of(block, epoch) if shard != own)
        drawn = {stream.substitute(index, number, epoch) for number in range(20)}
        assert drawn == set(range(starts[other], starts[other + 1]))
    assert {Stream([4], 2).substitute(0, number, epoch) for number in range(9)} == {0, 1, 2, 3}
    alone = Stream([2, 2, 2], 1)
    for index in range(6):
        assert all(alone.substitute(index, number, epoch) // 2 != index // 2 for number in range(9))


# --- Coverage, through what a configuration opens.


@pytest.mark.parametrize("shards", [3, 7, 50])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_each_sample_comes_once_an_epoch_on_any_ranks_and_workers(tmp_path, shards, ranks):
    sizes = sizes_of(shards)
    packed(tmp_path / "data", sizes)
    source, samples, batch = opened(tmp_path / "data", tmp_path / "cache"), sum(sizes), 6
    order, steps = order_of([source], [1.0], 5, batch), 2 * samples
    for workers in range(4):
        stop = -(-steps // batch)
        of_ranks = [walked([source], order, 0, stop, workers=workers, rank=rank, world_size=ranks, micro_batch=2) for rank in range(ranks)]
        taken = [label for step in range(stop) for labels in of_ranks for label in labels[step]]
        assert sorted(taken[:samples]) == sorted(taken[samples : 2 * samples]) == list(range(samples))
        assert taken[:samples] != taken[samples : 2 * samples]
        assert taken == [one.index for step in range(stop) for one in order.ids(step)]


def test_worker_processes_cover_a_stream_from_a_server(tmp_path):
    sizes = sizes_of(9)
    with serving(packed(tmp_path / "data", sizes)) as server:
        source = opened(f"{server.url}/{{000..008}}.tar", tmp_path / "cache", block=3)
        order, stop = order_of([source], [1.0], 5, 4), -(-sum(sizes) // 4)
        taken = [label for step in walked([source], order, 0, stop, workers=3, kind="processes") for label in step]
    assert sorted(taken[: sum(sizes)]) == list(range(sum(sizes)))


@pytest.mark.parametrize("held_out", [None, 0.3])
def test_a_resumed_stream_takes_what_the_whole_one_takes(tmp_path, held_out):
    sizes = sizes_of(20)
    packed(tmp_path / "data", sizes)
    source = opened(tmp_path / "data", tmp_path / "cache", block=3)
    source = source if held_out is None else Part(source, held_out, 1, held_out=False)
    order = order_of([source], [1.0], 5, 4)
    whole = walked([source], order, 0, 30, workers=2)
    assert [walked([source], order, step, step + 1, workers=0)[0] for step in range(30)] == whole
    if held_out is not None:
        rest = Part(source.whole, held_out, 1, held_out=True)
        held = {rest[i]["fields"]["label"] for i in range(len(rest))}
        epoch = [label for step in whole for label in step][: len(source)]
        assert sorted({*epoch} | held) == list(range(sum(sizes)))
        assert not held & {*epoch}
        assert len(source.stream.lengths) == 20
        assert source.stream.lengths.sum() == len(source)


def test_a_filter_leaves_samples_out_of_a_stream_and_its_order(tmp_path):
    sizes = sizes_of(12)
    with serving(packed(tmp_path / "data", sizes)) as server:
        entry = SourceEntry(
            source="shards",
            path=f"{server.url}/{{000..011}}.tar",
            template=TEMPLATE,
            options={"stream": True, "block": 3},
            filter=Filter(expr="label > 4 and label != 9"),
        )
        source = open_source(entry, seed=0, cache=tmp_path / "cache")
        left = [label for label in range(sum(sizes)) if label > 4 and label != 9]
        order, stop = order_of([source], [1.0], 5, 4), -(-len(left) // 4)
        taken = [label for step in walked([source], order, 0, stop, workers=2) for label in step][: len(left)]
    assert sorted(taken) == left
    starts, kept = [0, *accumulate(sizes)], [0] * 12
    for label in left:
        kept[next(shard for shard in range(12) if label < starts[shard + 1])] += 1
    assert source.stream.lengths.tolist() == kept
    assert taken == [left[place] for place in plain_order(kept, 3, (5, "order", 0, 0))]


def test_a_streamed_source_is_mixed_with_one_that_is_not_and_with_buckets(tmp_path):
    sizes = [3, 4, 2, 5]
    packed(tmp_path / "data", sizes)
    packed(tmp_path / "other", [6])
    streamed, other = opened(tmp_path / "data", tmp_path / "cache"), opened(tmp_path / "other", tmp_path / "cache", stream=False)
    bucketed = opened(tmp_path / "other", tmp_path / "cache", stream=False)
    bucketed.groups = (4, 2)
    for second in (other, bucketed):
        order = order_of([streamed, second], [2.0, 1.0], 5, 3)
        ids = [one for step in range(21) for one in order.ids(step) if one.source == 0]
        assert sorted(one.index for one in ids[:14]) == list(range(14))
        assert [one.index for one in ids[:14]] == plain_order(sizes, 2, (5, "order", 0, 0))
        assert {one.index for step in range(21) for one in order.ids(step) if one.source == 1} == set(range(6))


# --- What is read.


def test_a_resume_at_shard_900_of_1000_reads_two_shards(tmp_path):
    body = labelled(tmp_path / "a.tar", 0, 8).read_bytes()
    names = [f"{number:03d}.tar" for number in range(1000)]
    counts.write(tmp_path / "index.json", [(name, 8, len(body)) for name in names])
    with serving(dict.fromkeys(names, body) | {"index.json": (tmp_path / "index.json").read_bytes()}) as server:
        source = opened(f"{server.url}/{{000..999}}.tar", tmp_path / "cache", block=2)
        asked = {path for path, _ in server.asked}
        assert asked == {"/index.json", "/000.tar"}  # the beginning of the first one, where columns and template are looked at
        server.asked.clear()
        order = order_of([source], [1.0], 5, 4)
        assert walked([source], order, 1800, 1802, workers=2) == [[label % 8 for label in step] for step in indices(order, 1800, 1802)]
        assert {path for path, _ in server.asked} == {f"/{shard:03d}.tar" for shard in source.stream.shards_of(450, (5, "order", 0, 0))}
        asked_bytes = [tuple(map(int, span.removeprefix("bytes=").split("-"))) for _, span in server.asked]
        assert sum(last - first + 1 for first, last in asked_bytes if last) == 2 * len(body)


def indices(order, start, stop):
    return [[one.index for one in order.ids(step)] for step in range(start, stop)]


def lanes_by_hand(lengths, block, lanes, epoch):
    """The sequence of a stream in equal parts, taken by turns."""
    whole, count = plain_order(lengths, block, epoch), sum(lengths)
    sizes = [len(range(lane, count, lanes)) for lane in range(lanes)]
    starts = [0, *accumulate(sizes)]
    parts = [whole[starts[lane] : starts[lane + 1]] for lane in range(lanes)]
    return [parts[place % lanes][place // lanes] for place in range(count)]


@pytest.mark.parametrize(("lengths", "block"), LENGTHS)
@pytest.mark.parametrize("lanes", [2, 3, 7])
def test_lanes_take_equal_parts_of_the_sequence_by_turns(lengths, block, lanes):
    taken = Stream(lengths, block, lanes=lanes).permute(np.arange(sum(lengths)), (7, "order", 0, 3)).tolist()
    assert taken == lanes_by_hand(lengths, block, lanes, (7, "order", 0, 3))
    assert sorted(taken) == list(range(sum(lengths)))


@pytest.mark.parametrize("mixed", [False, True])
def test_machines_each_download_shards_of_their_own(tmp_path, mixed):
    sizes, machines, stop = [4] * 36, 3, 16 if mixed else 12
    packed(tmp_path / "other", [5])
    with serving(packed(tmp_path / "data", sizes)) as server:
        shards, taken = [], []
        for rank in range(machines):
            source = opened(f"{server.url}/{{000..035}}.tar", tmp_path / f"cache-{rank}", machines=machines)
            sources = [source, opened(tmp_path / "other", tmp_path / "cache", stream=False)] if mixed else [source]
            order = order_of(sources, [3.0, 1.0][: len(sources)], 5, 12)
            server.asked.clear()
            taken += [label for step in walked(sources, order, 0, stop, workers=2, rank=rank, world_size=machines) for label in step]
            shards.append({path for path, span in server.asked if span != "bytes=0-0"})
        ids = [one.index for step in range(stop) for one in order.ids(step) if one.source == 0]
    assert sorted(ids) == list(range(144))
    assert set.union(*shards) == {f"/{number:03d}.tar" for number in range(36)}
    assert max(map(len, shards)) <= 12 + (10 if mixed else 2)
    assert mixed or sorted(taken) == list(range(144))


def test_lanes_change_the_fingerprint_and_one_of_them_changes_nothing(tmp_path):
    packed(tmp_path / "data", [3, 4])
    plain, one, two = (opened(tmp_path / "data", tmp_path / "cache", **options) for options in ({}, {"machines": 1}, {"machines": 2}))
    assert plain.fingerprint == one.fingerprint != two.fingerprint
    assert two.stream.text() == "streamed, 2 shards in blocks of 2, for 2 machines"


def test_figures_of_a_stream_are_of_a_few_shards(tmp_path):
    with serving(packed(tmp_path / "data", [4] * 30)) as server:
        source = opened(f"{server.url}/{{000..029}}.tar", tmp_path / "cache")
        indices = chosen(source, 8)
        assert len({*indices.tolist()}) == 8
        assert len({index // 4 for index in indices.tolist()}) == 2
        assert chosen(source, 500).tolist() == list(range(120))


def test_the_digest_of_an_order_tells_streams_apart(tmp_path):
    packed(tmp_path / "data", [3, 4, 5])
    sources = [opened(tmp_path / "data", tmp_path / "cache", **options) for options in ({}, {"block": 1}, {"machines": 2})]
    assert len({order_of([source], [1.0], 5, 4).arranged for source in sources}) == 3


def test_held_out_shards_that_say_so_are_read_by_range_and_in_no_order_of_their_own(tmp_path):
    with serving(packed(tmp_path / "data", [40, 40])) as server:
        entry = SourceEntry(source="shards", path=f"{server.url}/{{000..001}}.tar", template=TEMPLATE, options={"stream": True})
        held = open_source(entry, seed=0, cache=tmp_path / "cache", split="validation")
        assert held.stream is None
        assert [held.draw(i, 0)["fields"]["label"] for i in (0, 39, 40, 79)] == [0, 39, 40, 79]
    assert not list((tmp_path / "cache").glob("streamed/*.tar"))


def test_the_next_block_is_fetched_ahead_and_nothing_after_the_last_step(tmp_path):
    sizes = [4] * 12
    with serving(packed(tmp_path / "data", sizes)) as server:
        source = opened(f"{server.url}/{{000..011}}.tar", tmp_path / "cache", block=2)
        order, epoch = order_of([source], [1.0], 5, 4), (5, "order", 0, 0)
        server.asked.clear()
        shards = [{f"/{shard:03d}.tar" for shard in source.stream.shards_of(number, epoch)} for number in range(6)]
        with Loader([source], order, Labels(), seed=5, workers=1, prefetch=0, stop_step=5) as loader:
            steps = iter(loader)
            next(steps)
            wait_until(lambda: {path for path, span in server.asked if span != "bytes=0-0"} == shards[0] | shards[1])
            list(steps)
        assert {path for path, _ in server.asked} == shards[0] | shards[1] | shards[2]


def test_each_shard_is_downloaded_once_by_all_ranks_of_a_machine(tmp_path):
    sizes = [4] * 6
    with serving(packed(tmp_path / "data", sizes)) as server:
        sources = [opened(f"{server.url}/{{000..005}}.tar", tmp_path / "cache", block=2) for _ in range(3)]
        order = order_of(sources[:1], [1.0], 5, 6)
        server.asked.clear()
        loaders = [Loader([sources[rank]], order, Labels(), seed=5, rank=rank, world_size=3, workers=2, stop_step=4) for rank in range(3)]
        taken = [
            label for batches in zip(*loaders, strict=True) for one in batches for micro in one.micro for label in micro.batch["labels"]
        ]
        for loader in loaders:
            loader.close()
        whole = collections.Counter(path for path, span in server.asked if span != "bytes=0-0")
    assert sorted(taken) == list(range(24))
    assert whole == {f"/{number:03d}.tar": 1 for number in range(6)}


def links_of_files():
    """Where the open files of this process are."""
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            yield str(link.readlink())


def test_the_cache_keeps_to_its_bound_and_clears_what_killed_downloads_left(tmp_path, caplog):
    sizes = [4] * 12
    bodies = packed(tmp_path / "data", sizes)
    size = len(bodies["000.tar"])
    folder = tmp_path / "cache" / "streamed"
    folder.mkdir(parents=True)
    (folder / ".gone-0123456789abcdef.tar.tmp").write_bytes(b"half")
    with serving(bodies) as server:
        source = opened(f"{server.url}/{{000..011}}.tar", tmp_path / "cache", block=1, cache_gb=size * 4 / 1e9)
        order, held = order_of([source], [1.0], 5, 4), []
        deleted = []
        with Loader([source], order, Labels(), seed=5, workers=1, stop_step=12) as loader:
            for _ in loader:
                held.append(sum(1 for path in folder.iterdir() if path.suffix == ".tar"))
                deleted.append(sum(1 for link in links_of_files() if link.startswith(str(folder)) and link.endswith("(deleted)")))
    assert max(held) <= 4
    assert max(deleted) <= 3  # which take their place until they are closed
    assert not list(folder.glob(".*.tmp"))
    assert "cache_gb" not in caplog.text


def test_a_bound_too_small_for_a_block_is_told_and_its_shards_are_kept_all_the_same(tmp_path, caplog):
    sizes = [4] * 10
    with serving(packed(tmp_path / "data", sizes)) as server:
        source = opened(f"{server.url}/{{000..009}}.tar", tmp_path / "cache", block=2, cache_gb=1e-6)
        server.asked.clear()
        order = order_of([source], [1.0], 5, 4)
        taken = [label for step in walked([source], order, 0, 10, workers=2, prefetch=0) for label in step]
        whole = collections.Counter(path for path, span in server.asked if span != "bytes=0-0")
    assert sorted(taken) == list(range(40))
    assert set(whole.values()) == {1}
    assert "options.cache_gb is 1e-06, and the 6 shards that are needed at a time take up to" in caplog.text


def test_a_shard_that_is_deleted_before_it_is_opened_is_downloaded_again(tmp_path, monkeypatch):
    with serving(packed(tmp_path / "data", [4, 4])) as server:
        source = opened(f"{server.url}/{{000..001}}.tar", tmp_path / "cache")
        whole, lost = shard_cache.ShardCache.obtain, iter([True, True])

        def obtain(self, *arguments):
            path = whole(self, *arguments)
            if next(lost, False):
                path.unlink()
            return path

        monkeypatch.setattr(shard_cache.ShardCache, "obtain", obtain)
        assert source.draw(5, 0)["fields"]["label"] == 5


def stopped_in_a_download(url, cache):
    source = opened(f"{url}/{{000..001}}.tar", cache)
    source.draw(5, 0)


def test_a_killed_download_leaves_nothing_that_is_taken_for_a_shard(tmp_path):
    with serving(packed(tmp_path / "data", [4, 4])) as server:
        server.fault = lambda path, span: "stall" if path == "001.tar" and span != "bytes=0-0" else ""
        process = FORK.Process(target=stopped_in_a_download, args=(server.url, tmp_path / "cache"))
        process.start()
        folder = tmp_path / "cache" / "streamed"
        wait_until(lambda: folder.is_dir() and any(path.name.startswith(".001") for path in folder.iterdir()))
        process.kill()
        process.join()
        server.fault = lambda path, span: ""
        source = opened(f"{server.url}/{{000..001}}.tar", tmp_path / "cache")
        assert source.draw(5, 0)["fields"]["label"] == 5
    assert sorted(path.name.partition("-")[0] for path in folder.iterdir()) == [".room", "001"]


def test_a_full_disk_ends_the_run_in_one_line_and_leaves_no_part(tmp_path, monkeypatch):
    def write(descriptor, body, start):
        raise OSError(28, "No space left on device")

    with serving(packed(tmp_path / "data", [4, 4])) as server:
        source = opened(f"{server.url}/{{000..001}}.tar", tmp_path / "cache")
        monkeypatch.setattr(shard_cache.os, "pwrite", write)
        with pytest.raises(shard_cache.CacheFull, match=r"No space left on device; free space there, lower options.cache_gb") as caught:
            walked([source], order_of([source], [1.0], 5, 4), 0, 1, workers=1)
    assert caught.value.exit_code == 1
    wait_until(lambda: [path.name for path in (tmp_path / "cache" / "streamed").iterdir()] == [".room"])


# --- Shards that cannot be had.


def test_a_shard_that_cannot_be_had_costs_its_samples_which_are_counted_and_is_not_asked_for_again(tmp_path):
    sizes = [4] * 8
    bodies = packed(tmp_path / "data", sizes)
    del bodies["005.tar"]
    with serving(bodies) as server:
        source = opened(f"{server.url}/{{000..007}}.tar", tmp_path / "cache")
        server.asked.clear()
        with Loader([source], order_of([source], [1.0], 5, 4), Labels(), seed=5, workers=2, stop_step=8) as loader:
            bad = [one for batch in loader for one in batch.bad]
        asked = collections.Counter(path for path, span in server.asked)
    lost = [one for one in bad if one.attempt == 0]
    assert sorted(one.id.index for one in lost) == [20, 21, 22, 23]
    assert {one.reason for one in lost} == {f"there is no file {server.url}/005.tar"}
    assert len(bad) == len(lost)  # no replacement is of the same shard
    assert asked["/005.tar"] <= 3


def test_a_server_that_is_down_ends_the_run_and_the_stream_goes_on_later(tmp_path, monkeypatch):
    sizes = [2] * 12
    with serving(packed(tmp_path / "data", sizes)) as server:
        source = opened(f"{server.url}/{{000..011}}.tar", tmp_path / "cache", block=8)
        server.fault = lambda path, span: "status 503"
        with pytest.raises(remote.Unreachable, match=r"is down: [0-9]+ reads in a row failed"):
            walked([source], order_of([source], [1.0], 5, 24), 0, 1, workers=1)
        server.fault = lambda path, span: ""
        monkeypatch.setattr(failures, "_AGAIN_S", 0.0)
        assert sorted(walked([source], order_of([source], [1.0], 5, 24), 0, 1, workers=1)[0]) == list(range(24))


def test_a_shard_with_another_number_of_samples_than_listed_ends_the_run(tmp_path):
    bodies = packed(tmp_path / "data", [4, 4])
    bodies["001.tar"] = labelled(tmp_path / "b.tar", 4, 3).read_bytes()
    with serving(bodies) as server:
        source = opened(f"{server.url}/{{000..001}}.tar", tmp_path / "cache")
        with pytest.raises(failures.WrongCount, match=r"001.tar has 3 samples, and 4 are listed: make the list of counts again with"):
            walked([source], order_of([source], [1.0], 5, 8), 0, 1, workers=1)


# --- Counts.


def test_shards_without_a_list_are_read_through_once_or_have_an_index_beside_them(tmp_path, caplog):
    caplog.set_level("INFO", "plait")
    sizes = [3, 4, 5]
    bodies = packed(tmp_path / "data", sizes)
    del bodies[counts.NAME]
    with serving(bodies) as server:
        source = opened(f"{server.url}/{{000..002}}.tar", tmp_path / "cache")
        assert len(source) == 12
        assert "3 of 3 shards are not counted yet: those without an .idx beside them are read through now, once" in caplog.text
        server.asked.clear()
        assert opened(f"{server.url}/{{000..002}}.tar", tmp_path / "cache").fingerprint == source.fingerprint
        assert {path for path, _ in server.asked} == {"/index.json", "/000.tar"}
    listed = opened(tmp_path / "data" / "{000..002}.tar", tmp_path / "other")
    assert listed.fingerprint == source.fingerprint


def counted(url, cache):
    assert len(opened(f"{url}/{{000..005}}.tar", cache)) == 24


def test_processes_that_start_together_count_shards_once(tmp_path):
    bodies = packed(tmp_path / "data", [4] * 6)
    del bodies[counts.NAME]
    with serving(bodies) as server:
        started = [FORK.Process(target=counted, args=(server.url, tmp_path / "cache")) for _ in range(3)]
        for process in started:
            process.start()
        for process in started:
            process.join()
        read = collections.Counter(path for path, span in server.asked if path.endswith(".tar") and span != "bytes=0-0")
    assert [process.exitcode for process in started] == [0, 0, 0]
    assert {path: count for path, count in read.items() if path != "/000.tar"} == {f"/{number:03d}.tar": 1 for number in range(1, 6)}


def test_the_command_that_indexes_writes_the_list_of_counts(tmp_path, caplog):
    caplog.set_level("INFO", "plait")
    packed(tmp_path / "data", [3, 4])
    (tmp_path / "data" / counts.NAME).unlink()
    assert cli.main(["data", "index", str(tmp_path / "data"), "--counts", "--beside"]) == 0
    value = json.loads((tmp_path / "data" / "index.json").read_text(encoding="utf-8"))
    size = (tmp_path / "data" / "000.tar").stat().st_size
    assert value["__kind__"] == "wids-shard-index-v1"
    assert value["shardlist"][0] == {"url": "000.tar", "nsamples": 3, "filesize": size}
    assert f"the counts are in {tmp_path / 'data' / 'index.json'}" in caplog.text
    assert counts.listed([str(tmp_path / "data" / "001.tar")], None) == {
        str(tmp_path / "data" / "001.tar"): (4, value["shardlist"][1]["filesize"])
    }
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"000.tar", "001.tar", "000.tar.idx", "001.tar.idx", "index.json"}


WRONG = {
    '{"shardlist": [{"url": "000.tar", "nsamples": 3}]}': "lists 1 shards, and not 001.tar (1 are not in it)",
    '{"shardlist": [{"url": "000.tar", "nsamples": 0}]}': "000.tar has nsamples 0 and filesize None: they are whole numbers from 1 on",
    '{"shardlist": [{"url": "000.tar", "nsamples": 1}, {"url": "./000.tar", "nsamples": 1}]}': "lists 000.tar twice",
    '{"version": 2, "shards": []}': "is no list of counts",
    "[": "is no list of counts",
}


@pytest.mark.parametrize(("text", "why"), [('{"version": 2, "shards": []}', "of another format"), ("[", "not JSON")])
def test_a_list_of_counts_that_is_none_is_passed_over_in_words(tmp_path, caplog, text, why):
    packed(tmp_path / "data", [3, 4])
    (tmp_path / "data" / counts.NAME).write_text(text, encoding="utf-8")
    assert len(opened(tmp_path / "data", tmp_path / "cache")) == 7
    assert f"{tmp_path / 'data' / counts.NAME} is no list of counts ({why}), and is passed over" in caplog.text


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_list_of_counts_is_one_line(tmp_path, text):
    packed(tmp_path / "data", [3, 4])
    (tmp_path / "counts.json").write_text(text, encoding="utf-8")
    with pytest.raises(PlaitError) as caught:
        opened(tmp_path / "data", tmp_path / "cache", counts=str(tmp_path / "counts.json"))
    assert WRONG[text] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_list_that_is_named_must_be_there_and_one_of_another_format_beside_shards_is_passed_over(tmp_path):
    packed(tmp_path / "data", [3, 4])
    with pytest.raises(PlaitError, match=r"options.counts: there is no file .*none.json"):
        opened(tmp_path / "data", tmp_path / "cache", counts=str(tmp_path / "none.json"))
    (tmp_path / "data" / "index.json").write_text('{"version": 2, "shards": []}', encoding="utf-8")
    assert len(opened(tmp_path / "data", tmp_path / "cache")) == 7


def test_shards_of_one_name_in_several_folders_are_told_apart_by_the_list(tmp_path):
    for number, name in enumerate("ab"):
        labelled(tmp_path / name / "000.tar", 10 * number, 3 + number)
    counts.write(tmp_path / "all.json", [("a/000.tar", 3, 1), ("b/000.tar", 4, 1)])
    source = opened(tmp_path / "{a,b}" / "000.tar", tmp_path / "cache", counts=str(tmp_path / "all.json"))
    assert source.stream.lengths.tolist() == [3, 4]
    counts.write(tmp_path / "all.json", [("000.tar", 3, 1)])
    with pytest.raises(PlaitError, match="names shards of several folders alike"):
        opened(tmp_path / "{a,b}" / "000.tar", tmp_path / "cache", counts=str(tmp_path / "all.json"))


# --- Which sources are streamed.


def test_large_shards_at_an_address_are_streamed_and_small_ones_and_local_ones_are_not(tmp_path, monkeypatch):
    bodies = packed(tmp_path / "data", [3, 4])
    with serving(bodies) as server:
        for stream in ({}, {"stream": "auto"}):
            monkeypatch.setattr(opening, "LARGE_BYTES", sum(len(body) for name, body in bodies.items() if name.endswith(".tar")))
            entry = SourceEntry(source="shards", path=f"{server.url}/{{000..001}}.tar", template=TEMPLATE, options=stream)
            assert open_source(entry, seed=0, cache=tmp_path / "cache").stream is not None
            assert open_source(entry, seed=0, cache=tmp_path / "cache", split="validation").stream is None
            monkeypatch.setattr(opening, "LARGE_BYTES", opening.LARGE_BYTES + 1)
            assert open_source(entry, seed=0, cache=tmp_path / "cache").stream is None
    monkeypatch.setattr(opening, "LARGE_BYTES", 0)
    assert open_source(SourceEntry(source="shards", path=str(tmp_path / "data"), template=TEMPLATE), seed=0).stream is None


def test_held_out_samples_of_a_stream_are_read_by_range(tmp_path):
    sizes = [8] * 10
    bodies = packed(tmp_path / "data", sizes)
    assert cli.main(["data", "index", str(tmp_path / "data"), "--beside"]) == 0
    bodies |= {path.name: path.read_bytes() for path in (tmp_path / "data").glob("*.idx")}
    with serving(bodies) as server:
        source = opened(f"{server.url}/{{000..009}}.tar", tmp_path / "cache")
        held = Part(source, 0.1, 1, held_out=True)
        server.asked.clear()
        labels = [held.draw(i, 0)["fields"]["label"] for i in range(len(held))]
        assert labels == [held.index_in_whole(i) for i in range(len(held))]
        assert not list((tmp_path / "cache").glob("streamed/*.tar"))
        spans = [tuple(map(int, span.removeprefix("bytes=").split("-"))) for path, span in server.asked if path.endswith(".tar")]
        assert sum(last - first for first, last in spans if last) < len(held) * len(bodies["000.tar"]) / 4


REFUSED = {
    "stream: 1": "stream must be true, false or auto, got 1",
    "stream: yes please": "options.stream must be true, false or auto, got 'yes please'",
    "block: 0": "options.block is the number of shards whose samples are mixed, 1 or more, got 0",
    "machines: 0": "options.machines is how many machines share out the shards, 1 or more, got 0",
    "block: true": "options.block is the number of shards whose samples are mixed, 1 or more, got True",
    "cache_gb: -1": "options.cache_gb is what downloaded shards may take on the disk, in 1e9 bytes, got -1",
    "counts: 3": "options.counts names a file with the number of samples of each shard, got 3",
    "stream: false, block: 2": "options.block is of shards that are streamed, and stream is false",
}


@pytest.mark.parametrize("options", REFUSED)
def test_a_wrong_option_is_refused_before_anything_is_opened(tmp_path, options, capsys):
    path, entry = tmp_path / "run.yaml", f"{{source: shards, path: none.tar, options: {{{options}}}}}"
    path.write_text(f"{{family: theworld, preset: tiny, train: {{steps: 1}}, data: {{train: [{entry}]}}}}", encoding="utf-8")
    assert cli.main(["config", str(path)]) == 2
    assert REFUSED[options] in capsys.readouterr().err


def test_tar_shards_of_a_hub_dataset_are_streamed(tmp_path, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    bodies = packed(tmp_path / "data", [3, 4])
    with hub_server.serving(monkeypatch, tmp_path) as hub:
        fsspec.get_filesystem_class("hf").clear_instance_cache()
        hub.repositories["datasets", "owner/name"] = hub_server.Repository(bodies)
        source = opened("hf://datasets/owner/name/{000..001}.tar", tmp_path / "cache")
        taken = [label for step in walked([source], order_of([source], [1.0], 5, 7), 0, 1, workers=1) for label in step]
        fsspec.get_filesystem_class("hf").clear_instance_cache()
    assert sorted(taken) == list(range(7))
