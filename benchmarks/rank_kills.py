"""20 times one rank of two is killed at a random moment, under `--max-restarts`; each run must end by itself, at the straight run's bits.

    OMP_NUM_THREADS=1 python benchmarks/rank_kills.py [--runs 4] [--kills 5] [--data DIR]

The four-stage theworld on CIFAR-10 shards of kills.py, on two gloo ranks started by `plait train --nproc 2 --max-restarts=KILLS`, which is
left to itself: this script only kills ranks (never torchrun) and waits. Which rank, in which phase of which step, and how far into it is
drawn by seed from the phases that the straight run went through, as `plait prove` does. Afterwards weights, averages, moments, state,
sample ids and every logged number are compared, and every process that was ever seen below torchrun must be gone. Writes
benchmarks/results/rank_kills.json, run by run.
"""

import argparse
import contextlib
import os
import platform
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml

from plait.commands.prove import compare, prove
from plait.commands.prove.prove import Trial
from plait.engine.monitoring import beats
from plait.files import write_json
from plait.keys import rng
from plait.training import launch

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "rank_kills.json"
RANKS = 2
LIMIT_S = 1800.0


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def deliver(process: subprocess.Popen, run: Path, kill: prove.Kill, rank: int, before: int | None, seen: set[int]) -> int:
    """SIGKILL to one rank at the kill's moment, in a generation younger than the process `before`; returns the process killed (0: none)."""
    while process.poll() is None:
        now = beats.read(run, rank)
        if now and now["pid"] != before and (now["step"], now["phase"] == kill.phase) >= (kill.step, True) and alive(now["pid"]):
            time.sleep(kill.delay_s)
            now = beats.read(run, rank) or now
            seen.update(launch.descendants(process.pid))
            kill.moment = f"{now['phase']} after step {now['step']}"
            with contextlib.suppress(ProcessLookupError):
                os.kill(now["pid"], signal.SIGKILL)
            return now["pid"]
        time.sleep(0.001)
    kill.moment = "after its end"
    return 0


def one_run(config: Path, straight: Path, events: list[prove.Event], kills: int, seed: int, plan: list[prove.Kill] | None = None) -> dict:
    """One run under torchrun with `kills` ranks killed on the way, at the moments of `plan` (None: of any phase, drawn by `seed`)."""
    run = config.parent / f"killed-{seed}"
    plan = plan or prove.choose(events, kills, seed)
    ranks = [int(rank) for rank in rng(seed, "ranks").integers(0, RANKS, kills)]
    command = [sys.executable, "-m", "plait", "train", str(config), f"--run={run}", "--nproc", str(RANKS), f"--max-restarts={kills}"]
    began, seen, dead = time.monotonic(), set(), dict.fromkeys(range(RANKS))
    with open(run.with_suffix(".log"), "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        for kill, rank in zip(plan, ranks, strict=True):
            deliver(process, run, kill, rank, dead[rank], seen)
            dead = {number: (beats.read(run, number) or {"pid": None})["pid"] for number in range(RANKS)}
            print(f"  rank {rank} in {kill.moment}", flush=True)
        code = process.wait(LIMIT_S)
    time.sleep(3)
    divergence = compare.divergence(compare.runs(straight, run)) if code == 0 else f"exit code {code}"
    left = [pid for pid in seen if alive(pid)]
    print(f"run {seed}: {divergence or 'bit-exact'}, {len(left)} of {len(seen)} processes left", flush=True)
    if divergence is None:
        shutil.rmtree(run)
    moments = [{"rank": rank, "moment": kill.moment} for kill, rank in zip(plan, ranks, strict=True)]
    minutes = (time.monotonic() - began) / 60
    return {"seed": seed, "minutes": minutes, "divergence": divergence, "seen": len(seen), "left": len(left), "kills": moments}


def main() -> None:
    shared = runpy.run_path(str(HERE / "kills.py"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--data", type=Path, default=shared["DATA"])
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="plait-rank-kills-"))
    config = folder / "four-stages.yaml"
    settings = shared["configuration"](given.data.resolve())
    settings["data"] |= {"worker_kind": "processes", "workers": 1}
    config.write_text(yaml.safe_dump(settings, sort_keys=False))
    events = prove.run_straight(Trial(config, launch.Fresh(RANKS)), folder / "straight")
    runs: list[dict] = []
    for seed in range(given.runs):
        runs.append(one_run(config, folder / "straight", events, given.kills, seed))
        exact = [one for one in runs if one["divergence"] is None]
        summary = {
            "kills": sum(kill["moment"] != "after its end" for one in runs for kill in one["kills"]),
            "kills_in_exact_runs": sum(kill["moment"] != "after its end" for one in exact for kill in one["kills"]),
            "processes_seen": sum(one["seen"] for one in runs),
            "processes_left": sum(one["left"] for one in runs),
        }
        machine = {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count(), "load": os.getloadavg()[0]}
        write_json(RESULTS, {"summary": summary, "machine": machine, "runs": runs})
    print(summary, "runs in", folder)


if __name__ == "__main__":
    main()
