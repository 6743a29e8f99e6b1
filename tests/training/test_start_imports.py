"""What a start loads: a family that needs none of the large libraries does not pay for them (transformers takes twice torch's time)."""

import subprocess
import sys

HEAVY = ("transformers", "diffusers", "peft", "accelerate", "datasets", "wandb", "pandas")
RUN = """
import sys
from plait import cli
words = ["train", sys.argv[1], "--run=" + sys.argv[2]]
try:
    cli.main(words)
finally:
    print("loaded:", *sorted(set(sys.argv[3].split(",")) & set(sys.modules)))
"""
CONFIG = """
family: nanodit
model: {space: pixels, image_size: 32, depth: 1, hidden: 32, heads: 2, patch: 8, text: words, text_dim: 8, words: 32, image_dim: 0}
trainable: ["*"]
data: {train: [{source: scenes, limit: 16, options: {size: [32, 32], objects: [1, 2], tasks: [caption]}}], workers: 0}
train: {global_batch: 4, steps: 1}
optim: {lr: 1.0e-3}
"""


def test_a_run_of_nanodit_loads_none_of_the_large_libraries(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    words = [sys.executable, "-c", RUN, "config.yaml", "run", ",".join(HEAVY)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert "1 steps done" in done.stdout, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:"
