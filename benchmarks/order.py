"""The order of data at a thousand million samples and 1,024 ranks: what a seek costs in time and memory, wherever it goes.

    OMP_NUM_THREADS=1 python benchmarks/order.py

For growing sources, the ids of random steps over five epochs, and the share of a random rank, each in an order that has just been made or
has just been elsewhere, so that nothing is remembered. Every epoch visits every sample once: shown on the smallest source whole, and on the
largest for a million positions, which must all differ. Writes benchmarks/results/order.json.
"""

import os
import platform
import time
import tracemalloc
from pathlib import Path

import numpy as np

from plait.data.order import Order, permute, rank_slices
from plait.files import write_json
from plait.keys import rng

RESULTS = Path(__file__).resolve().parent / "results" / "order.json"
SIZES = (10**5, 10**7, 10**9)
RANKS, BATCH, SEEKS = 1024, 1024, 200


def measure(size: int) -> dict:
    """Median and worst seek to a step's ids, with the cut for one rank, and the most memory ever held."""
    draw = rng("order", size)
    steps = draw.integers(0, 5 * size // BATCH, SEEKS).tolist()
    tracemalloc.start()
    order = Order([size], [1.0], 0, BATCH)
    took_ms = []
    for step in steps:
        began = time.process_time()
        rank_slices(order.ids(step), int(draw.integers(RANKS)), RANKS, None)
        took_ms.append((time.process_time() - began) * 1e3)
    peak_kb = tracemalloc.get_traced_memory()[1] / 1e3
    tracemalloc.stop()
    plain_ms = []
    for step in steps:  # again without tracemalloc, which slows what it counts
        order = Order([size], [1.0], 0, BATCH) if step % 2 else order
        began = time.process_time()
        rank_slices(order.ids(step), int(draw.integers(RANKS)), RANKS, None)
        plain_ms.append((time.process_time() - began) * 1e3)
    return {"samples": size, "seek_ms": float(np.median(plain_ms)), "worst_ms": max(plain_ms), "peak_kb": round(peak_kb, 1)}


def main() -> None:
    rows = [measure(size) for size in SIZES]
    whole = np.unique(permute(np.arange(SIZES[0]), SIZES[0], 0, "order", 0, 0)).size == SIZES[0]
    positions = rng("positions").choice(SIZES[-1], 10**6, replace=False)
    apart = np.unique(permute(positions, SIZES[-1], 0, "order", 0, 0)).size == positions.size
    for row in rows:
        print(f"{row['samples']:>13,} samples  seek {row['seek_ms']:.3f} ms (worst {row['worst_ms']:.3f})  peak {row['peak_kb']:.0f} kB")
    print(f"every sample once: {whole}; a million positions of {SIZES[-1]:,} all differ: {apart}")
    machine = {"python": platform.python_version(), "numpy": np.__version__, "cores": os.cpu_count()}
    asked = {"ranks": RANKS, "global_batch": BATCH, "seeks": SEEKS}
    write_json(RESULTS, {**asked, "sizes": rows, "bijective": whole and apart, "machine": machine})


if __name__ == "__main__":
    main()
