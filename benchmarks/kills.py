"""100 kills at random moments of a run of four stages on real photos; every run must end at the straight run's bits.

    OMP_NUM_THREADS=1 python benchmarks/kills.py [--chains 10] [--kills 10] [--fresh 2] [--data DIR] [--only SEED ...]

A tiny theworld on the CIFAR-10 shards: projector, then + vision, then + language, then + world. It runs straight once, and then as often
as there are chains, each with `kills` ends by SIGKILL, SIGTERM and the death of a data worker, at moments drawn by the chain's number
(in steps, data wait, evaluation, saving, setting up a stage). The first `fresh` chains start every generation with `python -m plait train`;
the others fork it from a process that has imported the same modules (`plait prove --warm`), which saves the imports and nothing else.
Weights, moments, averages, state, sample ids and every logged number are compared. Writes benchmarks/results/kills.json, chain by chain.
"""

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
import yaml

from plait.commands.prove import compare, prove
from plait.commands.prove.prove import Trial
from plait.engine.monitoring import reporter
from plait.files import write_json
from plait.training import launch
from plait.training.launch import Launcher

DATA = Path(os.environ.get("PLAIT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
RESULTS = Path(__file__).resolve().parent / "results" / "kills.json"
MODULES = ("plait.training.run", "plait.families.theworld.family")
TINY = {
    **{"hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp": 64, "image_size": 16, "image_tokens": 4},
    **{"vision_hidden": 32, "vision_layers": 1, "vision_heads": 2, "vision_mlp": 64, "world_base": 4},
}


def configuration(data: Path) -> dict:
    """Four stages of 8 steps, with an evaluation and a checkpoint every other step."""
    template = {"user": "What is this?", "assistant": "{label}"}
    source = {"source": "shards", "template": template}
    parts = ["projector", "vision", "language", "world"]
    stages = [{"name": name, "trainable": parts[: i + 1], "train": {"steps": 8}} for i, name in enumerate(parts)]
    return {
        "family": "theworld",
        "preset": "tiny",
        "model": {"tiny": TINY, "world": {"image_size": 16}},
        "data": {
            "train": [source | {"path": str(data / "cifar10" / "train-*.tar"), "limit": 2000}],
            "validation": [source | {"path": str(data / "cifar10" / "validation-*.tar"), "limit": 100}],
        },
        "stages": stages,
        "train": {"steps": 8, "global_batch": 8, "micro_batch": 4},
        "optim": {"lr": 1e-3, "schedule": {"name": "cosine", "warmup_steps": 2}, "ema": {"decay": 0.99}},
        "checkpoint": {"every_steps": 2, "keep": 2, "best": "loss"},
        "evaluate": [{"bench": "loss", "every_steps": 2, "samples": 16, "batch": 4}, {"bench": "accuracy", "samples": 8, "batch": 4}],
        "track": {"every_steps": 1, "tensorboard": False},
    }


def chain(launcher: Launcher, config: Path, straight: Path, events: list[prove.Event], kills: int, seed: int) -> dict:
    """One run with `kills` ends; what came of each, and whether it ended at the straight run's bits."""
    killed = config.parent / f"killed-{seed}"
    plan = prove.choose(events, kills, seed)
    began = time.monotonic()
    try:
        prove.run_killed(Trial(config, launcher), killed, plan)
        lines = compare.runs(straight, killed)
        divergence = compare.divergence(lines)
        compared = {line.what: line.compared for line in lines}
    except prove.Diverged as error:
        divergence, compared = str(error), {}
    print(f"chain {seed}: {divergence or 'bit-exact'}", flush=True)
    if divergence is None:
        shutil.rmtree(killed)
    ends = [{"way": kill.way, "moment": kill.moment, "since": kill.since, "exit_code": kill.exit_code} for kill in plan]
    start = "python -m plait" if isinstance(launcher, launch.Fresh) else "forked"
    minutes = (time.monotonic() - began) / 60
    return {"seed": seed, "start": start, "minutes": minutes, "divergence": divergence, "compared": compared, "kills": ends}


def main() -> None:
    reporter.install()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chains", type=int, default=10)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--fresh", type=int, default=2, help="chains whose generations are new interpreters")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--only", type=int, nargs="*", help="these chains only, nothing is written")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="plait-kills-"))
    config = folder / "four-stages.yaml"
    config.write_text(yaml.safe_dump(configuration(given.data.resolve()), sort_keys=False))
    warm, fresh = launch.Warm(MODULES), launch.Fresh()
    events = prove.run_straight(Trial(config, warm), folder / "straight")
    chains: list[dict] = []
    for seed in given.only if given.only is not None else range(given.chains):
        launcher = fresh if seed < given.fresh else warm
        chains.append(chain(launcher, config, folder / "straight", events, given.kills, seed))
        if given.only is None:
            record(chains, given.kills)
    warm.close()
    exact = sum(one["divergence"] is None for one in chains)
    print(f"{exact * given.kills} of {len(chains) * given.kills} kills in runs that ended at the straight run's bits; runs in {folder}")


def record(chains: list[dict], kills: int) -> None:
    """Write what is known so far."""
    ends = [kill for one in chains for kill in one["kills"]]
    summary = {
        "kills": len(ends),
        "kills_in_exact_runs": sum(kills for one in chains if one["divergence"] is None),
        "delivered": sum(kill["moment"] != "after its end" for kill in ends),
        "ways": dict(Counter(kill["way"] for kill in ends)),
        "phases": dict(Counter(kill["moment"].partition(" ")[0] for kill in ends)),
    }
    machine = {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count()}
    write_json(RESULTS, {"summary": summary, "machine": machine, "chains": json.loads(json.dumps(chains))})


if __name__ == "__main__":
    main()
