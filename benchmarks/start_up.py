"""What a start costs: processor seconds of a tiny run of each family up to its first step and checkpoint, beside `import torch` alone.

    OMP_NUM_THREADS=1 python benchmarks/start_up.py [--rounds 5]

Processes of their own, in turn; the medians are told, and written to benchmarks/results/start_up.json. Most of a start is the import of
transformers and diffusers, which theworld's and molmo's models are made of: that is measured too. Modules are compiled beforehand, as pip
does when it installs them: a round that is not counted writes what is missing.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from plait.files import write_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "start_up.json"
NANODIT = """
family: nanodit
model: {space: pixels, image_size: 32, depth: 2, hidden: 64, heads: 2, patch: 4, text: words, text_dim: 16, words: 64, image_dim: 0}
trainable: ["*"]
data: {train: [{source: scenes, options: {size: [32, 32], objects: [1, 2], tasks: [caption]}}], workers: 0}
train: {global_batch: 8}
optim: {lr: 1.0e-3}
"""
ONE_STEP = ("--train.steps=1", "--evaluate=[]", "--data.validation=[]")
STARTS = {
    "theworld": [str(ROOT / "configs/theworld/demo.yaml"), "--stage=projection"],
    "molmo": [str(ROOT / "configs/molmo/debug.yaml")],
    "nanodit": ["nanodit.yaml"],
}
IMPORTS = {
    "import torch": "import torch",
    "import transformers, diffusers": "from transformers import Gemma3ForConditionalGeneration; from diffusers import AutoencoderKLWan",
}


def processor_s(words: list[str], folder: Path) -> float:
    """Processor seconds of a command and of the processes that it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Run the rounds, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    taken: dict[str, list[float]] = {name: [] for name in (*IMPORTS, *STARTS)}
    for _ in range(1 + asked.rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "nanodit.yaml").write_text(NANODIT, encoding="utf-8")
            for what, code in IMPORTS.items():
                taken[what].append(processor_s(["-c", code], folder))
            for family, words in STARTS.items():
                taken[family].append(processor_s(["-m", "plait", "train", *words, f"--run={folder / family}", *ONE_STEP], folder))
    taken = {name: values[1:] for name, values in taken.items()}
    median = {name: statistics.median(values) for name, values in taken.items()}
    for name, value in median.items():
        print(f"{name:32s} {value:5.2f} s, {value / median['import torch']:.2f} x import torch")
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__}
    write_json(RESULTS, {"machine": machine, "rounds": taken, "median_s": median})


if __name__ == "__main__":
    main()
