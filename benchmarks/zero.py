"""Losses of `plait.hf.trainer` under DeepSpeed's ZeRO 1, 2 and 3 beside those of plait's engine, 20 steps of each family in two processes.

    pip install deepspeed; DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 python benchmarks/zero.py

Float32, on the CPU, with gloo; DeepSpeed compiles an operator at its first start, for a minute. The engine runs in two ranks too, so that
dropout is the same. Each training is also continued from its checkpoint of step 10. The table goes to the screen, the figures to
benchmarks/results/zero.json.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from tests.hf import recipes

FAMILIES, STAGES, PROCESSES = [*recipes.CONFIGS], (1, 2, 3), 2
RESULTS = Path(__file__).resolve().parent / "results" / "zero.json"
AUTO = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")


def train(folder, zero):
    """In each process: train and continue; the first writes the losses."""
    gathered = {"stage": zero, "stage3_gather_16bit_weights_on_model_save": True}
    args = {"deepspeed": {"zero_optimization": gathered, **dict.fromkeys(AUTO, "auto")}}
    losses = []
    for resumed in (None, str(folder / f"zero-{zero}" / "checkpoint-10")):
        trainer = recipes.trainer_of(folder / "run.yaml", folder / f"zero-{zero}", args=args)
        trainer.train(resume_from_checkpoint=resumed)
        losses.append([row["loss"] for row in recipes.of_trainer(trainer)])
    if trainer.is_world_process_zero():
        (folder / f"zero-{zero}.json").write_text(json.dumps(losses))


def in_processes(*words):
    launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={PROCESSES}", "--standalone"]
    ended = subprocess.run([*launch, *words], check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-6000:]


def measure(family):
    """For each ZeRO stage, the largest difference from the engine's losses, and of the continuation from the first training."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = recipes.written(family, folder)
        config = yaml.safe_load(file.read_text())
        config["optim"].pop("ema", None)
        config["optim"].pop("components", None)
        config["data"].pop("pack_tokens", None)
        config["train"]["micro_batch"] = 1  # two micro-batches in each process
        file.write_text(yaml.safe_dump(config))
        in_processes("-m", "plait", "train", str(file))
        engine = [row["loss"] for row in recipes.of_engine(folder / "run")]
        rows = {}
        for zero in STAGES:
            in_processes(__file__, str(folder), str(zero))
            first, again = json.loads((folder / f"zero-{zero}.json").read_text())
            rows[zero] = [max(abs(a - b) for a, b in zip(other, base, strict=True)) for other, base in ((first, engine), (again, first))]
        return rows


def main():
    if len(sys.argv) == 3:
        train(Path(sys.argv[1]), int(sys.argv[2]))
        return
    results = {}
    for family in FAMILIES:
        results[family] = measure(family)
        for zero, (apart, again) in results[family].items():
            print(f"{family:10s} ZeRO {zero}: {apart:.1e} from the engine, {again:.1e} after continuing")
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
