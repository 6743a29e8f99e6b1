"""Faults of every kind, in one table: fault, tries, survived.

    OMP_NUM_THREADS=1 python benchmarks/faults.py [--only NAME ...] [--tries SHARE] [--seed 0]

Survived means: after the fault the same command ends with what an undisturbed one gives, to the bit, with nothing left half written; or the
fault was refused in one line. What each row does is in benchmarks/fault_rows/. `--tries 0.2` makes a fifth of the tries of a full run.
Writes benchmarks/results/faults.json: fault, tries, survived, what was lost; rows that were not run keep what an earlier run wrote.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from fault_rows import bench, damage, disks, kills, ranks, web
from fault_rows.bench import Bench

from plait.engine.monitoring import reporter
from plait.files import write_json

RESULTS = Path(__file__).resolve().parent / "results" / "faults.json"
ROWS = {
    "workers": kills.data_workers,
    "wandb": kills.wandb,
    "first-start": kills.first_start,
    "commands": kills.commands,
    "index": damage.index_bits,
    "images": damage.mutated_images,
    "tars": damage.mutated_tars,
    "web": web.faults,
    "disks": disks.faults,
    "ranks": ranks.inside_steps,
}


def main() -> None:
    reporter.install()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=list(ROWS), default=list(ROWS), help="these kinds of faults")
    parser.add_argument("--tries", type=float, default=1.0, help="tries, as a share of those of a full run")
    parser.add_argument("--seed", type=int, default=0, help="of all moments and mutations")
    parser.add_argument("--keep", action="store_true", help="keep the folder that was worked in")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="plait-faults-"))
    os.environ.setdefault("PLAIT_CACHE", str(folder / "cache"))
    with bench.warm() as launcher:
        setting = Bench(folder, launcher, given.seed, given.tries)
        for name in given.only:
            began = time.monotonic()
            rows = ROWS[name](setting)
            for row in rows:
                print(row.line(), flush=True)
            record(name, rows, given, time.monotonic() - began)
    if given.keep:
        print(f"worked in {folder}")
    else:
        shutil.rmtree(folder)


def record(name: str, rows: list[bench.Row], given: argparse.Namespace, seconds: float) -> None:
    """Write the rows of one kind of fault beside those that are known."""
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    machine = {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count(), "machine": platform.machine()}
    command = f"python benchmarks/faults.py --only {name} --tries {given.tries:g} --seed {given.seed}"
    about = {"command": command, "seconds": round(seconds, 1), "hardware": machine}
    known[name] = {**about, "rows": [vars(row) for row in rows]}
    write_json(RESULTS, {kind: known[kind] for kind in ROWS if kind in known})


if __name__ == "__main__":
    sys.exit(main())
