"""Ten epochs of a source, with memory, threads, processes, files and the cache looked at after each.

    OMP_NUM_THREADS=1 python benchmarks/epochs.py [--shards 8] [--samples 250] [--epochs 10]

The sources: tar shards on the disk, tar shards streamed from a server on loopback, and parquet streamed from it, each prepared by two
threads and by two processes. A shard holds so many JPEGs of noise (150 px, decoded) with their number; parquet has as many files, of five
row groups each. The cache of streams may hold a third of the data, so that every epoch downloads again and deletes. Each way is a process
of its own. Told are, of that process and all below it, the anonymous memory after the first, the second and the last epoch (MB; without
mapped files and shared memory), open files and threads then, and the most bytes in the cache; and what is left once loader and source are
gone, more than after one epoch of another loader before: child processes, threads, open files, segments of shared memory. Every epoch has
each sample once. Figures go to benchmarks/results/epochs.json.
"""

import argparse
import gc
import io
import multiprocessing
import os
import platform
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from streaming import serve, write_shards

from plait.config.schema import SourceEntry
from plait.data import images
from plait.data.loading.bucketing import order_of
from plait.data.loading.loader import Loader
from plait.data.sources.open import open_source
from plait.files import write_json

BATCH, WORKERS, ROW_GROUPS = 50, 2, 5
RESULTS = Path(__file__).resolve().parent / "results" / "epochs.json"
SOURCES = ("tar on disk", "tar streamed", "parquet streamed")


class Pixels:
    """Inputs that decode a picture: its pixels and its number."""

    def encode(self, sample: dict[str, Any], key: int) -> tuple[np.ndarray, int]:
        return images.decode(sample["images"][0]), int(sample["fields"]["number"])

    def collate(self, examples: list[tuple[np.ndarray, int]]) -> dict[str, Any]:
        pixels = torch.from_numpy(np.stack([one for one, _ in examples]))
        return {"pixels": pixels, "numbers": torch.tensor([number for _, number in examples])}


def write_parquet(folder: Path, shards: int, samples: int) -> None:
    """Write as many parquet files as there are shards, of the same samples."""
    import pyarrow
    import pyarrow.parquet

    rng = np.random.default_rng(0)
    for shard in range(shards):
        cells = []
        for _ in range(samples):
            body = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (150, 150, 3), np.uint8)).save(body, "JPEG", quality=75)
            cells.append({"bytes": body.getvalue(), "path": None})
        table = pyarrow.table({"image": cells, "number": list(range(shard * samples, (shard + 1) * samples))})
        pyarrow.parquet.write_table(table, folder / f"{shard:05d}.parquet", row_group_size=-(-samples // ROW_GROUPS))


def entry_of(source: str, place: str, shards: int, cache_gb: float) -> SourceEntry:
    """Return the entry of one of SOURCES. `place`: the folder or the server's address."""
    names = f"{place}/{{00000..{shards - 1:05d}}}"
    template: Any = {"assistant": "{number}"}
    if source == "tar on disk":
        return SourceEntry(source="shards", path=f"{names}.tar", template=template)
    options = {"stream": True, "cache_gb": cache_gb}
    if source == "tar streamed":
        return SourceEntry(source="shards", path=f"{names}.tar", template=template, options={**options, "block": 1})
    return SourceEntry(source="datasets", path=f"{names}.parquet", template=template, options={**options, "block": ROW_GROUPS})


def family(root: int) -> list[int]:
    """Return the ids of a process and of all below it."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found = [root]
    for one in found:
        found += children.get(one, [])
    return found


def held() -> dict[str, int]:
    """Return what this process and those below it hold: `bytes` of anonymous memory, open `files`, `threads` and `processes`."""
    totals = {"bytes": 0, "files": 0, "threads": 0, "processes": 0}
    for process in family(os.getpid()):
        try:
            status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines() if ":" in line)
            totals["files"] += len(list(Path(f"/proc/{process}/fd").iterdir()))
        except OSError:
            continue
        totals["bytes"] += int(status.get("RssAnon", "0 kB").split()[0]) * 1024
        totals["threads"] += int(status["Threads"])
        totals["processes"] += 1
    return totals


def segments() -> int:
    """Return the number of segments of shared memory on this machine."""
    return len(list(Path("/dev/shm").iterdir())) if Path("/dev/shm").is_dir() else 0


def stored(cache: Path) -> int:
    """Return the bytes of downloaded shards."""
    sizes = []
    for path in (cache / "streamed").glob("[!.]*") if (cache / "streamed").is_dir() else ():
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:
            continue
    return sum(sizes)


def measure(connection: Connection, entry: SourceEntry, kind: str, epochs: int, cache: Path) -> None:
    """Read the epochs, and send what was held after each and what was left."""
    read(entry, kind, 1, cache / "other")  # Python's fork server and pools of threads stay for the next loader
    before, shared = settled(), segments()
    rows, most, rate = read(entry, kind, epochs, cache)
    after = settled()
    left = {name: after[name] - before[name] for name in ("files", "threads", "processes")} | {"segments": segments() - shared}
    connection.send({"epochs": rows, "left": left, "most_cache": most, "rate": rate})


def settled() -> dict[str, int]:
    """Return what is held once it has not changed for a second."""
    gc.collect()
    last, since = held(), time.monotonic()
    while time.monotonic() - since < 1:
        time.sleep(0.1)
        now = held()
        if any(now[name] != last[name] for name in ("files", "threads", "processes")):
            last, since = now, time.monotonic()
    return last


def read(entry: SourceEntry, kind: str, epochs: int, cache: Path) -> tuple[list[dict[str, int]], int, float]:
    """Read so many epochs; return what was held after each, the most bytes in the cache, and samples per second."""
    source = open_source(entry, seed=0, cache=cache)
    order, samples = order_of([source], [1.0], 0, BATCH), len(source)
    steps = samples // BATCH
    rows, numbers, most, began = list[dict[str, int]](), list[int](), 0, time.perf_counter()
    options: dict[str, Any] = {"workers": WORKERS, "kind": kind, "stop_step": epochs * steps}
    with Loader([source], order, Pixels(), seed=0, **options) as loader:
        for step, batch in enumerate(loader, 1):
            numbers += [int(number) for micro in batch.micro for number in micro.batch["numbers"]]
            if step % steps == 0:
                assert sorted(numbers) == list(range(samples)), "an epoch has each sample once"
                numbers.clear()
                gc.collect()
                rows.append({**held(), "cache": stored(cache)})
            most = max(most, stored(cache)) if step % 5 == 0 else most
    return rows, most, epochs * samples / (time.perf_counter() - began)


def main() -> None:
    """Measure each way, print the table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--samples", type=int, default=250, help="in each shard; a multiple of 50")
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    spawn, figures = multiprocessing.get_context("spawn"), dict[str, Any]()
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        data.mkdir()
        os.environ["PLAIT_CACHE"] = str(Path(scratch) / "user-cache")
        write_shards(data, arguments.shards, arguments.samples)
        write_parquet(data, arguments.shards, arguments.samples)
        size = sum(path.stat().st_size for path in data.glob("*.tar"))
        ours, theirs = spawn.Pipe()
        server = spawn.Process(target=serve, args=(data, 0.0, theirs), daemon=True)
        server.start()
        url = f"http://127.0.0.1:{ours.recv()}"
        for source in SOURCES:
            for kind in ("threads", "processes"):
                place = str(data) if source == "tar on disk" else url
                entry = entry_of(source, place, arguments.shards, size / 3e9)
                mine, its = spawn.Pipe()
                cache = Path(scratch) / f"cache-{len(figures)}"
                process = spawn.Process(target=measure, args=(its, entry, kind, arguments.epochs, cache))
                process.start()
                its.close()
                row = figures[f"{source}, {kind}"] = mine.recv()
                process.join()
                first, second, last = (row["epochs"][number]["bytes"] / 1e6 for number in (0, 1, -1))
                end = row["epochs"][-1]
                left = ", ".join(f"{count} {name}" for name, count in row["left"].items())
                cached = f"cache {row['most_cache'] / 1e6:.0f} of {size / 1e6:.0f} MB"
                print(f"{source}, {kind:<10} {first:6.0f} {second:6.0f} {last:6.0f} MB after epochs 1, 2, {arguments.epochs};", end=" ")
                print(f"{end['files']} files, {end['threads']} threads; {cached}; left {left}; {row['rate']:.0f} samples/s", flush=True)
        ours.close()
        server.join(5)
    write_json(RESULTS, {**vars(arguments), "mb": size / 1e6, "machine": platform.platform(), "cores": os.cpu_count(), "ways": figures})


if __name__ == "__main__":
    main()
