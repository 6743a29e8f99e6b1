"""What `data.feature_cache` saves: seconds of each epoch with it off, on and auto, and whether the losses are equal to the bit.

    OMP_NUM_THREADS=1 python benchmarks/feature_cache.py [--rounds 2]
    OMP_NUM_THREADS=1 python benchmarks/feature_cache.py --whole [--rounds 5]

Two models of theworld on scenes, one CPU process, float32, three epochs, each mode with an empty cache: `heavy` has a vision tower of
448 px (1,024 patches, 6 layers of width 256) before a small language model, `light` one of 32 px, whose features are hardly worth reading.
Rounds are interleaved; told is the least of each figure: wall time of the steps, and processor time of the whole run, which other programs
disturb less. Fails where a loss differs. The table goes to the screen, the figures to benchmarks/results/feature_cache.json.

`--whole`: short runs of theworld and molmo, tiny, with pictures of 224 and 448 px, once through the data (where nothing comes again) and
three times, off and auto in turns, each with an empty cache. Told is the median of off / auto of each round, of the wall time of all that
`train` does, and of processor time: auto is not to be slower than 0.95. Figures go to benchmarks/results/feature_cache_auto.json.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from plait.assembly.configuration import open_config
from plait.training.run import train

MODES = ("off", "on", "auto")
SAMPLES, BATCH, EPOCHS = 48, 8, 3
_LANGUAGE = "hidden: 64, layers: 2, heads: 2, kv_heads: 1, head_dim: 32, mlp: 128, image_tokens: 16"
MODELS = {
    "heavy": f"{_LANGUAGE}, image_size: 448, patch: 14, vision_hidden: 256, vision_layers: 6, vision_heads: 4, vision_mlp: 1024",
    "light": f"{_LANGUAGE}, image_size: 32, patch: 4, vision_hidden: 64, vision_layers: 1, vision_heads: 2, vision_mlp: 128",
}
RECIPE = """
family: theworld
preset: tiny
model: {{base: tiny, world: off, tiny: {{{tiny}}}}}
trainable: [language]
data:
  train: [{{source: scenes, limit: {samples}, options: {{size: [{side}, {side}], objects: [1, 2], tasks: [caption]}}}}]
  validation: []
train: {{epochs: {epochs}, global_batch: {batch}}}
optim: {{lr: 1.0e-3, ema: null, schedule: {{warmup_steps: 0}}}}
checkpoint: {{every_steps: null}}
evaluate: []
track: {{every_steps: 1, tensorboard: false}}
guard: {{blindness: false}}
"""


def measured(model: str, mode: str, folder: Path) -> dict[str, Any]:
    """Train one model in one mode with an empty cache; return its losses, and the seconds of each epoch and of the run."""
    side = 448 if model == "heavy" else 32
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(tiny=MODELS[model], side=side, samples=SAMPLES, epochs=EPOCHS, batch=BATCH))
    began = time.process_time()
    train(open_config(recipe, [f"run={folder / 'run'}", f"data.cache={folder / 'cache'}", f"data.feature_cache={mode}"]))
    used_s = time.process_time() - began
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    steps, count = [row["step_s"] + row["data_wait_s"] for row in rows], SAMPLES // BATCH
    return {
        "losses": [row["loss"] for row in rows],
        "epochs_s": [sum(steps[i * count : (i + 1) * count]) for i in range(EPOCHS)],
        "read": [row.get("features_read", 0.0) for row in rows],
        "processor_s": used_s,
    }


_TOWER = "vision_hidden: 128, vision_layers: 4, vision_heads: 4, vision_mlp: 512"
_SHORT = """
preset: {preset}
family: {family}
model: {model}
trainable: {trainable}
data:
  train: [{{source: scenes, limit: 32, options: {{size: [{side}, {side}], objects: [1, 2], tasks: [caption]}}}}]
  validation: []
train: {{epochs: {epochs}, global_batch: 4}}
optim: {{lr: 1.0e-3, ema: null, schedule: {{warmup_steps: 0}}}}
checkpoint: {{every_steps: null}}
evaluate: []
track: {{every_steps: 1, tensorboard: false}}
guard: {{blindness: false}}
"""
_THEWORLD = "{{base: tiny, world: off, tiny: {{{language}, image_size: {side}, patch: 14, {tower}}}}}"


def short_recipe(family: str, side: int, epochs: int) -> str:
    """Return the recipe of a short run whose pictures have sides of so many pixels, and whose vision tower is frozen."""
    own = {
        "theworld": {"preset": "tiny", "trainable": "[language]", "model": _THEWORLD.format(language=_LANGUAGE, side=side, tower=_TOWER)},
        "molmo": {"preset": "debug", "trainable": "[connector, language]", "model": "{}"},
    }
    return _SHORT.format(family=family, side=side, epochs=epochs, **own[family])


def timed(recipe: str, mode: str, folder: Path) -> dict[str, Any]:
    """Return the wall and processor seconds of a whole run, and its losses."""
    path = folder / "recipe.yaml"
    path.write_text(recipe)
    began, used = time.perf_counter(), time.process_time()
    train(open_config(path, [f"run={folder / 'run'}", f"data.cache={folder / 'cache'}", f"data.feature_cache={mode}"]))
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    found = {"wall_s": time.perf_counter() - began, "processor_s": time.process_time() - used}
    return found | {"losses": [row["loss"] for row in rows], "read": rows[-1].get("features_read", 0.0)}


def whole_runs(rounds: int) -> None:
    """Compare off and auto over whole short runs, in turns; print a line for each kind of run, and write the figures."""
    results = {}
    for family, side, epochs in itertools.product(("theworld", "molmo"), (224, 448), (1, 3)):
        pairs = []
        for number in range(rounds + 1):
            pair = {}
            for mode in ("off", "auto") if number % 2 else ("auto", "off"):
                with tempfile.TemporaryDirectory() as folder:
                    pair[mode] = timed(short_recipe(family, side, epochs), mode, Path(folder))
            assert pair["off"]["losses"] == pair["auto"]["losses"], "losses differ"
            pairs += [pair] if number else []  # the first warms up
        ratios = {name: statistics.median(pair["off"][name] / pair["auto"][name] for pair in pairs) for name in ("wall_s", "processor_s")}
        name = f"{family} {side} px, {epochs} epoch{'s' * (epochs > 1)}"
        results[name] = {"off_over_auto": ratios, "off_s": [pair["off"]["wall_s"] for pair in pairs], "read": pairs[-1]["auto"]["read"]}
        shown = f"off / auto {ratios['wall_s']:.3f} by the clock, {ratios['processor_s']:.3f} of the processor"
        rest = f"off {statistics.median(results[name]['off_s']):.1f} s, read at the end {results[name]['read']:.0%}"
        print(f"{name:<28} {shown}, {rest}", flush=True)
    write(results, rounds, "feature_cache_auto.json")


def write(results: dict[str, Any], rounds: int, name: str) -> None:
    """Write the figures with what they were measured on."""
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    path = Path(__file__).parent / "results" / name
    path.write_text(json.dumps({"machine": machine, "rounds": rounds, "load": os.getloadavg()[0], "results": results}, indent=2) + "\n")


def main() -> None:
    """Run the rounds, compare the losses, and write the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int)
    arguments.add_argument("--whole", action="store_true")
    given = arguments.parse_args()
    if given.whole:
        whole_runs(given.rounds or 5)
        return
    rounds: int = given.rounds or 2
    results: dict[str, Any] = {}
    for model in MODELS:
        done: dict[str, list[dict[str, Any]]] = {mode: [] for mode in MODES}
        for _ in range(rounds):
            for mode in MODES:
                with tempfile.TemporaryDirectory() as folder:
                    done[mode].append(measured(model, mode, Path(folder)))
        assert all(run["losses"] == done["off"][0]["losses"] for mode in MODES for run in done[mode]), "losses differ"
        for mode in MODES:
            epochs = [min(run["epochs_s"][i] for run in done[mode]) for i in range(EPOCHS)]
            used = min(run["processor_s"] for run in done[mode])
            results[f"{model} {mode}"] = {"epochs_s": epochs, "processor_s": used, "read_in_last_epoch": done[mode][0]["read"][-1]}
            times = " ".join(f"{epoch:7.2f}" for epoch in epochs)
            print(f"{model} {mode:<5} epochs {times} s, first to second {epochs[0] / epochs[1]:5.1f}, processor {used:6.2f} s")
    write(results, rounds, "feature_cache.json")


if __name__ == "__main__":
    main()
