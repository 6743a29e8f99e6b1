"""Pushes of a run to a Hub that fails at random, by a process that is killed at random; and what pushes cost the trainer.

    python benchmarks/hub_pushes.py [--pushes 100] [--faults 0.1] [--kills 20]

A Hub on loopback (tests/hub_store.py) answers that share of all requests with 500, 503 or 429, or cuts the connection, before or after it
has done what was asked. The process that sends the queue is killed so often, after 4 to 12 seconds each time. Told are the commits that are
missing, doubled, out of order or not whole, and requests with a token outside of the header. Then: the processor time of the hook after a
step, of a step with a new checkpoint, and of the process beside the run. Figures go to benchmarks/results/hub_pushes.json.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import pytest  # noqa: E402

from plait import cli  # noqa: E402
from plait.assembly.configuration import open_config  # noqa: E402
from plait.commands.actions.publishing import beside, contents, outbox  # noqa: E402
from plait.config.sections.hub import Hub  # noqa: E402
from plait.engine.checkpoints import checkpoint  # noqa: E402
from plait.files import write_json, xxh3  # noqa: E402
from tests import hub_store  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "hub_pushes.json"
REPO, CALLS = "someone/pushed", 3000
KINDS = (500, 503, 429, "cut", "lost")
RECIPE = """
family: nanodit
data: {{train: [{{source: scenes, limit: 16, options: {{size: [32, 32], objects: [1, 2], tasks: [caption]}}}}], workers: 0}}
stages: [{{name: one}}, {{name: two}}]
train: {{steps: {steps}, global_batch: 4}}
checkpoint: {{every_steps: 1, keep: 0, reference: false}}
model: {{space: pixels, depth: 1, hidden: 48, heads: 2, patch: 8, image_size: 32, text: words, text_dim: 16, words: 64, image_dim: 0,
        dropout: {{neither: 0.1, text_only: 0.0, image_only: 0.0}}}}
track: {{tensorboard: false, monitor: false, every_steps: 1}}
guard: {{blindness: false, forgetting: null}}
"""


def trained(folder: Path, pushes: int) -> Path:
    """Train a small run with so many checkpoints."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(steps=pushes // 2), encoding="utf-8")
    assert cli.main(["train", str(recipe), f"--run={folder / 'run'}"]) == 0
    return folder / "run"


def queue(run: Path) -> list[dict[str, str]]:
    """Put all checkpoints of a run into its queue; return the hashes of the files of each that are to be seen on the Hub."""
    resolved, wanted = open_config(run / "config.yaml"), []
    for folder in reversed(checkpoint.published(run)):
        found = checkpoint.read(folder)
        contents.add(found, contents.job_of(found, resolved, REPO, private=True, replace=False))
        wanted.append({name: xxh3(folder / name) for name in found.manifest["files"] if name.startswith(("weights", "ema"))})
    return wanted


def send(run: Path, kills: int, chance: random.Random) -> tuple[int, float]:
    """Start the process that sends the queue until that is empty, and kill it so often; return (kills, seconds)."""
    began, killed = time.monotonic(), 0
    while outbox.waiting(run):
        command = [sys.executable, "-m", "plait.commands.actions.publishing.uploader"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        process.stdin.write(json.dumps({"run": str(run), "patience_s": 600.0, "hub": True, "mirror": None}).encode() + b"\n")
        process.stdin.close()
        try:
            process.wait(4 + 8 * chance.random() if killed < kills else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
    return killed, time.monotonic() - began


def faults_of(repo: Any, wanted: list[dict[str, str]], folder: Path) -> dict[str, int]:
    """Count what is wrong with the commits of the main branch."""
    main = [(commit, json.loads(repo.commits[commit]["plait-run.json"])["step"]) for branch, commit, _ in repo.log[1:] if branch == "main"]
    steps = [step for _, step in main]
    torn = 0
    for commit, step in main:
        for name, content in wanted[step - 1].items():
            (folder / "body").write_bytes(repo.commits[commit].get(name, b""))
            torn += xxh3(folder / "body") != content
        torn += json.loads(repo.commits[commit]["manifest.json"])["state"]["step"] != step
    missing = len(set(range(1, len(wanted) + 1)) - set(steps))
    return {"missing": missing, "doubled": len(steps) - len(set(steps)), "out_of_order": int(steps != sorted(steps)), "torn": torn}


def pushes(folder: Path, count: int, share: float, kills: int) -> dict[str, Any]:
    """Push the checkpoints of a run to a Hub that fails; return what came of it."""
    chance = random.Random(0)
    run = trained(folder, count)
    wanted = queue(run)
    with pytest.MonkeyPatch.context() as patch, hub_store.serving(patch, folder) as hub:
        hub.fault = lambda method, path: chance.choice(KINDS) if chance.random() < share else None
        killed, seconds = send(run, kills, chance)
        token = hub_store.TOKEN.encode()
        leaked = sum(token in body for body in hub.bodies) + sum(token in path.read_bytes() for path in run.rglob("*") if path.is_file())
        wrong = faults_of(hub.repos[REPO], wanted, folder)
        return {"pushes": count, "requests": len(hub.asked), "kills": killed, "seconds": round(seconds), "leaked": leaked, **wrong}


def cost(folder: Path) -> dict[str, float]:
    """Measure the hook and the process beside a run."""
    run = folder / "run"
    resolved, state = open_config(run / "config.yaml"), cast(Any, None)
    hook = beside.Pushes(run, resolved, Hub(repo=REPO, push="every_save"))
    with pytest.MonkeyPatch.context() as patch, hub_store.serving(patch, folder):
        newest = checkpoint.published(run)[0]
        hook(state, {})
        took = []
        for number in range(CALLS + 10):
            if number >= CALLS:  # a checkpoint is saved anew
                aside = newest.with_name("aside")
                newest.rename(aside)
                aside.rename(newest)
                hook._seen = {key for key in hook._seen or () if key[0] != newest}
                (run / "outbox/sent.jsonl").unlink(missing_ok=True)
            began = time.process_time()
            hook(state, {})
            took.append(time.process_time() - began)
        process = hook._side.process.pid if hook._side is not None else 0
        time.sleep(15)
        start_s = processor_s(process)
        time.sleep(30)
        idle = (processor_s(process) - start_s) / 30
        hook.finish()
    return {
        "hook_us": 1e6 * statistics.median(took[:CALLS]),
        "queue_ms": 1e3 * statistics.median(took[CALLS:]),
        "process_start_s": start_s,
        "process_share": idle,
    }


def processor_s(process: int) -> float:
    """Return the processor time of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure both, and write the figures down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pushes", type=int, default=100)
    parser.add_argument("--faults", type=float, default=0.1)
    parser.add_argument("--kills", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        told = pushes(Path(work), options.pushes, options.faults, options.kills)
        told |= cost(Path(work))
    told |= {"faults": options.faults, "machine": f"{os.cpu_count()} cores, {platform.machine()}"}
    write_json(RESULTS, told)
    sys.stdout.write(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
