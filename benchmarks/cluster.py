"""A SLURM cluster of two nodes in namespaces of this machine, on which the files of launch/ run as they are shipped.

    OMP_NUM_THREADS=1 python benchmarks/cluster.py [--only CASE ...] [--steps 60]

Needs root on Debian or Ubuntu: SLURM is installed from the distribution's packages if it is not there. Each node has a network, a host
name, an /etc/hosts and process ids of its own; all hang on a bridge that leads nowhere, and see one run folder. The runs are a tiny
theworld on drawn scenes, with one gloo rank on each node; every run is compared with a straight one of two ranks on one machine, to the bit
(prove). Daemons, namespaces and folders are gone afterwards, also after Ctrl-C. Writes benchmarks/results/cluster.json, case by case; cases
that were not run keep what an earlier run wrote.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from cluster_parts import machines, slurm
from cluster_parts.cases import CASES, Setting

from plait.engine.monitoring import reporter
from plait.files import write_json

TINY = {
    **{"hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp": 64, "image_size": 16, "image_tokens": 4},
    **{"vision_hidden": 32, "vision_layers": 1, "vision_heads": 2, "vision_mlp": 64, "world_base": 4},
}
RESULTS = Path(__file__).resolve().parent / "results" / "cluster.json"


def configuration(steps: int) -> dict[str, Any]:
    """A tiny theworld in two stages on drawn scenes, with evaluations and checkpoints between the steps."""
    scenes = {"source": "scenes", "options": {"size": [32, 32], "objects": [1, 2]}}
    return {
        "family": "theworld",
        "preset": "tiny",
        "model": {"tiny": TINY, "world": {"image_size": 16}},
        "data": {"train": [scenes], "validation": [scenes]},
        "stages": [
            {"name": "projection", "trainable": ["projector"], "train": {"steps": steps // 4}},
            {"name": "all", "trainable": ["projector", "vision", "language"], "train": {"steps": steps - steps // 4}},
        ],
        "train": {"global_batch": 4, "micro_batch": 2},
        "optim": {"lr": 1e-3, "ema": {"decay": 0.99}},
        "checkpoint": {"every_steps": 5, "keep": 4},
        "evaluate": [{"bench": "loss", "every_steps": 15, "samples": 8, "batch": 4}],
        "track": {"every_steps": 1, "tensorboard": False},
    }


def main() -> int:
    """Run the cases; return 1 if one of them did not go as it must."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=list(CASES), default=list(CASES), metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--steps", type=int, default=60, help="of each run; more where a case needs a longer one")
    parser.add_argument("--keep", action="store_true", help="keep the folder that was worked in")
    given = parser.parse_args()
    reporter.install()
    refused = machines.allowed() or slurm.install()
    if refused:
        print(f"cluster.py: {refused}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of all that has to be cleaned up
    folder = Path(tempfile.mkdtemp(prefix="plait-cluster-", dir=os.environ.get("TMPDIR", "/tmp")))
    folder.chmod(0o755)  # munged wants to reach its socket
    try:
        return cases(folder, given)
    finally:
        if given.keep:
            print(f"worked in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def cases(folder: Path, given: argparse.Namespace) -> int:
    """Start the cluster, train the straight run on a machine of it, and run and record one case after the other."""
    config, straight = folder / "config.yaml", folder / "runs" / "straight"
    config.write_text(yaml.safe_dump(configuration(given.steps), sort_keys=False))
    wrong = 0
    with slurm.cluster(folder) as cluster:
        setting = Setting(cluster, folder, config, straight, Path(sys.executable))
        began = time.monotonic()
        setting.train_straight()
        print(f"straight run: {time.monotonic() - began:.0f} s", flush=True)
        for name in given.only:
            began = time.monotonic()
            try:
                row = {"held": True, **CASES[name](setting)}
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                row = {"held": False, "what happened": str(error)}
                wrong += 1
                cluster.ask("scancel", "--user=root")
            row = {"steps": given.steps, **row, "seconds": round(time.monotonic() - began)}
            print(f"{name}: {'held' if row['held'] else 'DID NOT HOLD'} {row}", flush=True)
            record(name, row)
    return int(wrong > 0)


def record(name: str, row: dict[str, Any]) -> None:
    """Write the row of one case beside those that are known."""
    known = json.loads(RESULTS.read_text())["cases"] if RESULTS.is_file() else {}
    known[name] = row
    machine = {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count(), "slurm": slurm.version()}
    rows = {case: known[case] for case in CASES if case in known}
    write_json(RESULTS, {"machine": machine, "cases": rows})


if __name__ == "__main__":
    sys.exit(main())
