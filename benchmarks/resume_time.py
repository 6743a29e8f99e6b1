"""Time to the first step after a resume, at step 10 and at step 100,000 of the same run: it must not grow.

    OMP_NUM_THREADS=1 python benchmarks/resume_time.py [--rounds 5] [--every 10]

A tiny theworld on generated scenes is stopped at its checkpoint of step 10. A copy of the run is made to stand at step 100,000 through the
library: its checkpoint says so, and its metrics.jsonl has the rows of 100,000 steps, one in `--every`. Both are continued in turn, in
processes forked from one that has imported everything, so that what is timed is resuming and not importing: from the start of the process
to the end of its first step (the heartbeat's next wait for data). Writes benchmarks/results/resume_time.json.
"""

import argparse
import os
import platform
import shutil
import signal
import statistics
import tempfile
import time
from pathlib import Path

import torch
import yaml

from plait import files
from plait.engine.checkpoints import checkpoint
from plait.engine.monitoring import beats
from plait.engine.state import GROUPS
from plait.files import write_json
from plait.training import launch

RESULTS = Path(__file__).resolve().parent / "results" / "resume_time.json"
MODULES = ("plait.training.run", "plait.families.theworld.family")
NEAR, FAR, PLANNED = 10, 100_000, 200_000
SCENES = {"source": "scenes", "options": {"size": [32, 32], "objects": [1, 2], "tasks": ["colour", "count"]}}
TINY = {
    **{"hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp": 64, "image_size": 16, "image_tokens": 4},
    **{"vision_hidden": 32, "vision_layers": 1, "vision_heads": 2, "vision_mlp": 64, "world_base": 4},
}


def configuration(every: int) -> dict:
    """A long run that saves every 10 steps."""
    return {
        "family": "theworld",
        "preset": "tiny",
        "model": {"tiny": TINY, "world": {"image_size": 16}},
        "data": {"train": [SCENES | {"limit": 2000}]},
        "trainable": ["projector", "vision", "language"],
        "train": {"steps": PLANNED, "global_batch": 8},
        "optim": {"lr": 1e-3, "ema": {"decay": 0.99}},
        "checkpoint": {"every_steps": NEAR},
        "track": {"every_steps": every, "tensorboard": False},
    }


def begin(warm: launch.Warm, config: Path, run: Path) -> None:
    """Train up to the checkpoint of step 10."""
    process = warm.start(["train", str(config), f"--run={run}"], run.with_suffix(".log"))
    while not checkpoint.published(run):
        time.sleep(0.005)
    process.signal(signal.SIGKILL)
    while process.poll() is None:
        time.sleep(0.005)


def move(near: Path, far: Path, every: int) -> None:
    """A copy of the run that stands at step 100,000."""
    shutil.copytree(near, far)
    found = checkpoint.published(far)[-1]
    old = checkpoint.read(found)
    state = old.manifest["state"] | {"step": FAR, "evaluated_step": FAR, "totals": {"samples": 8.0 * FAR}}
    facts = {name: value for name, value in old.manifest.items() if name not in ("format", "kind", "files", "xxh3", "state")}
    groups = {group: old.tensors(group) for group in GROUPS}
    for folder in checkpoint.published(far):
        shutil.rmtree(folder)
    checkpoint.write(checkpoint.folder_of(far, 1, "train", FAR), groups, {**facts, "state": state})
    row = files.read_rows(near / "metrics.jsonl", key='"grad_norm"')[0]
    (far / "metrics.jsonl").unlink(missing_ok=True)
    files.append_rows(far / "metrics.jsonl", (row | {"step": step} for step in range(every, FAR + 1, every)))


def first_step(warm: launch.Warm, config: Path, run: Path, step: int) -> float:
    """Continue a copy of the run; seconds from the start of the process to the end of its first step."""
    copy = run.with_name("continued")
    shutil.copytree(run, copy)
    before = beats.read(copy)
    began = time.time()
    process = warm.start(["train", str(config), f"--run={copy}"], run.with_suffix(".log"))
    while True:
        now = beats.read(copy)
        if now and now["pid"] != (before or {}).get("pid") and now["step"] > step:
            break
        assert process.poll() is None, run.with_suffix(".log").read_text()[-400:]
        time.sleep(0.001)
    took = now["time_s"] - began
    process.signal(signal.SIGKILL)
    while process.poll() is None:
        time.sleep(0.001)
    shutil.rmtree(copy)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--every", type=int, default=10, help="steps between rows of metrics.jsonl")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="plait-resume-"))
    config = folder / "long.yaml"
    config.write_text(yaml.safe_dump(configuration(given.every), sort_keys=False))
    warm = launch.Warm(MODULES)
    begin(warm, config, folder / "near")
    move(folder / "near", folder / "far", given.every)
    seconds: dict[str, list[float]] = {"10": [], "100000": []}
    for _ in range(given.rounds):
        seconds["10"].append(first_step(warm, config, folder / "near", int(checkpoint.published(folder / "near")[0].name[5:])))
        seconds["100000"].append(first_step(warm, config, folder / "far", FAR))
    warm.close()
    shutil.rmtree(folder)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = median["100000"] / median["10"]
    print(f"first step after {median['10']:.2f} s at step 10, {median['100000']:.2f} s at step 100,000: {ratio:.2f} x")
    machine = {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count()}
    write_json(RESULTS, {"every": given.every, "seconds": seconds, "median_s": median, "ratio": ratio, "machine": machine})


if __name__ == "__main__":
    main()
