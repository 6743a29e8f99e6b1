"""Samples per second from shards behind a server that takes 20 ms to answer: streamed, and read at random by range.

    OMP_NUM_THREADS=1 python benchmarks/streaming.py [--shards 24] [--samples 500] [--latency 0.02] [--rounds 3]

A server on loopback, in a process of its own, waits so long before each answer; it has tar shards of so many samples each, a JPEG of noise
(about 20 KB) and its JSON. One epoch is read with two worker threads in batches of 64; nothing is decoded, so that reading alone is timed.
The ways: streamed (`stream: true`, block 2) with a list of counts; at random with an index beside each shard, without blocks in the cache
and with them; and webdataset. Each begins with an empty cache. Told are the seconds to the first batch (opening included), samples per
second of the epoch, processor time per sample of all processes but the server, and what the server was asked
for. Rounds are interleaved and the median is told. Figures go to
benchmarks/results/streaming.json.
"""

import argparse
import io
import json
import multiprocessing
import os
import platform
import re
import resource
import shutil
import statistics
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from plait.config.schema import SourceEntry
from plait.data.formats import tar_writing
from plait.data.loading.bucketing import order_of
from plait.data.loading.loader import Loader
from plait.data.sources.open import open_source
from plait.data.sources.shards import index_files
from plait.data.streaming import counts
from plait.files import write_json

BATCH, WORKERS = 64, 2
RESULTS = Path(__file__).resolve().parent / "results" / "streaming.json"
WAYS = ("streamed", "at random", "at random, blocks cached", "webdataset")


class Names:
    """Inputs that do no work: a sample's number."""

    def encode(self, sample: dict[str, Any], key: int) -> int:
        assert sample["images"]
        return int(sample["fields"]["number"])

    def collate(self, examples: list[int]) -> dict[str, Any]:
        return {"numbers": examples}


class SlowHandler(BaseHTTPRequestHandler):
    """Answers GET with a file or a byte range of it, after the server's latency."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        server: Any = self.server
        path = server.folder / self.path.strip("/")
        time.sleep(server.latency_s)
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size, span = path.stat().st_size, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(span[1]), min(int(span[2]), size - 1)) if span else (0, size - 1)
        with server.lock:
            server.requests += 1
            server.sent += last + 1 - first
        self.send_response(206 if span else 200)
        if span:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        with path.open("rb") as file:
            self.connection.sendfile(file, first, last + 1 - first)


def serve(folder: Path, latency_s: float, connection: Connection) -> None:
    """Serve a folder until the connection closes. Sends the port, and after each message (requests, bytes) since the last one."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), SlowHandler)
    server.daemon_threads, server.folder, server.latency_s = True, folder, latency_s
    server.lock, server.requests, server.sent = threading.Lock(), 0, 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    connection.send(server.server_port)
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        with server.lock:
            connection.send((server.requests, server.sent))
            server.requests = server.sent = 0


def write_shards(folder: Path, shards: int, samples: int) -> None:
    """Write shards of JPEGs of noise with their number, an index beside each, and the list of counts."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(64):
        body = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (150, 150, 3), np.uint8)).save(body, "JPEG", quality=75)
        pictures.append(body.getvalue())
    for shard in range(shards):
        numbers = range(shard * samples, (shard + 1) * samples)
        pairs = ((f"{n:09d}.jpg", pictures[n % 64], f"{n:09d}.json", json.dumps({"number": n}).encode()) for n in numbers)
        tar_writing.write(folder / f"{shard:05d}.tar", ((name, body) for row in pairs for name, body in (row[:2], row[2:])))
    rows = index_files(str(folder), beside=True)
    counts.write(folder / counts.NAME, [(Path(row.path).name, row.samples, Path(row.path).stat().st_size) for row in rows])


def plait_epoch(url: str, shards: int, cache: Path, way: str) -> tuple[float, float, list[int]]:
    """Read an epoch; returns (seconds to the first batch, seconds of all, numbers of the samples)."""
    began, first_s, numbers = time.perf_counter(), 0.0, list[int]()
    options = {"stream": way == "streamed"}
    template = {"assistant": "{number}"}
    entry = SourceEntry(source="shards", path=f"{url}/{{00000..{shards - 1:05d}}}.tar", template=template, options=options)
    source = open_source(entry, seed=0, cache=cache)
    reader: Any = getattr(source, "reader", None)
    for shard in reader.shards if way == "at random" else ():
        shard.remote._blocks = None  # bytes as they are asked for
    order = order_of([source], [1.0], 0, BATCH)
    with Loader([source], order, Names(), seed=0, workers=WORKERS, stop_step=len(source) // BATCH) as loader:
        for batch in loader:
            first_s = first_s or time.perf_counter() - began
            numbers += [number for micro in batch.micro for number in micro.batch["numbers"]]
    return first_s, time.perf_counter() - began, numbers


def processor_s() -> float:
    """Return the processor time of this process and of those that it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def first_of(examples: list[int]) -> list[int]:
    """Collate for webdataset: the numbers as they are."""
    return examples


def webdataset_epoch(url: str, shards: int) -> tuple[float, float, list[int]]:
    """Read an epoch with webdataset, as its documentation has it: curl, shards shuffled, a buffer of 1,000, two worker processes."""
    import webdataset

    began, first_s, numbers = time.perf_counter(), 0.0, list[int]()
    urls = [f"pipe:curl -s -f {url}/{shard:05d}.tar" for shard in range(shards)]
    dataset = webdataset.WebDataset(urls, shardshuffle=100, nodesplitter=None, empty_check=False, seed=0)
    dataset = dataset.shuffle(1000).map(lambda sample: int(json.loads(sample["json"])["number"])).batched(BATCH, collation_fn=first_of)
    for batch in webdataset.WebLoader(dataset, batch_size=None, num_workers=WORKERS):
        first_s = first_s or time.perf_counter() - began
        numbers += batch
    return first_s, time.perf_counter() - began, numbers


def main() -> None:
    """Measure each way in turns, print the table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument("--samples", type=int, default=500, help="in each shard")
    parser.add_argument("--latency", type=float, default=0.02, help="seconds before each answer")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    figures: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        data, cache = Path(scratch) / "data", Path(scratch) / "cache"
        data.mkdir()
        os.environ["PLAIT_CACHE"] = str(Path(scratch) / "user-cache")
        write_shards(data, arguments.shards, arguments.samples)
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        server = multiprocessing.get_context("spawn").Process(target=serve, args=(data, arguments.latency, theirs), daemon=True)
        server.start()
        url = f"http://127.0.0.1:{ours.recv()}"
        for _ in range(arguments.rounds):
            for way in WAYS:
                shutil.rmtree(cache, ignore_errors=True)
                before = processor_s()
                if way == "webdataset":
                    first_s, all_s, numbers = webdataset_epoch(url, arguments.shards)
                else:
                    first_s, all_s, numbers = plait_epoch(url, arguments.shards, cache, way)
                processor_us = 1e6 * (processor_s() - before) / len(numbers)
                assert len({*numbers}) == len(numbers) > (arguments.shards * arguments.samples) - 2 * BATCH
                ours.send(None)
                requests, sent = ours.recv()
                disk = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) if cache.is_dir() else 0
                row = {
                    "first_s": first_s,
                    "rate": len(numbers) / all_s,
                    "processor_us": processor_us,
                    "requests": requests,
                    "mb": sent / 1e6,
                    "disk_mb": disk / 1e6,
                }
                for name, value in row.items():
                    figures.setdefault(way, {}).setdefault(name, []).append(value)
        ours.close()
        server.join(5)
        size = sum(path.stat().st_size for path in data.glob("*.tar"))
    medians = {way: {name: statistics.median(values) for name, values in of_way.items()} for way, of_way in figures.items()}
    print(f"{arguments.shards} shards, {size / 1e6:.0f} MB, {arguments.latency * 1000:g} ms")
    for way, row in medians.items():
        print(
            f"{way:<26} {row['rate']:8.0f} samples/s   {row['processor_us']:6.0f} us   first batch {row['first_s']:6.2f} s   "
            f"{row['requests']:7.0f} requests   {row['mb']:8.1f} MB read   {row['disk_mb']:8.1f} MB on disk"
        )
    write_json(
        RESULTS,
        {**vars(arguments), "mb": size / 1e6, "machine": platform.platform(), "cores": os.cpu_count(), "medians": medians, "all": figures},
    )


if __name__ == "__main__":
    main()
